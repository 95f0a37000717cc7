"""Attention in plain jax.numpy as the formula; XLA may fuse what it likes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments

if TYPE_CHECKING:
    import jax


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, scale: float | None = None
) -> jax.Array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Scores are rounded to q's dtype, the softmax runs in fp32. Raises ValueError.
    """
    import jax
    import jax.numpy as jnp

    B, T, S, H, Hkv, D, Dv, factor = arguments.check(q, k, v, causal=causal, scale=scale)
    grouped = q.reshape(B, T, Hkv, H // Hkv, D)
    # "highest" keeps fp32 products in fp32 where a device would silently use fewer bits.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, precision=precision) * factor
    if causal:
        seen = jnp.tril(jnp.ones((T, S), dtype=bool), S - T)
        scores = jnp.where(seen, scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v, precision=precision)
    return out.reshape(B, T, H, Dv)
