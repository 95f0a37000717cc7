"""What every implementation of latent attention checks before it launches anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zenrepro.ops import arrays
from zenrepro.ops.mla.sizes import (
    FP8_ROW_BYTES,
    LATENT,
    MOST_HEADS,
    MOST_QUERIES,
    NOPE,
    PAGE,
    QUERY,
    ROW,
    SCALE,
    VALUE,
)

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Decode(NamedTuple):
    """Sizes of a decode call: ``pages`` of the pool, ``width`` of a block table's row in pages."""

    batch: int
    query_len: int
    heads: int
    pages: int
    width: int
    fp8: bool
    scale: float


class Prefill(NamedTuple):
    """Sizes of a prefill call; query t sees cache_len - query_len + t + 1 rows when causal."""

    batch: int
    query_len: int
    cache_len: int
    heads: int
    causal: bool
    scale: float


def check_decode(
    q: Any,
    cache: Any,
    *,
    block_table: Any,
    cache_seqlens: Any,
    scale: float | None = None,
    contiguous: Sequence[str] = (),
    framework: str | None = None,
) -> Decode:
    """Return the sizes of q [B, T, H, 576], cache [P, 64, 576] in q's dtype or uint8 [P, 64, 656],
    block_table int32 [B, pages], cache_seqlens int32 [B].

    Takes arrays of any framework. ``contiguous`` names arguments that the caller wants without
    gaps, ``framework`` whose arrays are taken (None: any). Lengths and page indices are read on
    the host, which waits for the device, except while a CUDA graph is captured or jax traces.
    Entries of a block table beyond its sequence's last page may hold anything. Raises ValueError
    naming the argument, what came and what is wanted.
    """
    _array("q", q, ("B", "T", "H", str(ROW)), FLOATS)
    _array("cache", cache, ("P", str(PAGE), f"{ROW} or {FP8_ROW_BYTES}"), (*FLOATS, "uint8"))
    _array("block_table", block_table, ("B", "pages"), ("int32",))
    _array("cache_seqlens", cache_seqlens, ("B",), ("int32",))
    batch, query_len, heads, width = tuple(q.shape)
    _heads(heads)
    if width != ROW:
        raise ValueError(f"q: wants width {ROW}, latent and rotary part, got {width}")
    if query_len > MOST_QUERIES:
        raise ValueError(f"q: wants T from 1 to {MOST_QUERIES} query tokens, got {query_len}")
    fp8 = dtype_name(cache) == "uint8"
    wanted = FP8_ROW_BYTES if fp8 else ROW
    if tuple(cache.shape[1:]) != (PAGE, wanted):
        raise ValueError(
            f"cache: wants [P, {PAGE}, {wanted}] in {dtype_name(cache)}, got {tuple(cache.shape)}"
        )
    if not fp8 and cache.dtype != q.dtype:
        raise ValueError(f"cache: wants q's dtype {q.dtype} or uint8, got {cache.dtype}")
    for name, array in (("block_table", block_table), ("cache_seqlens", cache_seqlens)):
        if array.shape[0] != batch:
            raise ValueError(f"{name}: wants B = {batch} as q has, got {tuple(array.shape)}")
    given = {
        "q": q, "cache": cache, "block_table": block_table, "cache_seqlens": cache_seqlens
    }  # fmt: skip
    arrays.check_framework(framework, **given)
    _together(given, contiguous)
    shape = Decode(
        batch,
        query_len,
        heads,
        cache.shape[0],
        block_table.shape[1],
        fp8,
        arrays.scale(scale, SCALE),
    )
    _indices(shape, block_table, cache_seqlens)
    return shape


