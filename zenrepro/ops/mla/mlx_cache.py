"""The latent cache's pool as an mlx array: writing rows, the FP8 format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.cache import LARGEST
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, GROUP, LATENT, PAGE, ROW, SCALES

if TYPE_CHECKING:
    import mlx.core as mx


def allocate(pages: int, *, dtype: Any = None) -> mx.array:
    """A pool of ``pages`` pages of 64 zeroed rows: [P, 64, 576] in ``dtype``, or the FP8 format's
    uint8 [P, 64, 656] without one. Raises ValueError for fewer than one page."""
    import mlx.core as mx

    if pages < 1:
        raise ValueError(f"pages: wants at least one, got {pages}")
    width = FP8_ROW_BYTES if dtype is None else ROW
    return mx.zeros((pages, PAGE, width), dtype or mx.uint8)


def append(cache: mx.array, rows: mx.array, slots: mx.array) -> mx.array:
    """The cache [P, 64, 576 or 656] with rows [N, 576] at slots int32 [N] (page * 64 + row).

    Quantises where the cache is FP8. Slots must differ. Raises ValueError.
    """
    import mlx.core as mx

    if rows.ndim != 2 or rows.shape[1] != ROW:
        raise ValueError(f"rows: wants [N, {ROW}], got {tuple(rows.shape)}")
    if tuple(slots.shape) != (rows.shape[0],) or slots.dtype != mx.int32:
        raise ValueError(
            f"slots: wants int32 [{rows.shape[0]}], one a row, got {slots.dtype} "
            f"{tuple(slots.shape)}"
        )
    fp8 = cache.dtype == mx.uint8
    if tuple(cache.shape[1:]) != (PAGE, FP8_ROW_BYTES if fp8 else ROW):
        raise ValueError(
            f"cache: wants [P, {PAGE}, {FP8_ROW_BYTES if fp8 else ROW}], got {tuple(cache.shape)}"
        )
    if not fp8 and rows.dtype != cache.dtype:
        raise ValueError(f"rows: wants the cache's dtype {cache.dtype}, got {rows.dtype}")
    pages, _, width = cache.shape
    known = arguments.values(slots)
    assert known is not None
    for slot in known[(known < 0) | (known >= pages * PAGE)][:1]:
        raise ValueError(f"slots: wants 0 to {pages * PAGE - 1}, got {slot}")
    flat = cache.reshape(pages * PAGE, width)
    flat[slots] = quantise(rows) if fp8 else rows
    return flat.reshape(pages, PAGE, width)


def quantise(rows: mx.array) -> mx.array:
    """Rows [..., 576] -> uint8 [..., 656], as ``cache.quantise``."""
    import mlx.core as mx

    lead = rows.shape[:-1]
    groups = rows[..., :LATENT].astype(mx.float32).reshape(*lead, SCALES, GROUP)
    scales = mx.abs(groups).max(-1) / LARGEST
    scales = mx.where(scales > 0, scales, mx.ones_like(scales))
    codes = mx.to_fp8(mx.clip(groups / scales[..., None], -LARGEST, LARGEST))
    parts = [
        codes.reshape(*lead, LATENT),
        scales.view(mx.uint8),
        mx.contiguous(rows[..., LATENT:].astype(mx.bfloat16)).view(mx.uint8),
    ]
    return mx.concatenate(parts, axis=-1)


def dequantise(packed: mx.array, dtype: Any) -> mx.array:
    """uint8 [..., 656] -> rows [..., 576], products in fp32 and rounded to ``dtype`` once."""
    import mlx.core as mx

    lead, middle = packed.shape[:-1], LATENT + 4 * SCALES
    values = mx.from_fp8(packed[..., :LATENT], mx.float32).reshape(*lead, SCALES, GROUP)
    scales = mx.contiguous(packed[..., LATENT:middle]).view(mx.float32)
    rotary = mx.contiguous(packed[..., middle:]).view(mx.bfloat16)
    latent = (values * scales[..., None]).reshape(*lead, LATENT)
    return mx.concatenate([latent.astype(dtype), rotary.astype(dtype)], axis=-1)
