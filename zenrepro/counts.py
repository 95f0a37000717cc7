"""Work counted from shapes: useful FLOPs and the fewest bytes of device memory that must move.

A multiply and an add are two FLOPs. "Fewest" means that each input is read once, each output is
written once, and nothing in between touches memory; what an implementation moves is at least that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zenrepro.errors import InputError
from zenrepro.formats import element_bytes
from zenrepro.records import Work


def attended_pairs(query_len: int, cache_len: int, causal: bool) -> int:
    """Pairs (query, key) that take part in one head.

    Causal is aligned at the bottom right: the last query sees every key, the one before it one key
    fewer. With ``query_len == cache_len == N`` that is N(N+1)/2, the field's "half"; with one query
    it is all of them. Raises InputError when a causal query would see no key.
    """
    _positive(query_len=query_len, cache_len=cache_len)
    if not causal:
        return query_len * cache_len
    if query_len > cache_len:
        raise InputError(
            f"causal attention of {query_len} queries over {cache_len} keys leaves queries without "
            "a key; give at least as many keys as queries"
        )
    return query_len * cache_len - query_len * (query_len - 1) // 2


def attention(
    *,
    batch: int,
    query_len: int,
    cache_len: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    causal: bool,
    dtype: str,
) -> Work:
    """Scores and weighted sum of one attention call; the softmax's few FLOPs a pair are left out.

    FLOPs: 2 x pairs x (head_dim + value_dim) a head. Bytes: queries, keys, values and output once.
    """
    _positive(batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim)
    pairs = attended_pairs(query_len, cache_len, causal)
    queries = batch * query_len * heads * (head_dim + value_dim)  # with the output
    keys = batch * cache_len * kv_heads * (head_dim + value_dim)  # with the values
    return Work(
        flops=float(2 * batch * heads * pairs * (head_dim + value_dim)),
        bytes=(queries + keys) * element_bytes(dtype),
    )


def attention_of(conditions: Mapping[str, Any]) -> Work:
    """``attention`` from a record's conditions; ``query_len`` and ``cache_len`` default to
    ``seq_len``, ``kv_heads`` to ``heads``, ``value_dim`` to ``head_dim``."""
    seq_len = conditions.get("seq_len")
    query_len, cache_len = (
        conditions.get("query_len", seq_len),
        conditions.get("cache_len", seq_len),
    )
    if query_len is None or cache_len is None:
        raise InputError("attention conditions want seq_len, or query_len and cache_len")
    try:
        return attention(
            batch=conditions["batch"],
            query_len=query_len,
            cache_len=cache_len,
            heads=conditions["heads"],
            kv_heads=conditions.get("kv_heads", conditions["heads"]),
            head_dim=conditions["head_dim"],
            value_dim=conditions.get("value_dim", conditions["head_dim"]),
            causal=conditions["causal"],
            dtype=conditions["dtype"],
        )
    except KeyError as error:
        raise InputError(f"attention conditions lack {error}") from None


def materialised_scores(
    *, batch: int, query_len: int, cache_len: int, heads: int, dtype: str
) -> float:
    """Bytes that attention moves besides its inputs and output when it stores its scores.

    Scores are written and read by the softmax, weights written and read by the second product:
    four passes over batch x heads x query_len x cache_len elements. A causal mask saves nothing,
    since the whole square is stored.
    """
    _positive(batch=batch, query_len=query_len, cache_len=cache_len, heads=heads)
    return 4.0 * batch * heads * query_len * cache_len * element_bytes(dtype)


def cache_bytes_per_token(*, kv_heads: int, head_dim: int, value_dim: int, dtype: str) -> float:
    """Bytes of keys and values that one token keeps in one layer's cache."""
    _positive(kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim)
    return kv_heads * (head_dim + value_dim) * element_bytes(dtype)


def tile_rows(*, sram_bytes: int, head_dim: int, dtype: str) -> int:
    """Query rows of a tile that tiled attention keeps on chip: M / 4d elements, at most d.

    FlashAttention, Dao et al. 2022 (arXiv 2205.14135), algorithm 1, line 1.
    """
    _positive(sram_bytes=sram_bytes, head_dim=head_dim)
    rows = math.ceil(sram_bytes / element_bytes(dtype) / (4 * head_dim))
    return min(rows, head_dim)


def tiled_attention(
    *,
    batch: int,
    query_len: int,
    cache_len: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    causal: bool,
    dtype: str,
    rows: int,
) -> float:
    """Bytes that attention moves into and out of the multiprocessors, ``rows`` queries at a time.

    Queries are read and outputs written once; each tile of queries reads the keys and values that
    any of its rows sees, head by head. With rows = M / 4d that is the order N²d²/M of theorem 2 of
    FlashAttention (arXiv 2205.14135). Whether it reaches device memory depends on the caches
    between: this is what passes when there are none.
    """
    _positive(batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim, rows=rows)
    attended_pairs(query_len, cache_len, causal)
    keys = 0
    for start in range(0, query_len, rows):
        last = min(start + rows, query_len) - 1
        keys += cache_len - (query_len - 1 - last) if causal else cache_len
    elements = batch * heads * (query_len + keys) * (head_dim + value_dim)
    return elements * element_bytes(dtype)


def matmul(*, m: int, n: int, k: int, dtype: str, out_dtype: str | None = None) -> Work:
    """``[m, k] @ [k, n]``: 2mnk FLOPs; both inputs read and the output written once."""
    _positive(m=m, n=n, k=k)
    inputs = (m * k + k * n) * element_bytes(dtype)
    return Work(flops=2.0 * m * n * k, bytes=inputs + m * n * element_bytes(out_dtype or dtype))


def copy(size_bytes: int) -> Work:
    """A copy of ``size_bytes``: each byte is read once and written once."""
    _positive(size_bytes=size_bytes)
    return Work(flops=0.0, bytes=2.0 * size_bytes)


def _positive(**sizes: Any) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise InputError(f"{name} wants a positive whole number, got {value!r}")
