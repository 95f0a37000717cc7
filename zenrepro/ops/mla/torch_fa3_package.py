"""An installed FlashAttention-3 as latent attention: a peer on Hopper, absorbed decode.

Its ``q_v`` adds a second product to the scores: keys are the 64-wide rotary part, values the
512-wide latent, ``q_v`` the latent query, so q k^T + q_v v^T are the scores over all 576. The
scheduling that it wants on the device is part of each call; a serving engine computes it once for
all layers of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import fa3_library
from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import LATENT

if TYPE_CHECKING:
    import torch


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """q [B, T, H, 576], cache [P, 64, 576], block_table int32 [B, pages], cache_seqlens int32 [B]
    -> [B, T, H, 512], bf16 or fp16.

    Raises ValueError; UnsupportedError for an FP8 cache and where the library refuses.
    """
    shape = arguments.check_decode(
        q,
        cache,
        block_table=block_table,
        cache_seqlens=cache_seqlens,
        scale=scale,
        framework="torch",
    )
    if shape.fp8:
        raise UnsupportedError("FlashAttention-3 serves no FP8 latent cache")
    if not q.is_cuda:
        raise ValueError(f"q: wants a cuda tensor, got one on {q.device}")
    return fa3_library.forward(
        q[..., LATENT:],
        cache[:, :, None, LATENT:],
        cache[:, :, None, :LATENT],
        q_v=q[..., :LATENT],
        page_table=block_table,
        seqused_k=cache_seqlens,
        scale=shape.scale,
        causal=True,
    )