def check_prefill(
    q: Any,
    latent: Any,
    w_uk: Any,
    w_uv: Any,
    *,
    causal: bool,
    scale: float | None = None,
    contiguous: Sequence[str] = (),
    framework: str | None = None,
) -> Prefill:
    """Return the sizes of q [B, T, H, 192], latent [B, S, 576], w_uk and w_uv [H, 128, 512].

    Takes arrays of any framework. ``contiguous`` names arguments that the caller wants without
    gaps, ``framework`` whose arrays are taken (None: any). Raises ValueError naming the argument,
    what came and what is wanted.
    """
    _array("q", q, ("B", "T", "H", str(QUERY)), FLOATS)
    _array("latent", latent, ("B", "S", str(ROW)), FLOATS)
    _array("w_uk", w_uk, ("H", str(NOPE), str(LATENT)), FLOATS)
    _array("w_uv", w_uv, ("H", str(VALUE), str(LATENT)), FLOATS)
    batch, query_len, heads, width = tuple(q.shape)
    cache_len = latent.shape[1]
    _heads(heads)
    if width != QUERY:
        raise ValueError(f"q: wants width {QUERY}, {NOPE} and the rotary part, got {width}")
    if tuple(latent.shape) != (batch, cache_len, ROW):
        raise ValueError(
            f"latent: wants B = {batch} as q has and width {ROW}, got {tuple(latent.shape)}"
        )
    for name, array, rows in (("w_uk", w_uk, NOPE), ("w_uv", w_uv, VALUE)):
        if tuple(array.shape) != (heads, rows, LATENT):
            raise ValueError(
                f"{name}: wants [H, {rows}, {LATENT}] with q's H = {heads}, "
                f"got {tuple(array.shape)}"
            )
    given = {"q": q, "latent": latent, "w_uk": w_uk, "w_uv": w_uv}
    for name, array in given.items():
        if array.dtype != q.dtype:
            raise ValueError(f"{name}: wants q's dtype {q.dtype}, got {array.dtype}")
    arrays.check_framework(framework, **given)
    _together(given, contiguous)
    if not isinstance(causal, bool):
        raise ValueError(f"causal: wants True or False, got {causal!r}")
    if causal and query_len > cache_len:
        raise ValueError(
            f"q: wants at most as many queries as latent rows ({cache_len}) when causal, "
            f"got {query_len}"
        )
    return Prefill(batch, query_len, cache_len, heads, causal, arrays.scale(scale, SCALE))


def dtype_name(array: Any) -> str:
    """The array's dtype without its framework: "bfloat16", "uint8", ..."""
    return str(array.dtype).rpartition(".")[2]


def values(array: Any) -> np.ndarray | None:
    """A small array of whole numbers on the host; None where it has no values to read yet: while
    a CUDA graph is captured (reading would end the capture) and while jax traces."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(array, torch.Tensor):
        if array.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        return np.asarray(array.detach().cpu().numpy())
    if jax is not None and isinstance(array, jax.core.Tracer):
        return None
    return np.array(array)


def _array(name: str, array: Any, dims: tuple[str, ...], dtypes: tuple[str, ...]) -> None:
    wanted = f"[{', '.join(dims)}]"
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"{name}: wants an array {wanted}, got {type(array).__name__}")
    if len(array.shape) != len(dims):
        count = f"{len(dims)} dimension{'s' if len(dims) > 1 else ''}"
        raise ValueError(f"{name}: wants {count} {wanted}, got {tuple(array.shape)}")
    if 0 in tuple(array.shape):
        raise ValueError(f"{name}: wants no empty dimension, got {tuple(array.shape)}")
    if dtype_name(array) not in dtypes:
        raise ValueError(f"{name}: wants {' or '.join(dtypes)}, got {array.dtype}")


def _heads(heads: int) -> None:
    if heads > MOST_HEADS:
        raise ValueError(f"q: wants at most {MOST_HEADS} heads, got {heads}")


def _together(given: dict[str, Any], contiguous: Sequence[str]) -> None:
    """One device for all; no gaps in those that want none."""
    q = given["q"]
    for name, array in given.items():
        there, wanted = getattr(array, "device", None), getattr(q, "device", None)
        if there is not None and wanted is not None and there != wanted:  # a tracer has none
            raise ValueError(f"{name}: wants q's device {wanted}, got {there}")
        if name in contiguous and hasattr(array, "is_contiguous") and not array.is_contiguous():
            raise ValueError(
                f"{name}: wants a contiguous array, got shape {tuple(array.shape)} with strides "
                f"{tuple(array.stride())}"
            )


def _indices(shape: Decode, block_table: Any, cache_seqlens: Any) -> None:
    """Lengths that fit the table's rows, and pages that the pool has, where they can be read."""
    table, lengths = values(block_table), values(cache_seqlens)
    if table is None or lengths is None:
        return
    most = shape.width * PAGE
    for b in np.flatnonzero((lengths < 0) | (lengths > most))[:1]:
        raise ValueError(
            f"cache_seqlens: wants lengths from 0 to {most}, {shape.width} pages of {PAGE}, "
            f"got {lengths[b]} for sequence {b}"
        )
    used = np.arange(shape.width) * PAGE < lengths[:, None]
    for b, page in np.argwhere(used & ((table < 0) | (table >= shape.pages)))[:1]:
        raise ValueError(
            f"block_table: wants pages from 0 to {shape.pages - 1}, got {table[b, page]} for page "
            f"{page} of sequence {b}"
        )
