"""torch FlexAttention, compiled: the attention that Inductor makes for a mask. A peer.

The mask's blocks follow from the lengths alone and are kept, as a caller would keep them.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from zenrepro.ops.attention import arguments
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import torch

FORMATS = ("fp16", "bf16", "fp32")


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Raises ValueError; UnsupportedError when torch refuses.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, formats=FORMATS, framework="torch")
    masked = causal and shape.query_len > 1
    blocks = _blocks(shape.query_len, shape.cache_len, str(q.device)) if masked else None
    with refusals(ValueError, NotImplementedError):
        out: torch.Tensor = _compiled()(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=blocks,
            scale=shape.scale, enable_gqa=shape.heads != shape.kv_heads,
        )  # fmt: skip
    return out.transpose(1, 2)


@functools.cache
def _compiled() -> Any:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=8)
def _blocks(T: int, S: int, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Any, h: Any, query: Any, key: Any) -> Any:
        return key <= query + (S - T)

    return create_block_mask(seen, None, None, T, S, device=device)
