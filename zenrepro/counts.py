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
    ``seq_len``, ``kv_heads`` to ``heads``, ``value_dim`` to ``head_dim``.

    With ``skew`` the lengths are ``ragged_lengths``, and of self-attention (``seq_len``) those of
    the queries too.
    """
    if conditions.get("skew"):
        return _ragged_attention(conditions)
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


def _ragged_attention(conditions: Mapping[str, Any]) -> Work:
    """``attention_of``, a sequence at a time."""
    mean = conditions.get("cache_len", conditions.get("seq_len"))
    lengths = ragged_lengths(conditions["batch"], mean, conditions["skew"])
    parts = [
        attention_of(
            {
                **conditions, "skew": 0.0, "batch": 1, "cache_len": length,
                "query_len": conditions.get("query_len", length),
            }
        )
        for length in lengths
    ]  # fmt: skip
    return Work(
        flops=sum(part.flops or 0.0 for part in parts),
        bytes=sum(part.bytes or 0.0 for part in parts),
    )


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


def tiled_attention_behind_cache(
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
    multiprocessors: int,
    cache_bytes: int,
) -> float:
    """Bytes of device memory that tiled attention moves behind a cache, as a model has it.

    Tiles of ``rows`` queries follow each other head by head; each round, every multiprocessor takes
    the next one, and all pass over their keys in step, so that those on one head read its keys
    from device memory once. The next round finds them in the cache if it holds all keys and values
    of the heads at work, and reads them again if not (a cache that drops the least recently used
    keeps nothing of a pass that is longer than it is). Masked keys are left out on average.
    """
    _positive(rows=rows, multiprocessors=multiprocessors, cache_bytes=cache_bytes)
    work = attention(
        batch=batch, query_len=query_len, cache_len=cache_len, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, value_dim=value_dim, causal=causal, dtype=dtype,
    )  # fmt: skip
    tiles = math.ceil(query_len / rows) * heads // kv_heads  # that read the same keys
    groups = batch * kv_heads
    at_work = min(groups, math.ceil(multiprocessors / tiles))
    one = cache_len * (head_dim + value_dim) * element_bytes(dtype)
    again = 0.0
    if at_work * one > cache_bytes:
        passes = sum(
            ((g + 1) * tiles - 1) // multiprocessors - g * tiles // multiprocessors + 1
            for g in range(groups)
        )
        seen = attended_pairs(query_len, cache_len, causal) / (query_len * cache_len)
        again = max(0.0, passes * seen - groups)
    return (work.bytes or 0.0) + again * one


def ragged_lengths(batch: int, cache_len: int, skew: float) -> tuple[int, ...]:
    """Lengths of the sequences of a batch whose mean is ``cache_len``, the shortest first.

    Spread evenly from (1 - skew) x cache_len to (1 + skew) x cache_len and rounded, so that their
    sum is batch x cache_len at every skew. Raises InputError for a skew outside [0, 1) and where
    the shortest has no token.
    """
    _positive(batch=batch, cache_len=cache_len)
    if not 0 <= skew < 1:
        raise InputError(f"skew wants a number from 0 to below 1, got {skew!r}")
    steps = max(1, batch - 1)
    lengths = tuple(
        cache_len + round(skew * cache_len * (2 * i - steps) / steps) if batch > 1 else cache_len
        for i in range(batch)
    )
    if lengths[0] < 1:
        raise InputError(f"skew {skew} leaves a sequence of {cache_len} without a token")
    return lengths


def mla_decode(
    *,
    batch: int,
    query_len: int,
    cache_len: int,
    heads: int,
    head_dim: int,
    value_dim: int,
    dtype: str,
    cache_format: str | None = None,
) -> Work:
    """Absorbed attention of the last ``query_len`` tokens to caches of latent rows.

    ``head_dim`` is a row's width (latent and rotary part), ``value_dim`` the latent's; of the
    lengths only their mean ``cache_len`` matters, as long as none is below ``query_len``. FLOPs:
    2 x pairs x (head_dim + value_dim) a head. Bytes: rows, queries and output once.
    """
    _positive(batch=batch, heads=heads, head_dim=head_dim, value_dim=value_dim)
    pairs = attended_pairs(query_len, cache_len, causal=True)
    row = latent_row_bytes(
        latent=value_dim, rotary=head_dim - value_dim, dtype=dtype, cache_format=cache_format
    )
    queries = batch * query_len * heads * (head_dim + value_dim) * element_bytes(dtype)
    return Work(
        flops=float(2 * batch * heads * pairs * (head_dim + value_dim)),
        bytes=batch * cache_len * row + queries,
    )


def latent_row_bytes(
    *, latent: int, rotary: int, dtype: str, cache_format: str | None = None
) -> float:
    """Bytes that one token keeps in one layer's cache of latent rows.

    Without ``cache_format`` all in ``dtype``. With fp8_e4m3 the latent takes a byte a number and
    four for the scale of every 128; the rotary part stays in bf16. Raises InputError for another.
    """
    _positive(latent=latent, rotary=rotary)
    if cache_format is None:
        return (latent + rotary) * element_bytes(dtype)
    if cache_format != "fp8_e4m3" or latent % 128:
        raise InputError(
            f"cache_format of latent rows wants fp8_e4m3 and groups of 128, got {cache_format!r}"
        )
    scales = latent // 128 * element_bytes("fp32")
    return latent * element_bytes(cache_format) + scales + rotary * element_bytes("bf16")


def mla_prefill(
    *,
    batch: int,
    query_len: int,
    cache_len: int,
    heads: int,
    head_dim: int,
    value_dim: int,
    causal: bool,
    dtype: str,
    latent: int = 512,
    rotary: int = 64,
) -> Work:
    """Latent attention from queries, latent rows and the two up-projections of each head.

    FLOPs of the form with the fewer of them: *decompressed* expands each row once a head and
    attends over head_dim and value_dim; *absorbed* moves the projections to queries and outputs
    and attends over latent + rotary and latent. Bytes: inputs and output once.
    """
    _positive(batch=batch, heads=heads, head_dim=head_dim, value_dim=value_dim)
    pairs = attended_pairs(query_len, cache_len, causal)
    projection = 2 * batch * heads * latent * (head_dim - rotary + value_dim)
    decompressed = projection * cache_len + 2 * batch * heads * pairs * (head_dim + value_dim)
    absorbed = projection * query_len + 2 * batch * heads * pairs * (2 * latent + rotary)
    elements = (
        batch * query_len * heads * (head_dim + value_dim)
        + batch * cache_len * (latent + rotary)
        + heads * latent * (head_dim - rotary + value_dim)
    )
    return Work(
        flops=float(min(decompressed, absorbed)),
        bytes=elements * element_bytes(dtype),
    )


def mla_of(conditions: Mapping[str, Any]) -> Work:
    """``mla_decode`` or ``mla_prefill`` from a record's conditions, as their ``op`` says;
    ``query_len`` and ``cache_len`` default to ``seq_len``."""
    seq_len = conditions.get("seq_len")
    lengths = {key: conditions.get(key, seq_len) for key in ("query_len", "cache_len")}
    if None in lengths.values():
        raise InputError("mla conditions want seq_len, or query_len and cache_len")
    sizes = ("batch", "heads", "head_dim", "value_dim", "dtype")
    try:
        given: dict[str, Any] = {key: conditions[key] for key in sizes} | lengths
        if conditions["op"] == "mla_prefill":
            return mla_prefill(**given, causal=conditions["causal"])
        if conditions["op"] == "mla_decode":
            return mla_decode(**given, cache_format=conditions.get("format"))
    except KeyError as error:
        raise InputError(f"mla conditions lack {error}") from None
    raise InputError(f"op wants mla_decode or mla_prefill, got {conditions['op']!r}")


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
