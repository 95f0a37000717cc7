"""Latent attention written out: one query row at a time, in fp64, nothing clever.

DeepSeek-V2 (arXiv 2405.04434), section 2.1: a token is compressed to a latent row c (eq. 9) beside
a rotary key that all heads share (eq. 15). *Decompressed*: each head expands the rows to its keys
and values (eq. 10, 11) and attends to them. *Absorbed*: W_UK moves into the query and W_UV behind
the weighted sum, so that heads attend to the rows themselves. Both give the same numbers.

``same_precision_*`` are the same loops with every intermediate rounded to a format: the error that
any straightforward implementation in that format has. They set the bound of the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.cache import dequantise
from zenrepro.ops.mla.sizes import LATENT, NOPE, PAGE, ROW, VALUE
from zenrepro.ops.precision import rounded

Array = NDArray[np.floating]
Form = Literal["decompressed", "absorbed"]


class Arithmetic(NamedTuple):
    """In which format to compute, how to round an intermediate, how to add up the last axis, how
    to multiply matrices."""

    compute: type[np.floating]
    rounding: Callable[[Array], Array]
    total: Callable[[Array], Array]
    product: Callable[[Array, Array], Array]


EXACT = Arithmetic(np.float64, lambda x: x, lambda terms: terms.sum(-1), lambda a, b: a @ b)


def plain(dtype: str) -> Arithmetic:
    """fp32 sums, one term after the other as a plain loop adds them; the rest rounded."""
    return Arithmetic(
        np.float32,
        lambda x: rounded(x, dtype),
        lambda terms: np.add.accumulate(terms, axis=-1)[..., -1],
        _product,
    )


def _product(a: Array, b: Array) -> Array:
    """[m, k] @ [k, n], adding the k terms in order."""
    out = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[1]):
        out += a[:, i, None] * b[i]
    return out


def decode(
    q: Array,
    cache: Array | NDArray[np.uint8],
    *,
    block_table: NDArray[np.int32],
    cache_seqlens: NDArray[np.int32],
    scale: float | None = None,
) -> NDArray[np.float64]:
    """q [B, T, H, 576], cache [P, 64, 576] or uint8 [P, 64, 656], block_table int32 [B, pages],
    cache_seqlens int32 [B] -> fp64 [B, T, H, 512].

    Absorbed and causal: query t of T sees the first cache_seqlens - T + t + 1 rows of its
    sequence; one that sees none gives zeros. ``scale`` defaults to 1 / sqrt(192). Raises
    ValueError.
    """
    return _decode(q, cache, block_table, cache_seqlens, scale, EXACT)  # type: ignore[return-value]


def same_precision_decode(
    q: Array,
    cache: Array | NDArray[np.uint8],
    *,
    block_table: NDArray[np.int32],
    cache_seqlens: NDArray[np.int32],
    scale: float | None = None,
    dtype: str,
) -> Array:
    """``decode`` with rows of an FP8 cache, scores, weights and output rounded to ``dtype``."""
    return _decode(q, cache, block_table, cache_seqlens, scale, plain(dtype))


def prefill(
    q: Array,
    latent: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    causal: bool,
    scale: float | None = None,
    form: Form = "decompressed",
    rows: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """q [B, T, H, 192], latent [B, S, 576], w_uk and w_uv [H, 128, 512] ->
    fp64 [B, len(rows), H, 128].

    ``rows`` picks query rows (default: all T). Causal is aligned at the bottom right: query t sees
    rows 0 .. S - T + t. ``scale`` defaults to 1 / sqrt(192). Raises ValueError.
    """
    return _prefill(q, latent, w_uk, w_uv, causal, scale, form, rows, EXACT)  # type: ignore[return-value]


def same_precision_prefill(
    q: Array,
    latent: Array,
    w_uk: Array,
    w_uv: Array,
    *,
    causal: bool,
    scale: float | None = None,
    form: Form = "decompressed",
    rows: Sequence[int] | None = None,
    dtype: str,
) -> Array:
    """``prefill`` with keys and values (decompressed) or absorbed queries and latent outputs
    (absorbed), scores, weights and output rounded to ``dtype``."""
    return _prefill(q, latent, w_uk, w_uv, causal, scale, form, rows, plain(dtype))


def attend(query: Array, keys: Array, values: Array, scale: float, by: Arithmetic) -> Array:
    """One query [D] over keys [S, D] and values [S, Dv] -> [Dv]; zeros where S is 0."""
    if not len(keys):
        return np.zeros(values.shape[1], by.compute)
    scores = by.rounding(by.rounding(by.total(keys * query)) * by.compute(scale))
    weights = np.exp(scores - scores.max())
    weights = by.rounding(weights / by.total(weights))
    return by.rounding(by.total(weights * values.T))


def gathered(cache: NDArray[Any], pages: NDArray[np.int32], length: int) -> NDArray[Any]:
    """The first ``length`` rows of a sequence, in order, from its ``pages`` of the cache."""
    out = np.empty((length, cache.shape[2]), cache.dtype)
    for i in range(length):
        out[i] = cache[pages[i // PAGE], i % PAGE]
    return out


def _decode(
    q: Array,
    cache: Array | NDArray[np.uint8],
    block_table: NDArray[np.int32],
    cache_seqlens: NDArray[np.int32],
    scale: float | None,
    by: Arithmetic,
) -> Array:
    shape = arguments.check_decode(
        q, cache, block_table=block_table, cache_seqlens=cache_seqlens, scale=scale
    )
    out = np.full((shape.batch, shape.query_len, shape.heads, LATENT), np.nan, by.compute)
    for b in range(shape.batch):
        stored = gathered(cache, block_table[b], int(cache_seqlens[b]))
        rows = by.rounding(dequantise(stored)) if shape.fp8 else stored
        rows = rows.astype(by.compute)
        for t in range(shape.query_len):
            seen = rows[: max(0, len(rows) - shape.query_len + t + 1)]
            for h in range(shape.heads):
                query = q[b, t, h].astype(by.compute)
                out[b, t, h] = attend(query, seen, seen[:, :LATENT], shape.scale, by)
    return out


def _prefill(
    q: Array,
    latent: Array,
    w_uk: Array,
    w_uv: Array,
    causal: bool,
    scale: float | None,
    form: Form,
    picked: Sequence[int] | None,
    by: Arithmetic,
) -> Array:
    shape = arguments.check_prefill(q, latent, w_uk, w_uv, causal=causal, scale=scale)
    indices = range(shape.query_len) if picked is None else picked
    out = np.full((shape.batch, len(indices), shape.heads, VALUE), np.nan, by.compute)
    for b in range(shape.batch):
        rows = latent[b].astype(by.compute)
        c, rotary = rows[:, :LATENT], rows[:, LATENT:]
        for h in range(shape.heads):
            up_keys, up_values = w_uk[h].astype(by.compute), w_uv[h].astype(by.compute)
            if form == "decompressed":
                keys = np.concatenate([by.rounding(by.product(c, up_keys.T)), rotary], axis=1)
                values = by.rounding(by.product(c, up_values.T))
            else:
                keys, values = rows, c
            for i, t in enumerate(indices):
                query = q[b, t, h].astype(by.compute)
                if form == "absorbed":
                    moved = by.rounding(by.product(query[None, :NOPE], up_keys))[0]
                    query = np.concatenate([moved, query[NOPE:]])
                seen = shape.cache_len - shape.query_len + t + 1 if causal else shape.cache_len
                found = attend(query, keys[:seen], values[:seen], shape.scale, by)
                if form == "absorbed":
                    found = by.rounding(by.product(found[None], up_values.T))[0]
                out[b, i, h] = found
    return out


# The layer around the op ------------------------------------------------------------------------


class Weights(NamedTuple):
    """Projections of one layer, in the field's names; d is the hidden size.

    ``w_q`` [H, 192, r] expands a query latent of r (r = d and no norm where queries are projected
    directly), ``w_dq`` [r, d] or None and ``q_norm`` [r] or None make it; ``w_dkv`` [512, d],
    ``kv_norm`` [512] and ``w_kr`` [64, d] make a latent row; ``w_o`` [d, H * 128].
    """

    w_dq: Array | None
    q_norm: Array | None
    w_q: Array
    w_dkv: Array
    kv_norm: Array
    w_kr: Array
    w_uk: Array
    w_uv: Array
    w_o: Array


def rms_norm(x: Array, weight: Array, epsilon: float = 1e-6) -> NDArray[np.float64]:
    """x [..., n] divided by its root mean square, times weight [n]."""
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rotate(x: Array, positions: NDArray[np.integer], theta: float = 10000.0) -> NDArray[np.float64]:
    """Rotary embedding of x [B, S, ..., D] at positions [S]: dimensions 2i and 2i + 1 turn by
    position * theta^(-2i / D). Su et al. 2021 (arXiv 2104.09864), eq. 15."""
    width = x.shape[-1]
    out = np.empty(x.shape, np.float64)
    for s, position in enumerate(positions):
        for i in range(width // 2):
            angle = float(position) * theta ** (-2 * i / width)
            even, odd = x[:, s, ..., 2 * i], x[:, s, ..., 2 * i + 1]
            out[:, s, ..., 2 * i] = even * np.cos(angle) - odd * np.sin(angle)
            out[:, s, ..., 2 * i + 1] = even * np.sin(angle) + odd * np.cos(angle)
    return out


def compress(
    x: Array, weights: Weights, positions: NDArray[np.integer], theta: float = 10000.0
) -> NDArray[np.float64]:
    """x [B, S, d] -> latent rows [B, S, 576]: what the cache holds of a token (eq. 9, 15)."""
    c = rms_norm(x @ weights.w_dkv.T, weights.kv_norm)
    rotary = rotate(x @ weights.w_kr.T, positions, theta)
    return np.concatenate([c, rotary], axis=-1)


def queries(
    x: Array, weights: Weights, positions: NDArray[np.integer], theta: float = 10000.0
) -> NDArray[np.float64]:
    """x [B, T, d] -> q [B, T, H, 192], the last 64 rotated (eq. 12-14)."""
    if weights.w_dq is not None and weights.q_norm is not None:
        x = rms_norm(x @ weights.w_dq.T, weights.q_norm)
    q = np.einsum("btr,hnr->bthn", x, weights.w_q)
    return np.concatenate([q[..., :NOPE], rotate(q[..., NOPE:], positions, theta)], axis=-1)


def absorb(q: Array, w_uk: Array) -> NDArray[np.float64]:
    """q [B, T, H, 192], w_uk [H, 128, 512] -> absorbed queries [B, T, H, 576] of ``decode``."""
    nope = np.einsum("bthn,hnc->bthc", q[..., :NOPE].astype(np.float64), w_uk)
    return np.concatenate([nope, q[..., NOPE:]], axis=-1)


def expand(out: Array, w_uv: Array) -> NDArray[np.float64]:
    """``decode``'s output [B, T, H, 512], w_uv [H, 128, 512] -> heads' outputs [B, T, H, 128]."""
    return np.einsum("bthc,hvc->bthv", out.astype(np.float64), w_uv)


def layer(
    x: Array, weights: Weights, *, form: Form = "decompressed", theta: float = 10000.0
) -> NDArray[np.float64]:
    """A causal layer: x [B, S, d] -> [B, S, d] by either form (eq. 9-19)."""
    batch, length, _ = x.shape
    positions = np.arange(length)
    latent, q = compress(x, weights, positions, theta), queries(x, weights, positions, theta)
    assert latent.shape[-1] == ROW
    out = prefill(q, latent, weights.w_uk, weights.w_uv, causal=True, form=form)
    return out.reshape(batch, length, -1) @ weights.w_o.T
