"""What every attention implementation checks before it launches anything.

``check``, ``check_varlen`` and ``check_paged`` take arrays of any framework, look at shapes,
dtypes and devices, and at the values of small index arrays: reading those waits for the device, so
it is left out while a CUDA graph is captured and while a function is traced. Kernels clamp lengths
and page indices for themselves, so that even then nothing outside the arrays is touched.

``check_served`` and ``check_strides`` are for implementations that take less than everything.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenrepro.ops import arrays

# A format's name in the frameworks, as the end of what str(dtype) gives.
_DTYPES = {
    "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64",
    "fp8_e4m3": "float8_e4m3fn",
}  # fmt: skip
FORMATS = ("fp16", "bf16", "fp32", "fp64")


class Shape(NamedTuple):
    """Sizes of one call, and the scale that it uses."""

    batch: int
    query_len: int
    cache_len: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float


class VarlenShape(NamedTuple):
    """Sizes of one call over sequences of several lengths, one after the other."""

    batch: int
    queries: int  # rows of q, of all sequences
    keys: int  # rows of k and v
    max_query_len: int
    max_cache_len: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float


class PagedShape(NamedTuple):
    """Sizes of one call over a paged cache."""

    batch: int
    query_len: int
    pages: int  # of the cache
    page_size: int
    table_width: int  # pages that a sequence can have
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float


def check(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool,
    scale: float | None = None,
    formats: tuple[str, ...] = FORMATS,
    framework: str | None = None,
) -> Shape:
    """Return the sizes of q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv].

    ``formats`` are the dtypes taken, ``framework`` whose arrays (None: any). Raises ValueError
    naming the argument, what came and what is wanted.
    """
    wanted = {"q": (q, "[B, T, H, D]"), "k": (k, "[B, S, Hkv, D]"), "v": (v, "[B, S, Hkv, Dv]")}
    for name, (array, axes) in wanted.items():
        _check_array(name, array, axes, q, formats, framework)
        if 0 in tuple(array.shape):
            raise ValueError(f"{name}: wants no empty dimension, got {tuple(array.shape)}")
    batch, query_len, heads, head_dim = tuple(q.shape)
    cache_len, kv_heads, value_dim = k.shape[1], k.shape[2], v.shape[3]
    if tuple(k.shape) != (batch, cache_len, kv_heads, head_dim):
        raise ValueError(f"k: wants B = {batch} and D = {head_dim} as q has, got {tuple(k.shape)}")
    if tuple(v.shape) != (batch, cache_len, kv_heads, value_dim):
        raise ValueError(
            f"v: wants B = {batch}, S = {cache_len}, Hkv = {kv_heads} as k has, "
            f"got {tuple(v.shape)}"
        )
    _check_heads("k", heads, kv_heads)
    _check_causal(causal)
    if causal and query_len > cache_len:
        raise ValueError(
            f"q: wants at most as many queries as keys ({cache_len}) when causal, got {query_len}"
        )
    return Shape(
        batch,
        query_len,
        cache_len,
        heads,
        kv_heads,
        head_dim,
        value_dim,
        arrays.scale(scale, head_dim**-0.5),
    )


def check_varlen(
    q: Any,
    k: Any,
    v: Any,
    *,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None = None,
    formats: tuple[str, ...] = FORMATS,
    framework: str | None = None,
) -> VarlenShape:
    """Return the sizes of q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv] with int32 [B + 1] offsets.

    Sequence b has the rows cu_seqlens[b] to cu_seqlens[b + 1]; it may be empty, and may have more
    queries than keys. Every row of q belongs to a sequence; k and v may have rows behind the last.
    Raises ValueError as ``check``, and for offsets that do not start at 0, decrease, end elsewhere
    than that, or hold a sequence longer than ``max_seqlen``.
    """
    wanted = {"q": (q, "[Tq, H, D]"), "k": (k, "[Tk, Hkv, D]"), "v": (v, "[Tk, Hkv, Dv]")}
    for name, (array, axes) in wanted.items():
        _check_array(name, array, axes, q, formats, framework)
        if 0 in tuple(array.shape)[1:]:
            raise ValueError(f"{name}: wants no empty dimension but rows, got {tuple(array.shape)}")
    queries, heads, head_dim = tuple(q.shape)
    keys, kv_heads, value_dim = k.shape[0], k.shape[1], v.shape[2]
    if k.shape[2] != head_dim:
        raise ValueError(f"k: wants D = {head_dim} as q has, got {tuple(k.shape)}")
    if tuple(v.shape) != (keys, kv_heads, value_dim):
        raise ValueError(f"v: wants Tk = {keys}, Hkv = {kv_heads} as k has, got {tuple(v.shape)}")
    _check_heads("k", heads, kv_heads)
    _check_causal(causal)
    offsets = {"cu_seqlens_q": (cu_seqlens_q, queries), "cu_seqlens_k": (cu_seqlens_k, keys)}
    for name, (array, _) in offsets.items():
        _check_indices(name, array, "[B + 1]", 1, q, framework)
        if array.shape[0] < 2:
            raise ValueError(f"{name}: wants [B + 1] offsets, got {tuple(array.shape)}")
    batch = cu_seqlens_q.shape[0] - 1
    if cu_seqlens_k.shape[0] != batch + 1:
        raise ValueError(
            f"cu_seqlens_k: wants {batch + 1} offsets as cu_seqlens_q has, "
            f"got {cu_seqlens_k.shape[0]}"
        )
    longest = {"cu_seqlens_q": max_seqlen_q, "cu_seqlens_k": max_seqlen_k}
    for name, length in longest.items():
        _check_length(name.replace("cu_seqlens", "max_seqlen"), length)
    _check_offsets("cu_seqlens_q", cu_seqlens_q, queries, max_seqlen_q, every_row=True)
    # Self-attention passes the same offsets twice: read once.
    same = cu_seqlens_k is cu_seqlens_q and keys >= queries and max_seqlen_k >= max_seqlen_q
    if not same:
        _check_offsets("cu_seqlens_k", cu_seqlens_k, keys, max_seqlen_k, every_row=False)
    return VarlenShape(
        batch, queries, keys, int(max_seqlen_q), int(max_seqlen_k), heads, kv_heads, head_dim,
        value_dim, arrays.scale(scale, head_dim**-0.5),
    )  # fmt: skip


def check_paged(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    block_table: Any,
    cache_seqlens: Any,
    causal: bool,
    scale: float | None = None,
    formats: tuple[str, ...] = FORMATS,
    framework: str | None = None,
) -> PagedShape:
    """Return the sizes of q [B, T, H, D], k_cache [P, page, Hkv, D], v_cache [P, page, Hkv, Dv]
    with block_table int32 [B, pages] and cache_seqlens int32 [B].

    Raises ValueError as ``check``, and for lengths that are negative or beyond the table, and page
    indices that the cache does not have (entries behind a sequence's last page are not looked at).
    """
    wanted = {
        "q": (q, "[B, T, H, D]"), "k_cache": (k_cache, "[P, page, Hkv, D]"),
        "v_cache": (v_cache, "[P, page, Hkv, Dv]"),
    }  # fmt: skip
    for name, (array, axes) in wanted.items():
        _check_array(name, array, axes, q, formats, framework)
        if 0 in tuple(array.shape):
            raise ValueError(f"{name}: wants no empty dimension, got {tuple(array.shape)}")
    batch, query_len, heads, head_dim = tuple(q.shape)
    pages, page_size, kv_heads = tuple(k_cache.shape)[:3]
    value_dim = v_cache.shape[3]
    if k_cache.shape[3] != head_dim:
        raise ValueError(f"k_cache: wants D = {head_dim} as q has, got {tuple(k_cache.shape)}")
    if tuple(v_cache.shape) != (pages, page_size, kv_heads, value_dim):
        raise ValueError(
            f"v_cache: wants P = {pages}, page = {page_size}, Hkv = {kv_heads} as k_cache has, "
            f"got {tuple(v_cache.shape)}"
        )
    _check_heads("k_cache", heads, kv_heads)
    _check_causal(causal)
    check_table(
        block_table, cache_seqlens, batch=batch, pages=pages, page_size=page_size, beside=q,
        framework=framework,
    )  # fmt: skip
    return PagedShape(
        batch, query_len, pages, page_size, block_table.shape[1], heads, kv_heads, head_dim,
        value_dim, arrays.scale(scale, head_dim**-0.5),
    )  # fmt: skip


def check_table(
    block_table: Any,
    cache_seqlens: Any,
    *,
    batch: int,
    pages: int,
    page_size: int,
    beside: Any,
    framework: str | None = None,
) -> None:
    """Check block_table int32 [B, pages] and cache_seqlens int32 [B] of a cache of ``pages`` pages,
    on the device of ``beside``. Raises ValueError."""
    _check_indices("block_table", block_table, "[B, pages]", 2, beside, framework)
    _check_indices("cache_seqlens", cache_seqlens, "[B]", 1, beside, framework)
    if block_table.shape[0] != batch or block_table.shape[1] < 1:
        raise ValueError(
            f"block_table: wants B = {batch} rows of at least one page, "
            f"got {tuple(block_table.shape)}"
        )
    if cache_seqlens.shape[0] != batch:
        raise ValueError(f"cache_seqlens: wants B = {batch}, got {tuple(cache_seqlens.shape)}")
    lengths = _host(cache_seqlens)
    table = None if lengths is None else _host(block_table)
    if lengths is None or table is None:
        return
    room = table.shape[1] * page_size
    wrong = np.flatnonzero((lengths < 0) | (lengths > room))
    if wrong.size:
        b = int(wrong[0])
        raise ValueError(
            f"cache_seqlens: wants lengths of 0 to {room} (pages of {page_size}), "
            f"got {int(lengths[b])} in sequence {b}"
        )
    used = np.arange(table.shape[1])[None, :] * page_size < lengths[:, None]
    bad = np.argwhere(used & ((table < 0) | (table >= pages)))
    if bad.size:
        b, i = (int(index) for index in bad[0])
        raise ValueError(
            f"block_table: wants page indices of 0 to {pages - 1}, got {int(table[b, i])} "
            f"at [{b}, {i}]"
        )


def check_served(
    shape: Shape | VarlenShape | PagedShape,
    q: Any,
    *,
    device: str | None = None,
    formats: tuple[str, ...] | None = None,
    dims: tuple[tuple[int, int], ...] | None = None,
) -> None:
    """Refuse what an implementation does not take: devices other than ``device`` (torch's name of
    the kind), dtypes, (head_dim, value_dim) pairs. Raises ValueError."""
    if device is not None and q.device.type != device:
        raise ValueError(f"q: wants a {device} tensor, got one on {q.device}")
    if formats is not None and _format(q) not in formats:
        raise ValueError(f"q: wants {_either([_DTYPES[name] for name in formats])}, got {q.dtype}")
    pair = (shape.head_dim, shape.value_dim)
    if dims is not None and pair not in dims:
        listed = _either([f"{wide}/{out}" for wide, out in dims])
        raise ValueError(f"q: wants head_dim/value_dim {listed}, got {pair[0]}/{pair[1]}")


def check_strides(*, alignment_bytes: int = 16, **tensors: Any) -> None:
    """Refuse torch tensors whose last dimension is not contiguous, or whose rows or first element
    do not start at multiples of ``alignment_bytes`` (what TMA and 16-byte loads want).

    Raises ValueError naming the tensor.
    """
    for name, array in tensors.items():
        strides, size = tuple(array.stride()), array.element_size()
        if array.shape[-1] > 1 and strides[-1] != 1:
            raise ValueError(f"{name}: wants its last dimension contiguous, got strides {strides}")
        for extent, stride in zip(array.shape[:-1], strides[:-1], strict=True):
            if extent > 1 and (stride * size) % alignment_bytes:
                raise ValueError(
                    f"{name}: wants strides that are multiples of {alignment_bytes} bytes, "
                    f"got {strides} of {size} bytes"
                )
        if array.data_ptr() % alignment_bytes:
            raise ValueError(
                f"{name}: wants its first element at a multiple of {alignment_bytes} bytes, "
                f"got one {array.data_ptr() % alignment_bytes} bytes off"
            )


def _check_array(
    name: str, array: Any, axes: str, q: Any, formats: tuple[str, ...], framework: str | None
) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"{name}: wants an array {axes}, got {type(array).__name__}")
    arrays.check_framework(framework, **{name: array})
    dimensions = axes.count(",") + 1
    if len(array.shape) != dimensions:
        raise ValueError(f"{name}: wants {dimensions} dimensions {axes}, got {tuple(array.shape)}")
    if _format(array) not in formats:
        served = _either([_DTYPES[form] for form in formats])
        raise ValueError(f"{name}: wants {served}, got {array.dtype}")
    if array.dtype != q.dtype:
        raise ValueError(f"{name}: wants q's dtype {q.dtype}, got {array.dtype}")
    _check_device(name, array, q)


def _check_device(name: str, array: Any, q: Any) -> None:
    there, wanted = getattr(array, "device", None), getattr(q, "device", None)
    if there is not None and wanted is not None and there != wanted:  # a tracer has none
        raise ValueError(f"{name}: wants q's device {wanted}, got {there}")


def _check_indices(
    name: str, array: Any, axes: str, dimensions: int, q: Any, framework: str | None
) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"{name}: wants an int32 array {axes}, got {type(array).__name__}")
    arrays.check_framework(framework, **{name: array})
    if len(array.shape) != dimensions:
        raise ValueError(f"{name}: wants {axes}, got {tuple(array.shape)}")
    if str(array.dtype).rpartition(".")[2] != "int32":
        raise ValueError(f"{name}: wants int32, got {array.dtype}")
    _check_device(name, array, q)


def _check_heads(name: str, heads: int, kv_heads: int) -> None:
    if heads % kv_heads:
        raise ValueError(
            f"{name}: wants a number of heads that divides q's {heads}, got {kv_heads}"
        )


def _check_causal(causal: bool) -> None:
    if not isinstance(causal, bool):
        raise ValueError(f"causal: wants True or False, got {causal!r}")


def _check_length(name: str, length: Any) -> None:
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 0:
        raise ValueError(f"{name}: wants a whole number of at least 0, got {length!r}")


def _check_offsets(name: str, array: Any, rows: int, longest: int, *, every_row: bool) -> None:
    offsets = _host(array)
    if offsets is None:
        return
    if offsets[0] != 0:
        raise ValueError(f"{name}: wants 0 as its first offset, got {int(offsets[0])}")
    lengths = np.diff(offsets)
    if (lengths < 0).any():
        b = int(np.argmax(lengths < 0))
        raise ValueError(
            f"{name}: wants offsets that do not decrease, got {int(offsets[b])} then "
            f"{int(offsets[b + 1])} in sequence {b}"
        )
    last = int(offsets[-1])
    if last > rows or (every_row and last != rows):
        most = "" if every_row else "at most "
        raise ValueError(
            f"{name}: wants {most}the number of rows, {rows}, as its last offset, got {last}"
        )
    if (lengths > longest).any():
        b = int(np.argmax(lengths > longest))
        raise ValueError(
            f"{name.replace('cu_seqlens', 'max_seqlen')}: wants at least the longest sequence, "
            f"{int(lengths[b])} (sequence {b}), got {longest}"
        )


def _format(array: Any) -> str | None:
    """The format's name, whatever the framework calls it ("torch.bfloat16", "mlx.core.float32")."""
    word = str(array.dtype).rpartition(".")[2]
    return next((name for name, dtype in _DTYPES.items() if dtype == word), None)


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _host(array: Any) -> NDArray[np.int64] | None:
    """The values on the host; None while they have none or cannot be waited for: under a tracer,
    and while a CUDA graph is captured."""
    framework = type(array).__module__.partition(".")[0]
    if framework == "torch":
        import torch

        if torch.compiler.is_compiling():
            return None
        if array.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        return np.asarray(array.cpu().numpy(), dtype=np.int64)
    if framework in ("jax", "jaxlib"):
        import jax

        if isinstance(array, jax.core.Tracer):
            return None
    return np.asarray(array, dtype=np.int64)
