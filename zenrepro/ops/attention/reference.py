"""Attention written out: one query row at a time, in fp64, nothing clever.

``same_precision`` is the same loop with every intermediate result rounded to a format: the error
that any straightforward implementation in that format has. It sets the bound of the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from zenrepro.ops.attention import arguments
from zenrepro.ops.precision import rounded

Array = NDArray[np.floating]


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
    return _rows(q, k, v, causal, scale, rows, np.float64, lambda x: x, lambda x: x.sum(-1))  # type: ignore[return-value]


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
    return _rows(
        q, k, v, causal, scale, rows, np.float32,
        lambda x: rounded(x, dtype), lambda terms: np.add.accumulate(terms, axis=-1)[..., -1],
    )  # type: ignore[return-value]  # fmt: skip


def _rows(
    q: Array,
    k: Array,
    v: Array,
    causal: bool,
    scale: float | None,
    rows: Sequence[int] | None,
    compute: type[np.floating],
    rounding: Callable[[Array], Array],
    total: Callable[[Array], Array],
) -> Array:
    shape = arguments.check(q, k, v, causal=causal, scale=scale)
    picked = range(shape.query_len) if rows is None else rows
    out = np.full((shape.batch, len(picked), shape.heads, shape.value_dim), math.nan, compute)
    for b in range(shape.batch):
        for h in range(shape.heads):
            kv_head = h // (shape.heads // shape.kv_heads)
            keys = k[b, :, kv_head].astype(compute)
            values = v[b, :, kv_head].astype(compute)
            for i, t in enumerate(picked):
                query = q[b, t, h].astype(compute)
                seen = shape.cache_len - shape.query_len + t + 1 if causal else shape.cache_len
                scores = rounding(rounding(total(keys[:seen] * query)) * compute(shape.scale))
                weights = np.exp(scores - scores.max())
                weights = rounding(weights / total(weights))
                out[b, i, h] = rounding(total(weights * values[:seen].T))
    return out
