"""Decompressed latent attention with our Hopper kernel: FlashAttention-3 behind the projection.

``torch_expand`` makes keys of 192 and values of 128, ``zenrepro.ops.attention.torch_fa3`` attends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import torch_fa3
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.torch_expand import expand

if TYPE_CHECKING:
    import torch


def prefill(
    q: torch.Tensor,
    latent: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    *,
    causal: bool,
    scale: float | None = None,
) -> torch.Tensor:
    """q [B, T, H, 192], latent [B, S, 576], w_uk and w_uv [H, 128, 512] -> [B, T, H, 128].

    bf16 or fp16 on a Hopper GPU; products and sums in fp32, keys and values rounded once. Raises
    ValueError for arguments that do not fit.
    """
    shape = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="torch"
    )
    keys, values = expand(latent, w_uk, w_uv)
    return torch_fa3.attention(q, keys, values, causal=causal, scale=shape.scale)
