"""Absorbed latent attention in jax.numpy, a few pages of every sequence at a time.

The online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over chunks of the block table:
what is gathered stays small enough for a cache, where ``jax_absorbed`` writes every row of the
batch to memory and reads it again. Shapes are those of the table; the loop ends at the longest
length, which is a value. One compiled decode serves every length, and takes the time of the
longest. Not yet run on a GPU or a TPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zenrepro.ops.mla import arguments, jax_cache
from zenrepro.ops.mla.sizes import LATENT, PAGE

if TYPE_CHECKING:
    import jax

HIDDEN = -1e30  # finite, so that the difference of two of them is 0
CHUNK_BYTES = 16 * 2**20  # of rows: a part of the L2 of a data-centre GPU


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

    Sums and the softmax are fp32; rows of an FP8 cache and weights are rounded to q's dtype. While
    jax traces, pages outside the pool and lengths outside the table are clamped to them. Raises
    ValueError.
    """
    import jax
    import jax.numpy as jnp

    shape = arguments.check_decode(
        q, cache, block_table=block_table, cache_seqlens=cache_seqlens, scale=scale, framework="jax"
    )
    B, T, H = shape.batch, shape.query_len, shape.heads
    pages = max(1, min(shape.width, CHUNK_BYTES // (B * PAGE * cache.shape[2])))
    chunk = pages * PAGE
    short = -shape.width % pages  # pages that the last chunk lacks
    table = jnp.pad(jnp.clip(block_table, 0, shape.pages - 1), ((0, 0), (0, short)))
    lengths = jnp.clip(cache_seqlens, 0, shape.width * PAGE)
    # "highest" keeps fp32 products in fp32 where a device would silently use fewer bits.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    seen = (lengths[:, None] - jnp.arange(T - 1, -1, -1))[:, :, None, None]  # [B, T, 1, 1]

    def add(i: Any, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        top, total, summed = state
        own = jax.lax.dynamic_slice_in_dim(table, i * pages, pages, axis=1)
        rows = cache[own].reshape(B, chunk, -1)
        if shape.fp8:
            rows = jax_cache.dequantise(rows, q.dtype)
        place = i * chunk + jnp.arange(chunk)
        # What lies beyond a sequence may be NaN, and 0 x NaN is NaN.
        rows = jnp.where((place < lengths[:, None])[..., None], rows, 0)
        scores = jnp.einsum(
            "bthd,bsd->bths", q, rows, precision=precision, preferred_element_type=jnp.float32
        )
        visible = place < seen
        scores = jnp.where(visible, scores * shape.scale, HIDDEN)
        highest = jnp.maximum(top, scores.max(-1))
        weights = jnp.where(visible, jnp.exp(scores - highest[..., None]), 0.0)
        kept = jnp.exp(top - highest)
        part = jnp.einsum(
            "bths,bsc->bthc", weights.astype(q.dtype), rows[..., :LATENT],
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip
        return highest, kept * total + weights.sum(-1), kept[..., None] * summed + part

    start = (
        jnp.full((B, T, H), HIDDEN, jnp.float32),
        jnp.zeros((B, T, H), jnp.float32),
        jnp.zeros((B, T, H, LATENT), jnp.float32),
    )
    _, total, summed = jax.lax.fori_loop(0, -(-lengths.max() // chunk), add, start)
    # A query that sees no row has a total of 0, and a sum of zeros.
    return (summed / jnp.where(total == 0, 1.0, total)[..., None]).astype(q.dtype)
