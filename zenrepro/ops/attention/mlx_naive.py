"""Attention in plain mlx as the formula, scores stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments

if TYPE_CHECKING:
    import mlx.core as mx


def attention(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool, scale: float | None = None
) -> mx.array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    The softmax accumulates in fp32. Raises ValueError.
    """
    import mlx.core as mx

    B, T, S, H, Hkv, D, Dv, factor = arguments.check(q, k, v, causal=causal, scale=scale)
    grouped = q.transpose(0, 2, 1, 3).reshape(B, Hkv, (H // Hkv) * T, D)
    scores = (grouped @ k.transpose(0, 2, 3, 1)) * factor
    scores = scores.reshape(B, H, T, S)
    if causal:
        seen = mx.tri(T, S, S - T, dtype=mx.float32) > 0
        scores = mx.where(seen, scores, mx.array(float("-inf"), dtype=scores.dtype))
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(B, Hkv, (H // Hkv) * T, S)
    out = weights @ v.transpose(0, 2, 1, 3)
    return out.reshape(B, H, T, Dv).transpose(0, 2, 1, 3)
