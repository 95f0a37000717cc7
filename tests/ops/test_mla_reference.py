"""Latent attention's reference: the forms agree, other ways to write it too, and the gate that
rests on it sees seeded defects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zenrepro.ops.gate import judge, relative_error
from zenrepro.ops.mla import reference
from zenrepro.ops.mla.cache import dequantise, quantise
from zenrepro.ops.mla.cases import CASES, CONTRACT, Case, bound, decode, misfit
from zenrepro.ops.mla.sizes import LATENT, PAGE, ROW, SCALE
from zenrepro.ops.precision import UNIT_ROUNDOFF, rounded

# Short: of thousands of rows one more or less hides in bf16's rounding of the scores.
SEEDED = (
    decode("defect", 2, 12, 70),
    decode("defect_verify", 3, 6, 80, query_len=3, skew=0.5),
    decode("defect_fp8", 2, 12, 70, fp8=True),
)


def draw(case: Case, dtype: str, seed: int = 3) -> dict[str, Any]:
    """A decode case on the host, pages permuted."""
    rng = np.random.default_rng(seed)
    lengths = np.array(case.lengths, np.int32)
    needed = -(-lengths // PAGE)
    order = rng.permutation(int(needed.sum()) + 1)
    table = np.full((case.batch, needed.max()), -1, np.int32)
    used = 0
    for b in range(case.batch):
        table[b, : needed[b]] = order[used : used + needed[b]]
        used += needed[b]
    pool = rounded(rng.standard_normal((len(order), PAGE, ROW)), dtype)
    q = rng.standard_normal((case.batch, case.query_len, case.heads, ROW))
    return {
        "q": rounded(q, dtype),
        "cache": quantise(pool) if case.format else pool,
        "block_table": table,
        "cache_seqlens": lengths,
    }


def matrices(
    drawn: dict[str, Any],
    *,
    factor: float = 1.0,
    shift: int = 0,
    keys: int = ROW,
    swap: bool = False,
    scales: int = 0,
    split: bool = False,
) -> np.ndarray:
    """Decode as whole matrices: another way to write it, with places to break it."""
    q, cache = drawn["q"].astype(np.float64), drawn["cache"]
    B, T, H, _ = q.shape
    out = np.zeros((B, T, H, LATENT))
    for b in range(B):
        n = int(drawn["cache_seqlens"][b])
        pages = drawn["block_table"][b, : -(-n // PAGE)]
        if swap:
            pages = pages[::-1]
        stored = cache[pages].reshape(-1, cache.shape[2])[:n]
        if stored.dtype == np.uint8 and scales:
            stored = stored.copy()
            stored[:, LATENT : LATENT + 16] = np.roll(stored[:, LATENT : LATENT + 16], 4, axis=1)
        rows = (dequantise(stored) if stored.dtype == np.uint8 else stored).astype(np.float64)
        scores = np.einsum("thd,sd->ths", q[b][..., :keys], rows[:, :keys]) * SCALE * factor
        seen = np.arange(n)[None] < (n - T + 1 + shift + np.arange(T))[:, None]
        scores = np.where(seen[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        if split:  # each half by its own softmax, combined without their weights
            half = n // 2
            parts = [weights[..., :half], weights[..., half:]]
            weights = np.concatenate([p / (2 * p.sum(-1, keepdims=True)) for p in parts], -1)
        out[b] = np.einsum("ths,sc->thc", weights, rows[:, :LATENT])
    return out


def upward(rng: np.random.Generator, heads: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (heads, 128, LATENT)
    return rng.standard_normal(shape) * LATENT**-0.5, rng.standard_normal(shape) * LATENT**-0.5


@pytest.mark.parametrize(
    ("queries", "rows", "causal"), [(5, 5, True), (3, 70, True), (4, 3, False)]
)
def test_both_forms_agree(queries: int, rows: int, causal: bool) -> None:
    rng = np.random.default_rng(0)
    q, latent = rng.standard_normal((2, queries, 3, 192)), rng.standard_normal((2, rows, ROW))
    w_uk, w_uv = upward(rng, 3)
    one = reference.prefill(q, latent, w_uk, w_uv, causal=causal)
    other = reference.prefill(q, latent, w_uk, w_uv, causal=causal, form="absorbed")
    assert relative_error(other, one) < 1e-14
    picked = reference.prefill(q, latent, w_uk, w_uv, causal=causal, rows=[0, queries - 1])
    assert np.array_equal(picked, one[:, [0, queries - 1]])


def test_decode_of_absorbed_queries_is_the_end_of_a_prefill() -> None:
    rng = np.random.default_rng(1)
    lengths = np.array([70, 129, 64], np.int32)
    w_uk, w_uv = upward(rng, 2)
    q = rng.standard_normal((3, 4, 2, 192))
    pool = np.full((8, PAGE, ROW), np.nan)  # what is not a sequence's own must not be read
    table = np.array([[6, 1, -9], [0, 3, 4], [2, -9, 99]], np.int32)
    latents = [rng.standard_normal((1, n, ROW)) for n in lengths]
    for b, latent in enumerate(latents):
        for s in range(lengths[b]):
            pool[table[b, s // PAGE], s % PAGE] = latent[0, s]
    out = reference.decode(
        reference.absorb(q, w_uk), pool, block_table=table, cache_seqlens=lengths
    )
    expanded = reference.expand(out, w_uv)
    for b, latent in enumerate(latents):
        wanted = reference.prefill(q[b : b + 1], latent, w_uk, w_uv, causal=True)
        assert relative_error(expanded[b : b + 1], wanted) < 1e-14


@pytest.mark.parametrize("case", [c for c in CONTRACT if c.phase == "decode"], ids=lambda c: c.name)
def test_reference_agrees_with_whole_matrices(case: Case) -> None:
    drawn = draw(case, "fp32")
    assert relative_error(reference.decode(**drawn), matrices(drawn)) < 1e-14


def test_an_empty_sequence_and_queries_that_see_nothing_give_zeros() -> None:
    drawn = draw(decode(None, 2, 2, 2, query_len=4), "fp32")
    drawn["cache_seqlens"] = np.array([0, 2], np.int32)
    out = reference.decode(**drawn)
    assert np.array_equal(out[0], np.zeros_like(out[0]))
    assert np.array_equal(out[1, :2], np.zeros_like(out[1, :2]))
    assert np.abs(out[1, 2:]).min() > 0


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("case", SEEDED, ids=lambda case: case.name)
def test_defects_fail(case: Case, dtype: str) -> None:
    drawn = draw(case, dtype)
    wanted = reference.decode(**drawn)
    plain = reference.same_precision_decode(**drawn, dtype=dtype)
    limit = bound(dtype, relative_error(plain, wanted))
    right = matrices(drawn)
    assert judge(rounded(right, dtype), wanted, limit).passed
    defects = {
        "scale of the decompressed width left out": matrices(drawn, factor=(192 / 576) ** 0.5),
        "scale": matrices(drawn, factor=1.05),
        "one row too many": None if case.query_len == 1 else matrices(drawn, shift=1),
        "one row too few": matrices(drawn, shift=-1),
        "rotary part left out": matrices(drawn, keys=LATENT),
        "pages in the wrong order": matrices(drawn, swap=True),
        "parts combined without their weights": matrices(drawn, split=True),
        "a head lost": np.where(np.arange(case.heads)[:, None] == 1, 0.0, right),
        "scales of the next group": matrices(drawn, scales=1) if case.format else None,
    }
    for name, out in defects.items():
        if out is not None:
            assert not judge(rounded(out, dtype), wanted, limit).passed, name


def test_fp8_products_of_queries_fail_the_fp8_bound() -> None:
    """What the bound of an FP8 cache says of queries that are rounded to FP8 too."""
    drawn = draw(decode(None, 2, 4, 300, fp8=True), "bf16")
    wanted = reference.decode(**drawn)
    plain = reference.same_precision_decode(**drawn, dtype="bf16")
    limit = bound("bf16", relative_error(plain, wanted))
    drawn["q"] = dequantise(quantise(drawn["q"]))
    assert not judge(rounded(reference.decode(**drawn), "bf16"), wanted, limit).passed


def test_bound_is_twice_the_plain_error_and_never_below_one_rounding() -> None:
    assert bound("bf16", 0.01) == 0.02
    assert bound("bf16", 0.0) == UNIT_ROUNDOFF["bf16"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_plain_products_round_as_a_loop_does(dtype: str) -> None:
    rng = np.random.default_rng(2)
    q, latent = rng.standard_normal((1, 2, 2, 192)), rng.standard_normal((1, 33, ROW))
    w_uk, w_uv = upward(rng, 2)
    given = [rounded(x, dtype) for x in (q, latent, w_uk, w_uv)]
    right = reference.prefill(*given, causal=True)
    for form in ("decompressed", "absorbed"):
        plain = reference.same_precision_prefill(*given, causal=True, form=form, dtype=dtype)
        error = relative_error(plain, right)
        assert UNIT_ROUNDOFF[dtype] / 10 < error < 20 * UNIT_ROUNDOFF[dtype], form


def test_cases_fit_and_have_names_of_their_own() -> None:
    listed = [case for cases in (*CASES.values(), CONTRACT) for case in cases]
    assert len({case.name for case in listed}) == len(listed)
    for case in listed:
        assert misfit(case) is None
        assert case.dtypes("cuda") == ("bf16",)
    assert misfit(decode(None, 4, 16, 8, query_len=4, skew=0.9)) is not None
    full = {(c.batch, c.heads, c.cache_len) for c in CASES["full"] if c.phase == "decode"}
    assert {(128, 16, 4096), (128, 24, 4096), (64, 64, 4096), (64, 64, 16384)} <= full
    assert {(64, 128, 4096), (8, 16, 32768), (1, 16, 131072), (64, 40, 4096)} <= full
