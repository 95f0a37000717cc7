"""jax.nn.dot_product_attention(implementation="cudnn"): cuDNN's fused kernel, on NVIDIA.

Values narrower than keys (latent attention's 192/128) are served by cuDNN 9.10 on Hopper; the
public function wants equal widths, so that case calls the one behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments, jax_dot_product
from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import jax


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, scale: float | None = None
) -> jax.Array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Raises ValueError; UnsupportedError where cuDNN refuses.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="jax")
    if shape.value_dim == shape.head_dim:
        return jax_dot_product.attention("cudnn", q, k, v, causal=causal, scale=scale)
    return _unequal(q, k, v, shape, causal)


def _unequal(
    q: jax.Array, k: jax.Array, v: jax.Array, shape: arguments.Shape, causal: bool
) -> jax.Array:
    import jax.numpy as jnp

    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn
    except ImportError as error:
        raise UnsupportedError("this jax has no cuDNN attention of unequal widths") from error
    T, S = shape.query_len, shape.cache_len
    square = causal and T == S
    mask = None
    if causal and not square and T > 1:  # cuDNN aligns at the top left: only right for a square
        mask = jnp.tril(jnp.ones((T, S), dtype=bool), S - T)[None, None]
    kind = cudnn.MaskType.CAUSAL if square else cudnn.MaskType.NO_MASK
    with refusals(NotImplementedError, RuntimeError):  # raised while tracing
        out: jax.Array = cudnn.dot_product_attention(
            q, k, v, None, mask, scale=shape.scale, mask_type=kind
        )
    return out
