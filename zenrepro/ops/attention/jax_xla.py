"""jax.nn.dot_product_attention(implementation="xla"): XLA's own fusion of the formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments, jax_dot_product, jax_layouts

if TYPE_CHECKING:
    import jax


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, scale: float | None = None
) -> jax.Array:
    """q [B, T, H, D], k and v [B, S, Hkv, D] -> [B, T, H, D] in q's dtype. Raises ValueError."""
    return jax_dot_product.attention("xla", q, k, v, causal=causal, scale=scale)


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
    """q [Tq, H, D], k and v [Tk, Hkv, D], offsets int32 [B + 1] -> [Tq, H, D].

    All rows against all, other sequences masked (a NaN among one's values reaches all). Queries
    that see no key give zeros. Raises ValueError.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, framework="jax",
    )  # fmt: skip
    seen = jax_layouts.varlen_mask(shape.queries, shape.keys, cu_seqlens_q, cu_seqlens_k, causal)
    v = jax_layouts.varlen_values(v, cu_seqlens_k)
    return _masked(q[None], k[None], v[None], seen[None], shape.scale)[0]


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
    """q [B, T, H, D], caches [P, page, Hkv, D], block_table int32 [B, pages], cache_seqlens int32
    [B] -> [B, T, H, D].

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
    return _masked(q, k, v, seen, shape.scale)


def _masked(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, scale: float) -> jax.Array:
    import jax.numpy as jnp

    out = jax_dot_product.by_mask("xla", q, k, v, seen, scale)
    # The library averages all values where a row sees none.
    return jnp.where(seen.any(-1)[..., None, None], out, 0)
