"""Latent attention in three forms, by count: where fusing the up-projection pays and where not.

*decompressed*: every latent row is expanded once a head to a key of 192 and a value of 128, stored
and read by the attention. *absorbed*: W_UK moves into the queries and W_UV behind the weighted sum;
heads attend to the rows themselves, 576 and 512 wide. *fused*: the attention kernel expands the
rows that it reads, tile by tile, once for every tile of queries; nothing expanded is stored.

A multiply and an add are two FLOPs. Bytes are what passes through device memory when inputs are
read once, outputs written once, and what one kernel hands to the next written and read once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from zenrepro.counts import attended_pairs
from zenrepro.errors import InputError
from zenrepro.formats import element_bytes
from zenrepro.ops.mla.sizes import LATENT, NOPE, QUERY, ROW, VALUE
from zenrepro.records import Work

Form = Literal["decompressed", "absorbed", "fused"]
FORMS: tuple[Form, ...] = get_args(Form)
TILE_ROWS = 128  # queries of one head that share a tile's expanded keys and values


class Shape(NamedTuple):
    """``query_len`` tokens, the last of ``cache_len``, in each of ``batch`` sequences."""

    batch: int
    query_len: int
    cache_len: int
    heads: int
    causal: bool = True


class Crossing(NamedTuple):
    """From ``query_len`` on, ``second`` costs less than ``first``; None: it never does."""

    first: Form
    second: Form
    query_len: int | None


def work(form: Form, shape: Shape, *, dtype: str = "bf16", rows: int = TILE_ROWS) -> Work:
    """FLOPs and bytes of one call of ``form``, projections included.

    ``rows``: queries a tile of the fused form. Raises InputError for an unknown form and for shapes
    that leave a query without a key.
    """
    if form not in FORMS:
        raise InputError(f"form wants {', '.join(FORMS)}, got {form!r}")
    if rows < 1:
        raise InputError(f"rows wants a positive whole number, got {rows!r}")
    batch, queries, length, heads, causal = shape
    pairs = attended_pairs(queries, length, causal)
    width = LATENT + ROW if form == "absorbed" else QUERY + VALUE
    projected = {
        "decompressed": length,
        "absorbed": queries,
        "fused": expanded_rows(shape, rows),
    }[form]
    flops = 2 * batch * heads * (projected * LATENT * (NOPE + VALUE) + pairs * width)
    handed_over = {
        "decompressed": length * (QUERY + VALUE),
        "absorbed": queries * (ROW + LATENT),
        "fused": 0,
    }[form]
    elements = (
        batch * heads * (queries * (QUERY + VALUE) + 2 * handed_over)
        + batch * length * ROW
        + heads * LATENT * (NOPE + VALUE)
    )
    return Work(flops=float(flops), bytes=elements * element_bytes(dtype))


def expanded_rows(shape: Shape, rows: int = TILE_ROWS) -> int:
    """Rows that the fused form expands for one head of one sequence: those that a tile of ``rows``
    queries sees, summed over tiles. Decompression expands ``cache_len``."""
    total = 0
    for start in range(0, shape.query_len, rows):
        last = min(start + rows, shape.query_len) - 1
        total += shape.cache_len - (shape.query_len - 1 - last if shape.causal else 0)
    return total


def tile_bytes(
    shape: Shape, *, dtype: str = "bf16", rows: int = TILE_ROWS, keys: int = 64
) -> float:
    """Bytes that the fused form reads into the multiprocessors inside its loop: for each tile of
    queries and of ``keys`` rows, the rows and both of the head's up-projections. Its weights do not
    fit beside the tiles (256 KB in bf16), so that they come from the L2 cache every time."""
    loaded = expanded_rows(shape, rows)
    tiles = -(-loaded // keys)
    elements = loaded * ROW + tiles * LATENT * (NOPE + VALUE)
    return float(shape.batch * shape.heads * elements) * element_bytes(dtype)


def seconds(
    form: Form,
    shape: Shape,
    flop_rate: float,
    bandwidth: float,
    *,
    dtype: str = "bf16",
    rows: int = TILE_ROWS,
) -> float:
    """The least time that ceilings (FLOP/s, B/s) allow: the slower of computing and moving."""
    counted = work(form, shape, dtype=dtype, rows=rows)
    return max((counted.flops or 0.0) / flop_rate, (counted.bytes or 0.0) / bandwidth)


def crossing(
    first: Form,
    second: Form,
    cache_len: int,
    *,
    heads: int,
    batch: int = 1,
    cost: Callable[[Form, Shape], float] = lambda form, shape: work(form, shape).flops or 0.0,
) -> Crossing:
    """The fewest query tokens over ``cache_len`` at which ``second`` costs less than ``first``.

    ``cost`` is FLOPs unless given (``seconds`` at a machine's ceilings, say). The difference is
    searched by halves: it must change its sign once at most, as these do.
    """

    def wins(query_len: int) -> bool:
        shape = Shape(batch, query_len, cache_len, heads)
        return cost(second, shape) < cost(first, shape)

    if not wins(cache_len):
        return Crossing(first, second, None)
    low, high = 1, cache_len
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if wins(middle) else (middle + 1, high)
    return Crossing(first, second, low)
