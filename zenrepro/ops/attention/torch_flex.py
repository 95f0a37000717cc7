"""torch FlexAttention, compiled: the attention that Inductor makes for a mask. A peer.

The mask's blocks follow from the lengths alone and are kept, as a caller would keep them. Every
shape is compiled for: past torch's limit on that, the call would go on uncompiled without a word.

Inductor has no kernel for some shapes: below 128 queries it packs a group's heads into one tile,
which then has to divide a block of 128 (65 queries of 2 heads a group do not, in torch 2.11).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from zenrepro.ops.attention import arguments
from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import torch

FORMATS = ("fp16", "bf16", "fp32")
SHAPES = 1024  # that one process compiles for


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Raises ValueError; UnsupportedError when torch refuses or its compiler makes no kernel.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, formats=FORMATS, framework="torch")
    masked = causal and shape.query_len > 1
    blocks = _blocks(shape.query_len, shape.cache_len, str(q.device)) if masked else None
    import torch._dynamo as dynamo

    limits = {"recompile_limit": SHAPES, "accumulated_recompile_limit": SHAPES}
    said = (ValueError, NotImplementedError, dynamo.exc.TorchDynamoException)
    try:
        with dynamo.config.patch(**limits), refusals(*said):
            out: torch.Tensor = _compiled()(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=blocks,
                scale=shape.scale, enable_gqa=shape.heads != shape.kv_heads,
            )  # fmt: skip
    except dynamo.exc.FailOnRecompileLimitHit as error:
        raise UnsupportedError(f"compiled for {SHAPES} shapes already, the limit here") from error
    return out.transpose(1, 2)


@functools.cache
def _compiled() -> Any:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@functools.lru_cache(maxsize=8)
def _blocks(T: int, S: int, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Any, h: Any, query: Any, key: Any) -> Any:
        return key <= query + (S - T)

    return create_block_mask(seen, None, None, T, S, device=device)
