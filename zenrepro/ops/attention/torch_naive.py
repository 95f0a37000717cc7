"""Attention in plain torch with the scores stored: the report's baseline.

Written as the formula: two matrix products around a softmax, every intermediate in the inputs'
dtype and in device memory. Grouped heads share their keys without a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments

if TYPE_CHECKING:
    import torch


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Products accumulate in fp32; scores and weights are rounded to q's dtype. Raises ValueError.
    """
    import torch

    shape = arguments.check(q, k, v, causal=causal, scale=scale)
    B, T, S, H, Hkv, D, Dv, factor = shape
    grouped = q.transpose(1, 2).reshape(B, Hkv, (H // Hkv) * T, D)
    scores = (grouped @ k.permute(0, 2, 3, 1)) * factor
    scores = scores.view(B, H, T, S)
    if causal:
        hidden = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1).view(B, Hkv, (H // Hkv) * T, S)
    out = weights @ v.transpose(1, 2)
    return out.view(B, H, T, Dv).transpose(1, 2)
