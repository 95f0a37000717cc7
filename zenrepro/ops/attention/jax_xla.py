"""jax.nn.dot_product_attention(implementation="xla"): XLA's own fusion of the formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import jax_dot_product

if TYPE_CHECKING:
    import jax


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, scale: float | None = None
) -> jax.Array:
    """q [B, T, H, D], k and v [B, S, Hkv, D] -> [B, T, H, D] in q's dtype. Raises ValueError."""
    return jax_dot_product.attention("xla", q, k, v, causal=causal, scale=scale)
