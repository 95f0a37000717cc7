"""Attention in plain jax.numpy as the formula; XLA may fuse what it likes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments, jax_layouts

if TYPE_CHECKING:
    import jax


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, scale: float | None = None
) -> jax.Array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Scores are rounded to q's dtype, the softmax runs in fp32. Raises ValueError.
    """
    import jax.numpy as jnp

    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="jax")
    T, S = shape.query_len, shape.cache_len
    seen = jnp.tril(jnp.ones((T, S), dtype=bool), S - T)[None] if causal else None
    return _formula(q, k, v, seen, shape.scale)


def attention_varlen(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    cu_seqlens_q: jax.Array,
    cu_seqlens_k: jax.Array,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None = None,
) -> jax.Array:
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv], offsets int32 [B + 1] -> [Tq, H, Dv].

    All rows against all, other sequences masked (a NaN among one's values reaches all). Queries
    that see no key give zeros. Raises ValueError.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, framework="jax",
    )  # fmt: skip
    seen = jax_layouts.varlen_mask(shape.queries, shape.keys, cu_seqlens_q, cu_seqlens_k, causal)
    v = jax_layouts.varlen_values(v, cu_seqlens_k)
    return _formula(q[None], k[None], v[None], seen[None], shape.scale)[0]


def attention_paged(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    *,
    block_table: jax.Array,
    cache_seqlens: jax.Array,
    causal: bool,
    scale: float | None = None,
) -> jax.Array:
    """q [B, T, H, D], caches [P, page, Hkv, D or Dv], block_table int32 [B, pages], cache_seqlens
    int32 [B] -> [B, T, H, Dv].

    The pages are copied next to each other first. Queries that see no key give zeros. Raises
    ValueError.
    """
    shape = arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale, framework="jax",
    )  # fmt: skip
    k, v, seen = jax_layouts.gathered(
        k_cache, v_cache, block_table, cache_seqlens, shape.query_len, causal
    )
    return _formula(q, k, v, seen, shape.scale)


def _formula(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None, scale: float
) -> jax.Array:
    """``seen`` [B or 1, T, S]: which keys each query sees; None is all."""
    import jax
    import jax.numpy as jnp

    B, T, H, D = q.shape
    Hkv, Dv = k.shape[2], v.shape[3]
    grouped = q.reshape(B, T, Hkv, H // Hkv, D)
    # "highest" keeps fp32 products in fp32 where a device would silently use fewer bits.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, precision=precision) * scale
    if seen is not None:
        seen = seen[:, None, None]
        scores = jnp.where(seen, scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    if seen is not None:  # a row that sees no key would be NaN
        weights = jnp.where(seen, weights, 0)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v, precision=precision)
    return out.reshape(B, T, H, Dv)
