"""Decompressed latent attention with our Hopper kernel: FlashAttention-3 behind the projection.

Two matrix products expand every row once a head, one copy puts the shared rotary part beside each
head's key, and ``zenrepro.ops.attention.torch_fa3`` attends over keys of 192 and values of 128.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import torch_fa3
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import LATENT, NOPE, QUERY

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
    shape = arguments.check_prefill(q, latent, w_uk, w_uv, causal=causal, scale=scale)
    keys, values = expand(latent, w_uk, w_uv)
    return torch_fa3.attention(q, keys, values, causal=causal, scale=shape.scale)


def expand(
    latent: torch.Tensor, w_uk: torch.Tensor, w_uv: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """latent [B, S, 576] -> keys [B, S, H, 192] and values [B, S, H, 128], heads innermost but one.

    The products are written head by head beside each other, so that attention reads them as they
    are; the rotary part is copied to every head, since TMA has no stride of zero.
    """
    import torch

    rows, rotary = latent[..., :LATENT], latent[..., LATENT:]
    batch, length, heads = latent.shape[0], latent.shape[1], w_uk.shape[0]
    nope = rows @ w_uk.reshape(heads * NOPE, LATENT).T
    values = rows @ w_uv.reshape(-1, LATENT).T
    keys = torch.empty(batch, length, heads, QUERY, dtype=latent.dtype, device=latent.device)
    keys[..., :NOPE] = nope.view(batch, length, heads, NOPE)
    keys[..., NOPE:] = rotary[:, :, None]
    return keys, values.view(batch, length, heads, -1)
