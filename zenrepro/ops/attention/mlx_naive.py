"""Attention in plain mlx as the formula, scores stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments, mlx_layouts

if TYPE_CHECKING:
    import mlx.core as mx


def attention(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool, scale: float | None = None
) -> mx.array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    The softmax accumulates in fp32. Raises ValueError.
    """
    import mlx.core as mx

    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="mlx")
    T, S = shape.query_len, shape.cache_len
    seen = (mx.tri(T, S, S - T, dtype=mx.float32) > 0)[None] if causal else None
    return _formula(q, k, v, seen, shape.scale)


def attention_varlen(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    cu_seqlens_q: mx.array,
    cu_seqlens_k: mx.array,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None = None,
) -> mx.array:
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv], offsets int32 [B + 1] -> [Tq, H, Dv].

    All rows against all, other sequences masked (a NaN among one's values reaches all). Queries
    that see no key give zeros. Raises ValueError.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, framework="mlx",
    )  # fmt: skip
    seen = mlx_layouts.varlen_mask(shape.queries, shape.keys, cu_seqlens_q, cu_seqlens_k, causal)
    v = mlx_layouts.varlen_values(v, cu_seqlens_k)
    return _formula(q[None], k[None], v[None], seen[None], shape.scale)[0]


def attention_paged(
    q: mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    *,
    block_table: mx.array,
    cache_seqlens: mx.array,
    causal: bool,
    scale: float | None = None,
) -> mx.array:
    """q [B, T, H, D], caches [P, page, Hkv, D or Dv], block_table int32 [B, pages], cache_seqlens
    int32 [B] -> [B, T, H, Dv].

    The pages are copied next to each other first. Queries that see no key give zeros. Raises
    ValueError.
    """
    shape = arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale, framework="mlx",
    )  # fmt: skip
    k, v, seen = mlx_layouts.gathered(
        k_cache, v_cache, block_table, cache_seqlens, shape.query_len, causal
    )
    return _formula(q, k, v, seen, shape.scale)


def _formula(
    q: mx.array, k: mx.array, v: mx.array, seen: mx.array | None, scale: float
) -> mx.array:
    """``seen`` [B or 1, T, S]: which keys each query sees; None is all."""
    import mlx.core as mx

    B, T, H, D = q.shape
    S, Hkv, Dv = k.shape[1], k.shape[2], v.shape[3]
    grouped = q.transpose(0, 2, 1, 3).reshape(B, Hkv, (H // Hkv) * T, D)
    scores = (grouped @ k.transpose(0, 2, 3, 1)) * scale
    scores = scores.reshape(B, H, T, S)
    if seen is not None:
        scores = mx.where(seen[:, None], scores, mx.array(float("-inf"), dtype=scores.dtype))
    weights = mx.softmax(scores, axis=-1, precise=True)
    if seen is not None:  # a row that sees no key would be NaN
        weights = mx.where(seen[:, None], weights, mx.array(0, dtype=weights.dtype))
    out = weights.reshape(B, Hkv, (H // Hkv) * T, S) @ v.transpose(0, 2, 1, 3)
    return out.reshape(B, H, T, Dv).transpose(0, 2, 1, 3)
