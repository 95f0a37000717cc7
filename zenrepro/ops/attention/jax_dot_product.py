"""jax.nn.dot_product_attention by one named implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from zenrepro.ops.attention import arguments
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import jax

Implementation = Literal["xla", "cudnn"]


def attention(
    implementation: Implementation,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    scale: float | None,
) -> jax.Array:
    """[B, T, H, D] in, [B, T, H, Dv] out; Dv = D.

    Raises ValueError for wrong arguments, UnsupportedError where cuDNN refuses them.
    """
    import jax.numpy as jnp

    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="jax")
    if shape.value_dim != shape.head_dim:
        raise ValueError(f"v: wants Dv = {shape.head_dim}, q's D, got {tuple(v.shape)}")
    T, S = shape.query_len, shape.cache_len
    # `is_causal` aligns at the top left: only right for a square. One query sees every key.
    square = causal and T == S and T > 1
    seen = None
    if causal and not square and T > 1:
        seen = jnp.tril(jnp.ones((T, S), dtype=bool), S - T)[None]
    return by_mask(implementation, q, k, v, seen, shape.scale, square=square)


def by_mask(
    implementation: Implementation,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array | None,
    scale: float,
    *,
    square: bool = False,
) -> jax.Array:
    """With ``seen`` [B or 1, T, S], which keys each query sees, or the library's own causal mask of
    a square. Raises UnsupportedError where cuDNN refuses."""
    import jax

    mask = None if seen is None else seen[:, None]
    # Raised while tracing, before anything is launched: cuDNN is missing or refuses the shape.
    kinds = (NotImplementedError, RuntimeError) if implementation == "cudnn" else ()
    with refusals(*kinds):
        out: jax.Array = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=square, scale=scale, implementation=implementation
        )
    return out
