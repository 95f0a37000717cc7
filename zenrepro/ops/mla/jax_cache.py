"""The latent cache's pool as a jax array of fixed shape: writing rows, the FP8 format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zenrepro.ops.mla.cache import LARGEST
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, GROUP, LATENT, PAGE, ROTARY, ROW, SCALES

if TYPE_CHECKING:
    import jax


def allocate(pages: int, *, dtype: Any = None) -> jax.Array:
    """A pool of ``pages`` pages of 64 zeroed rows: [P, 64, 576] in ``dtype``, or the FP8 format's
    uint8 [P, 64, 656] without one. Raises ValueError for fewer than one page."""
    import jax.numpy as jnp

    if pages < 1:
        raise ValueError(f"pages: wants at least one, got {pages}")
    width = FP8_ROW_BYTES if dtype is None else ROW
    return row_major(jnp.zeros((pages, PAGE, width), dtype or jnp.uint8))


def row_major(cache: jax.Array) -> jax.Array:
    """The cache with its rows one after the other in memory, which jit then keeps to.

    A TPU's tiles pad rows of 576 to 640. Of a large pool XLA would rather lay the pages innermost,
    where they need less padding; a kernel that reads pages would then copy the whole pool first, in
    every step (counted by compiling for a v5e: tests/tpu).
    """
    import jax
    from jax.experimental.layout import Format, Layout

    return jax.device_put(cache, Format(Layout(major_to_minor=(0, 1, 2)), cache.sharding))


def append(cache: jax.Array, rows: jax.Array, slots: jax.Array) -> jax.Array:
    """The cache [P, 64, 576 or 656] with rows [N, 576] at slots int32 [N] (page * 64 + row).

    Quantises where the cache is FP8. A slot outside the cache writes nothing, so that a step of
    fixed shape may leave some of its rows out. To write in place, jit it with the cache donated and
    ``out_shardings=cache.format``, which keeps the pool ``row_major``. Raises ValueError.
    """
    import jax.numpy as jnp

    if rows.ndim != 2 or rows.shape[1] != ROW:
        raise ValueError(f"rows: wants [N, {ROW}], got {tuple(rows.shape)}")
    if tuple(slots.shape) != (rows.shape[0],) or slots.dtype != jnp.int32:
        raise ValueError(
            f"slots: wants int32 [{rows.shape[0]}], one a row, got {slots.dtype} "
            f"{tuple(slots.shape)}"
        )
    fp8 = cache.dtype == jnp.uint8
    if tuple(cache.shape[1:]) != (PAGE, FP8_ROW_BYTES if fp8 else ROW):
        raise ValueError(
            f"cache: wants [P, {PAGE}, {FP8_ROW_BYTES if fp8 else ROW}], got {tuple(cache.shape)}"
        )
    if not fp8 and rows.dtype != cache.dtype:
        raise ValueError(f"rows: wants the cache's dtype {cache.dtype}, got {rows.dtype}")
    pages, _, width = cache.shape
    written = quantise(rows) if fp8 else rows
    kept = jnp.where(slots < 0, pages * PAGE, slots)  # a negative index would count from the end
    flat = cache.reshape(pages * PAGE, width).at[kept].set(written, mode="drop")
    return flat.reshape(pages, PAGE, width)


def quantise(rows: jax.Array) -> jax.Array:
    """Rows [..., 576] -> uint8 [..., 656], as ``cache.quantise`` but for the last bit of a scale,
    where XLA divides by multiplying with the reciprocal."""
    import jax
    import jax.numpy as jnp

    lead = rows.shape[:-1]
    groups = rows[..., :LATENT].astype(jnp.float32).reshape(*lead, SCALES, GROUP)
    scales = jnp.abs(groups).max(-1) / jnp.float32(LARGEST)
    scales = jnp.where(scales > 0, scales, jnp.float32(1))
    codes = jnp.clip(groups / scales[..., None], -LARGEST, LARGEST).astype(jnp.float8_e4m3fn)
    as_bytes = jax.lax.bitcast_convert_type
    parts = (
        as_bytes(codes, jnp.uint8).reshape(*lead, LATENT),
        as_bytes(scales, jnp.uint8).reshape(*lead, 4 * SCALES),
        as_bytes(rows[..., LATENT:].astype(jnp.bfloat16), jnp.uint8).reshape(*lead, 2 * ROTARY),
    )
    return jnp.concatenate(parts, axis=-1)


def dequantise(packed: jax.Array, dtype: Any) -> jax.Array:
    """uint8 [..., 656] -> rows [..., 576], products in fp32 and rounded to ``dtype`` once."""
    import jax
    import jax.numpy as jnp

    lead, middle = packed.shape[:-1], LATENT + 4 * SCALES
    as_type = jax.lax.bitcast_convert_type
    values = as_type(packed[..., :LATENT], jnp.float8_e4m3fn).astype(jnp.float32)
    scales = as_type(packed[..., LATENT:middle].reshape(*lead, SCALES, 4), jnp.float32)
    rotary = as_type(packed[..., middle:].reshape(*lead, ROTARY, 2), jnp.bfloat16)
    latent = values.reshape(*lead, SCALES, GROUP) * scales[..., None]
    return jnp.concatenate(
        (latent.reshape(*lead, LATENT).astype(dtype), rotary.astype(dtype)), axis=-1
    )
