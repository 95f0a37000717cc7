"""Variable lengths and paged caches as masks over rectangles, for jax: shapes stay static."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


def varlen_mask(
    queries: int, keys: int, cu_seqlens_q: jax.Array, cu_seqlens_k: jax.Array, causal: bool
) -> jax.Array:
    """[Tq, Tk]: which keys each query sees. Sequences see nothing of each other."""
    import jax.numpy as jnp

    q, k = jnp.arange(queries), jnp.arange(keys)
    # A row's sequence is the number of sequences that end at or before it.
    of_q = (q[:, None] >= cu_seqlens_q[1:]).sum(-1)
    of_k = (k[:, None] >= cu_seqlens_k[1:]).sum(-1)
    seen = of_q[:, None] == of_k
    if causal:  # aligned at the bottom right: counted from each sequence's end
        last = len(cu_seqlens_q) - 1
        behind_q = cu_seqlens_q[jnp.minimum(of_q + 1, last)] - q
        behind_k = cu_seqlens_k[jnp.minimum(of_k + 1, last)] - k
        seen &= behind_k >= behind_q[:, None]
    return seen


def varlen_values(v: jax.Array, cu_seqlens_k: jax.Array) -> jax.Array:
    """v [Tk, Hkv, Dv], zeros behind the last sequence: NaN may lie there, and 0 x NaN is NaN."""
    import jax.numpy as jnp

    return jnp.where((jnp.arange(v.shape[0]) < cu_seqlens_k[-1])[:, None, None], v, 0)


def gathered(
    k_cache: jax.Array,
    v_cache: jax.Array,
    block_table: jax.Array,
    cache_seqlens: jax.Array,
    query_len: int,
    causal: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """k [B, S, Hkv, D] and v [B, S, Hkv, Dv] of all pages that the tables have room for, and which
    keys each query sees [B, T, S]. Values behind a sequence's end are zeros: 0 x NaN is NaN."""
    import jax.numpy as jnp

    B, width = block_table.shape
    S = width * k_cache.shape[1]
    pages = jnp.clip(block_table, 0, k_cache.shape[0] - 1)
    k = k_cache[pages].reshape(B, S, *k_cache.shape[2:])
    v = v_cache[pages].reshape(B, S, *v_cache.shape[2:])
    places = jnp.arange(S)
    held = places < cache_seqlens[:, None]
    v = jnp.where(held[:, :, None, None], v, 0)
    seen = jnp.broadcast_to(held[:, None], (B, query_len, S))
    if causal:
        last = cache_seqlens[:, None] - query_len + jnp.arange(query_len)
        seen &= places <= last[:, :, None]
    return k, v, seen
