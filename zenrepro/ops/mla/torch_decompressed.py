"""Decompressed latent attention in plain torch: each head expands the rows to keys and values.

The plain twin of the prefill kernels. Over a long cache and few queries it is what absorption
saves: every row is expanded anew for every head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import LATENT, ROTARY

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

    Products accumulate in fp32; every intermediate is rounded to q's dtype. Raises ValueError.
    """
    import torch

    _, T, S, _, causal, factor = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="torch"
    )
    keys, values = expand(latent, w_uk, w_uv)
    scores = (q.transpose(1, 2) @ keys.transpose(2, 3)) * factor
    if causal:
        hidden = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(dim=-1) @ values).transpose(1, 2)


def expand(
    latent: torch.Tensor, w_uk: torch.Tensor, w_uv: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """latent [B, S, 576] -> keys [B, H, S, 192] and values [B, H, S, 128] of every head."""
    import torch

    c, rotary = latent.split((LATENT, ROTARY), dim=-1)
    nope = torch.einsum("bsc,hnc->bhsn", c, w_uk)
    shared = rotary[:, None].expand(-1, w_uk.shape[0], -1, -1)
    return torch.cat((nope, shared), -1), torch.einsum("bsc,hvc->bhsv", c, w_uv)
