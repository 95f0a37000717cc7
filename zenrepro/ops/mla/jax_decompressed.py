"""Decompressed latent attention in plain jax.numpy: each head expands the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import LATENT, ROTARY

if TYPE_CHECKING:
    import jax


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

    The softmax runs in fp32; keys, values, scores and weights are rounded to q's dtype. Raises
    ValueError.
    """
    import jax
    import jax.numpy as jnp

    B, T, S, H, causal, factor = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="jax"
    )
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    c = latent[..., :LATENT]
    nope = jnp.einsum("bsc,hnc->bshn", c, w_uk, precision=precision)
    shared = jnp.broadcast_to(latent[:, :, None, LATENT:], (B, S, H, ROTARY))
    keys = jnp.concatenate((nope, shared), axis=-1)
    values = jnp.einsum("bsc,hvc->bshv", c, w_uv, precision=precision)
    scores = jnp.einsum("bthd,bshd->bhts", q, keys, precision=precision) * factor
    if causal:
        seen = jnp.tril(jnp.ones((T, S), dtype=bool), S - T)
        scores = jnp.where(seen, scores, -jnp.inf)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(q.dtype)
    return jnp.einsum("bhts,bshv->bthv", weights, values, precision=precision)
