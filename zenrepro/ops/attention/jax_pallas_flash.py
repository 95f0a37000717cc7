"""The FlashAttention of JAX's own Pallas library for TPUs ("splash attention").

It walks only the tiles that its mask leaves, shares keys between heads and takes values of another
width. Lengths are padded to whole tiles here, and queries scaled, since it takes no scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops import arrays
from zenrepro.ops.attention import arguments

if TYPE_CHECKING:
    import jax

LANES = 128
TILE = 512  # queries and keys of a tile, or the whole length where it is shorter


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    scale: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Sums and the softmax are fp32; scaled queries are rounded to q's dtype. ``interpret`` runs the
    kernel without a TPU, for tests. Raises ValueError.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="jax")
    if not interpret:
        arrays.check_accelerator(q=q)
    T, S = shape.query_len, shape.cache_len
    rows, keys = _tile(T), _tile(S)
    padded = (-(-T // rows) * rows, -(-S // keys) * keys)
    # Rows added at the end see more keys than there are and are dropped; no other row sees an added
    # key when causal. Otherwise segments keep them apart.
    mask = masks.CausalMask(padded, S - T) if causal else masks.FullMask(padded)
    segments = None
    if not causal and padded[1] != S:
        added = (jnp.arange(padded[1]) >= S).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.zeros(padded[0], jnp.int32), kv=added)
    kernel = splash.make_splash_mha_single_device(
        mask=masks.MultiHeadMask([mask] * shape.heads),
        block_sizes=splash.BlockSizes(block_q=rows, block_kv=keys, block_kv_compute=keys),
        interpret=interpret,
    )

    def one(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out: jax.Array = kernel(q, k, v, segments)
        return out

    scaled = (q.astype(jnp.float32) * shape.scale).astype(q.dtype)
    heads_first = (
        _padded(scaled, padded[0]), _padded(k, padded[1]), _padded(v, padded[1])
    )  # fmt: skip
    out = jax.vmap(one)(*(array.transpose(0, 2, 1, 3) for array in heads_first))
    return out[:, :, :T].transpose(0, 2, 1, 3)


def _tile(length: int) -> int:
    """A multiple of the 128 lanes, at most ``TILE``."""
    return min(TILE, -(-length // LANES) * LANES)


def _padded(array: jax.Array, length: int) -> jax.Array:
    import jax.numpy as jnp

    return jnp.pad(array, ((0, 0), (0, length - array.shape[1]), (0, 0), (0, 0)))
