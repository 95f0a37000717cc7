"""Absorbed latent attention in plain torch: heads attend to the latent rows themselves.

The plain twin of the decode kernels: pages are gathered to one array, scores are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla import arguments, torch_cache
from zenrepro.ops.mla.sizes import LATENT, NOPE, PAGE, ROTARY, ROW

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
    """q [B, T, H, 576], cache [P, 64, 576] or uint8 [P, 64, 656], block_table int32 [B, pages],
    cache_seqlens int32 [B] -> [B, T, H, 512] in q's dtype.

    Products accumulate in fp32; rows of an FP8 cache, scores and weights are rounded to q's dtype.
    Raises ValueError.
    """
    import torch

    shape = arguments.check_decode(
        q,
        cache,
        block_table=block_table,
        cache_seqlens=cache_seqlens,
        scale=scale,
        framework="torch",
    )
    B, T, H = shape.batch, shape.query_len, shape.heads
    length = shape.width * PAGE
    rows = cache[block_table.clamp(0, shape.pages - 1).long()]  # [B, pages, 64, width]
    rows = rows.reshape(B, length, rows.shape[-1])
    if shape.fp8:
        rows = torch_cache.dequantise(rows, q.dtype)
    place = torch.arange(length, device=q.device)
    # What lies beyond a sequence may be NaN, and 0 x NaN is NaN.
    rows = rows.masked_fill((place >= cache_seqlens[:, None])[..., None], 0)
    scores = (q.reshape(B, T * H, ROW) @ rows.transpose(1, 2)) * shape.scale
    behind = torch.arange(T - 1, -1, -1, device=q.device)  # tokens after query t
    seen = cache_seqlens[:, None] - behind  # [B, T]
    hidden = (place >= seen[..., None])[:, :, None]  # [B, T, 1, length]
    scores = scores.view(B, T, H, length).masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1).masked_fill(hidden, 0)  # a query that sees no row: zeros
    out = weights.view(B, T * H, length) @ rows[..., :LATENT]
    return out.view(B, T, H, LATENT)


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

    The up-projections go into the queries and behind the weighted sum. Products accumulate in
    fp32; every intermediate is rounded to q's dtype. Raises ValueError.
    """
    import torch

    B, T, S, H, causal, factor = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="torch"
    )
    nope, rotary = q.split((NOPE, ROTARY), dim=-1)
    absorbed = torch.cat((torch.einsum("bthn,hnc->bhtc", nope, w_uk), rotary.transpose(1, 2)), -1)
    scores = (absorbed.reshape(B, H * T, ROW) @ latent.transpose(1, 2)) * factor
    scores = scores.view(B, H, T, S)
    if causal:
        hidden = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1).view(B, H * T, S)
    out = (weights @ latent[..., :LATENT]).view(B, H, T, LATENT)
    return torch.einsum("bhtc,hvc->bthv", out, w_uv)
