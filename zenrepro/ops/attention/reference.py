"""Attention written out: one query row at a time, in fp64, nothing clever.

``same_precision`` is the same loop with every intermediate result rounded to a format: the error
that any straightforward implementation in that format has. It sets the bound of the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenrepro.ops.attention import arguments
from zenrepro.ops.precision import rounded

Array = NDArray[np.floating]
Indices = NDArray[np.integer]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    scale: float | None = None,
    rows: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> fp64 [B, len(rows), H, Dv].

    ``rows`` picks query rows (default: all T). Query head h reads kv head h // (H / Hkv). Causal
    is aligned at the bottom right: query row t sees keys 0 .. S - T + t. ``scale`` defaults to
    1 / sqrt(D). Raises ValueError for shapes that do not fit.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale)
    return _rows(q, k, v, causal, shape.scale, rows, _EXACT)  # type: ignore[return-value]


def same_precision(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    dtype: str,
    scale: float | None = None,
    rows: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """``attention`` in fp32, sums one term after the other as a plain loop adds them, with scores,
    weights and output rounded to ``dtype``."""
    shape = arguments.check(q, k, v, causal=causal, scale=scale)
    return _rows(q, k, v, causal, shape.scale, rows, _in_format(dtype))  # type: ignore[return-value]


def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    *,
    cu_seqlens_q: Indices,
    cu_seqlens_k: Indices,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None = None,
    dtype: str | None = None,
) -> Array:
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv], offsets int32 [B + 1] -> fp64 [Tq, H, Dv].

    Each sequence by itself, causal aligned at its bottom right; a query that sees no key gives
    zeros. With ``dtype``: in fp32 rounded to it, as ``same_precision``. Raises ValueError.
    """
    arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale,
    )  # fmt: skip
    parts = []
    for b in range(len(cu_seqlens_q) - 1):
        queries = slice(cu_seqlens_q[b], cu_seqlens_q[b + 1])
        keys = slice(cu_seqlens_k[b], cu_seqlens_k[b + 1])
        parts.append(
            sequence(q[queries], k[keys], v[keys], causal=causal, scale=scale, dtype=dtype)
        )
    return np.concatenate(parts)


def attention_paged(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    *,
    block_table: Indices,
    cache_seqlens: Indices,
    causal: bool,
    scale: float | None = None,
    dtype: str | None = None,
) -> Array:
    """q [B, T, H, D], caches [P, page, Hkv, D or Dv], block_table int32 [B, pages], cache_seqlens
    int32 [B] -> fp64 [B, T, H, Dv].

    The queries are the last T tokens of each sequence, whose length counts them; a query that sees
    no key gives zeros. ``dtype`` as in ``attention_varlen``. Raises ValueError.
    """
    arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale,
    )  # fmt: skip
    parts = []
    for b, length in enumerate(cache_seqlens):
        k, v = (gather(cache, block_table[b], length) for cache in (k_cache, v_cache))
        parts.append(sequence(q[b], k, v, causal=causal, scale=scale, dtype=dtype))
    return np.stack(parts)


def gather(cache: Array, pages: Indices, length: int) -> Array:
    """The rows of one sequence: cache [P, page, ...], its pages -> [length, ...]."""
    used = -(-int(length) // cache.shape[1])
    rows: Array = cache[pages[:used]].reshape(-1, *cache.shape[2:])[:length]
    return rows


def sequence(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    scale: float | None = None,
    dtype: str | None = None,
    rows: Sequence[int] | None = None,
) -> Array:
    """One sequence, of any lengths: q [T, H, D], k [S, Hkv, D], v [S, Hkv, Dv] ->
    [len(rows), H, Dv], in fp64, or with ``dtype`` as ``same_precision``. No checks."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    how = _EXACT if dtype is None else _in_format(dtype)
    return _rows(q[None], k[None], v[None], causal, factor, rows, how)[0]


class _How(NamedTuple):
    """In which precision the loop computes: the dtype, how it rounds scores, weights before their
    division and after it, and outputs, and how it sums terms."""

    compute: type[np.floating]
    score: Callable[[Array], Array]
    numerator: Callable[[Array], Array]
    weight: Callable[[Array], Array]
    out: Callable[[Array], Array]
    total: Callable[[Array], Array]


def _same(x: Array) -> Array:
    return x


_EXACT = _How(np.float64, _same, _same, _same, _same, lambda terms: terms.sum(-1))


def _in_format(dtype: str) -> _How:
    def total(terms: Array) -> Array:  # one term after the other, as a plain loop adds them
        return np.add.accumulate(terms, axis=-1)[..., -1]

    def to(x: Array) -> Array:
        return rounded(x, dtype)

    if dtype == "fp8_e4m3":
        # Weights below 2^-9 do not exist in this format, so they are rounded before the division,
        # where the largest is 1, scaled to 2^8; scores stay in fp32 and the output is bf16.
        def numerator(x: Array) -> Array:
            return rounded(x * np.float32(256), dtype) / np.float32(256)

        return _How(np.float32, _same, numerator, _same, lambda x: rounded(x, "bf16"), total)
    return _How(np.float32, to, _same, to, to, total)


def _rows(
    q: Array,
    k: Array,
    v: Array,
    causal: bool,
    scale: float,
    rows: Sequence[int] | None,
    how: _How,
) -> Array:
    B, T, H, _ = q.shape
    S, Hkv, Dv = k.shape[1], k.shape[2], v.shape[3]
    compute, total = how.compute, how.total
    picked = range(T) if rows is None else rows
    out = np.zeros((B, len(picked), H, Dv), compute)
    for b in range(B):
        for h in range(H):
            keys = k[b, :, h // (H // Hkv)].astype(compute)
            values = v[b, :, h // (H // Hkv)].astype(compute)
            for i, t in enumerate(picked):
                seen = max(0, S - T + t + 1) if causal else S
                if seen == 0:
                    continue  # a sum over nothing: zeros
                query = q[b, t, h].astype(compute)
                scores = how.score(how.score(total(keys[:seen] * query)) * compute(scale))
                exponentials = np.exp(scores - scores.max())
                weights = how.weight(how.numerator(exponentials) / total(exponentials))
                out[b, i, h] = how.out(total(weights * values[:seen].T))
    return out
