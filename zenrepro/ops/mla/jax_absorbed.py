"""Absorbed latent attention in plain jax.numpy.

All shapes are those of the pool and the block table; lengths are values. One compiled decode
serves every length that the table has room for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla import arguments, jax_cache
from zenrepro.ops.mla.sizes import LATENT, NOPE, PAGE, ROW

if TYPE_CHECKING:
    import jax


def decode(
    q: jax.Array,
    cache: jax.Array,
    *,
    block_table: jax.Array,
    cache_seqlens: jax.Array,
    scale: float | None = None,
) -> jax.Array:
    """q [B, T, H, 576], cache [P, 64, 576] or uint8 [P, 64, 656], block_table int32 [B, pages],
    cache_seqlens int32 [B] -> [B, T, H, 512] in q's dtype.

    The softmax runs in fp32; rows of an FP8 cache, scores and weights are rounded to q's dtype.
    While jax traces, pages outside the pool are clamped to it. Raises ValueError.
    """
    import jax
    import jax.numpy as jnp

    shape = arguments.check_decode(
        q, cache, block_table=block_table, cache_seqlens=cache_seqlens, scale=scale, framework="jax"
    )
    T, length = shape.query_len, shape.width * PAGE
    rows = cache[jnp.clip(block_table, 0, shape.pages - 1)].reshape(shape.batch, length, -1)
    if shape.fp8:
        rows = jax_cache.dequantise(rows, q.dtype)
    place = jnp.arange(length)
    # What lies beyond a sequence may be NaN, and 0 x NaN is NaN.
    rows = jnp.where((place < cache_seqlens[:, None])[..., None], rows, 0)
    # "highest" keeps fp32 products in fp32 where a device would silently use fewer bits.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    scores = jnp.einsum("bthd,bsd->bths", q, rows, precision=precision) * shape.scale
    seen = cache_seqlens[:, None] - jnp.arange(T - 1, -1, -1)  # rows that query t sees
    visible = (place < seen[..., None])[:, :, None]
    scores = jnp.where(visible, scores.astype(jnp.float32), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = jnp.where(visible, weights, 0).astype(q.dtype)  # a query that sees no row: zeros
    return jnp.einsum("bths,bsc->bthc", weights, rows[..., :LATENT], precision=precision)


def prefill(
    q: jax.Array,
    latent: jax.Array,
    w_uk: jax.Array,
    w_uv: jax.Array,
    *,
    causal: bool,
    scale: float | None = None,
) -> jax.Array:
    """q [B, T, H, 192], latent [B, S, 576], w_uk and w_uv [H, 128, 512] -> [B, T, H, 128].

    The softmax runs in fp32; every intermediate is rounded to q's dtype. Raises ValueError.
    """
    import jax
    import jax.numpy as jnp

    _, T, S, _, causal, factor = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="jax"
    )
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    nope = jnp.einsum("bthn,hnc->bthc", q[..., :NOPE], w_uk, precision=precision)
    absorbed = jnp.concatenate((nope, q[..., NOPE:]), axis=-1)
    assert absorbed.shape[-1] == ROW
    scores = jnp.einsum("bthd,bsd->bhts", absorbed, latent, precision=precision) * factor
    if causal:
        seen = jnp.tril(jnp.ones((T, S), dtype=bool), S - T)
        scores = jnp.where(seen, scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    out = jnp.einsum("bhts,bsc->bthc", weights, latent[..., :LATENT], precision=precision)
    return jnp.einsum("bthc,hvc->bthv", out, w_uv, precision=precision)
