"""Latent rows expanded to every head's keys and values, laid out as attention kernels read them.

Two matrix products, and one copy that puts the shared rotary part beside each head's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla.sizes import LATENT, NOPE, QUERY

if TYPE_CHECKING:
    import torch


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
