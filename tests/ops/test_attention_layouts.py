"""Variable lengths and paged caches: the reference, and defects that the gate must see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro import backends
from zenrepro.ops.attention import TABLE, problem, reference
from zenrepro.ops.attention.cases import CONTRACT, Case, decode, prefill
from zenrepro.ops.attention.problem import Problem
from zenrepro.ops.entry import Entry

torch = pytest.importorskip("torch")
from zenrepro.ops.attention import torch_naive  # noqa: E402

NAIVE = next(entry for entry in TABLE if entry.name == "torch.naive")
BY_NAME = {case.name: case for case in CONTRACT}


def rectangle(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """One sequence as whole matrices in fp64: another way to write it. Unseen rows are zeros."""
    T, S, group = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("thd,shd->hts", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    seen = np.tril(np.ones((T, S), bool), S - T) if causal else np.ones((T, S), bool)
    scores = np.where(seen, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
    weights = np.where(seen, weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("hts,shd->thd", weights, v.astype(np.float64))


lengths = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(lengths, st.booleans(), st.integers(0, 99))
def test_varlen_is_each_sequence_by_itself(
    pairs: list[tuple[int, int]], causal: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    starts, begins = (np.int32(np.cumsum([0, *n])) for n in zip(*pairs, strict=True))
    q = rng.standard_normal((starts[-1], 4, 8))
    k, v = rng.standard_normal((begins[-1], 2, 8)), rng.standard_normal((begins[-1], 2, 5))
    out = reference.attention_varlen(
        q, k, v, cu_seqlens_q=starts, cu_seqlens_k=begins, max_seqlen_q=9, max_seqlen_k=12,
        causal=causal,
    )  # fmt: skip
    for b in range(len(pairs)):
        rows, keys = slice(starts[b], starts[b + 1]), slice(begins[b], begins[b + 1])
        wanted = rectangle(q[rows], k[keys], v[keys], causal)
        assert np.allclose(out[rows], wanted, rtol=1e-12, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 3),
    st.sampled_from([1, 3, 4]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_paged_is_the_gathered_sequence_whatever_else_the_cache_holds(
    held: list[int], queries: int, size: int, causal: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    width = max(1, -(-max(held) // size))
    pages = len(held) * width + 2
    table = np.int32(rng.permutation(pages)[: len(held) * width].reshape(len(held), width))
    k_cache, v_cache = np.full((pages, size, 1, 8), np.nan), np.full((pages, size, 1, 6), np.nan)
    q = rng.standard_normal((len(held), queries, 2, 8))
    wanted = []
    for b, length in enumerate(held):
        k, v = rng.standard_normal((length, 1, 8)), rng.standard_normal((length, 1, 6))
        for i in range(length):
            place = table[b, i // size], i % size
            k_cache[place], v_cache[place] = k[i], v[i]
        table[b, -(-length // size) :] = -1  # never looked at
        wanted.append(rectangle(q[b], k, v, causal))
    given_ = {"block_table": table, "cache_seqlens": np.int32(held), "causal": causal}
    out = reference.attention_paged(q, k_cache, v_cache, **given_)
    assert np.allclose(out, np.stack(wanted), rtol=1e-12, atol=1e-13)
    tensors = (torch.from_numpy(x) for x in (q, k_cache, v_cache))
    held_ = {name: torch.from_numpy(given_[name]) for name in ("block_table", "cache_seqlens")}
    naive = torch_naive.attention_paged(*tensors, **held_, causal=causal)
    assert np.allclose(naive.numpy(), np.stack(wanted), rtol=1e-9, atol=1e-10)


def test_every_sequence_of_the_same_length_is_the_dense_call() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, 10, heads, 8)) for heads in (4, 2, 2))
    dense = reference.attention(q, k, v, causal=True)
    offsets = np.int32([0, 10, 20, 30])
    flat = [x.reshape(30, -1, 8) for x in (q, k, v)]
    varlen = reference.attention_varlen(
        *flat, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=10, max_seqlen_k=10,
        causal=True,
    )  # fmt: skip
    assert np.array_equal(varlen.reshape(dense.shape), dense)
    table = np.int32([[5, 0], [3, 1], [2, 4]])
    caches = [np.zeros((6, 5, 2, 8)) for _ in (k, v)]
    for cache, array in zip(caches, (k, v), strict=True):
        cache[table.reshape(-1)] = array.reshape(6, 5, 2, 8)
    paged = reference.attention_paged(
        q, *caches, block_table=table, cache_seqlens=np.int32([10, 10, 10]), causal=True
    )
    assert np.array_equal(paged, dense)


def wrong_varlen(defect: str) -> Callable[..., Any]:
    """A function that computes variable lengths with one defect."""

    def function(q: Any, k: Any, v: Any, **given: Any) -> Any:
        starts, begins = given["cu_seqlens_q"].tolist(), given["cu_seqlens_k"].tolist()
        right = torch_naive.attention_varlen(q, k, v, **given).clone()
        for b in range(len(starts) - 1):
            rows, keys = slice(starts[b], starts[b + 1]), slice(begins[b], begins[b + 1])
            T, S = rows.stop - rows.start, keys.stop - keys.start
            if defect == "queries without keys are averages":
                unseen = rows.start + max(0, T - S)
                right[rows.start : unseen] = v.mean(0).repeat_interleave(2, 0)
            elif T == 0 or S == 0:
                continue
            elif defect == "aligned at the top left" and T != S:
                seen = torch.ones(T, S, dtype=torch.bool).tril()
                right[rows] = torch_naive._formula(
                    q[None, rows], k[None, keys], v[None, keys], ~seen[None, None], 64**-0.5
                )[0]
            elif defect == "one key of the next sequence" and keys.stop < len(k):
                wide = slice(keys.start, keys.stop + 1)
                right[rows] = torch_naive._formula(
                    q[None, rows], k[None, wide], v[None, wide], None, 64**-0.5
                )[0]
            elif defect == "the last row is left out":
                right[rows.stop - 1] = 0
        return right

    return function


@pytest.mark.parametrize(
    "defect",
    [
        "aligned at the top left", "one key of the next sequence",
        "queries without keys are averages", "the last row is left out",
    ],
)  # fmt: skip
def test_defects_of_variable_lengths_fail(defect: str) -> None:
    case = BY_NAME["varlen_masked"]
    case = Case(**{**{f: getattr(case, f) for f in case.__struct_fields__}, "kv_heads": 2})
    drawn = Problem(backends.open("torch", "cpu"), case, "bf16", seed=0)
    assert drawn.judge(drawn.call(NAIVE)).passed
    given_ = {**drawn.indices, **drawn.static}
    verdict = drawn.judge(lambda: wrong_varlen(defect)(*drawn.arrays, causal=True, **given_))
    assert not verdict.passed


def wrong_paged(defect: str) -> Callable[..., Any]:
    """A function that reads a paged cache with one defect."""

    def function(q: Any, k: Any, v: Any, **given: Any) -> Any:
        table, held = given["block_table"].clone(), given["cache_seqlens"].clone()
        size = k.shape[1]
        if defect == "lengths rounded up to pages":
            held = (held + size - 1) // size * size
        elif defect == "the newest token is not seen":
            held = (held - 1).clamp(min=0)
        elif defect == "pages in the order of the cache":
            table = torch.arange(table.numel(), dtype=torch.int32).view(table.shape)
        elif defect == "the first page again":
            table[:, 1:] = table[:, :1]
        elif defect == "another head's keys":
            k = k.flip(2)
        elif defect == "queries see each other's future":
            given = {**given, "causal": False}
        return torch_naive.attention_paged(
            q, k, v, **{**given, "block_table": table, "cache_seqlens": held}
        )

    return function


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "defect",
    [
        "lengths rounded up to pages", "the newest token is not seen",
        "pages in the order of the cache", "the first page again", "another head's keys",
        "queries see each other's future",
    ],
)  # fmt: skip
def test_defects_of_pages_fail(defect: str, dtype: str) -> None:
    drawn = Problem(backends.open("torch", "cpu"), BY_NAME["paged_verify"], dtype, seed=0)
    assert drawn.judge(drawn.call(NAIVE)).passed
    wrong = wrong_paged(defect)
    assert not drawn.judge(lambda: wrong(*drawn.arrays, causal=True, **drawn.indices)).passed


@pytest.mark.parametrize(
    "case",
    [
        prefill(None, 4, 120, 6, 16, kv_heads=2, layout="varlen", skew=0.5),
        decode(None, 4, 400, 6, 2, 16, page_size=16, query_len=3, skew=0.5),
    ],
    ids=["varlen", "paged"],
)
@pytest.mark.parametrize("small_array", [problem.SMALL_ARRAY, 1], ids=["host", "device"])
@pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
def test_a_part_of_a_large_output_is_compared(
    name: str, case: Case, monkeypatch: pytest.MonkeyPatch, small_array: int
) -> None:
    pytest.importorskip({"mlx": "mlx.core"}.get(name, name))
    monkeypatch.setattr(problem, "SMALL_ARRAY", small_array)
    monkeypatch.setattr(problem, "SMALL_PAIRS", 1)
    backend = backends.open(name, "cpu")
    drawn = Problem(backend, case, "fp32", seed=0)
    assert "2 of 4 batches, 3 of 6 heads" in drawn.compared
    entry = next(entry for entry in TABLE if entry.name == f"{name}.naive")
    verdict = drawn.judge(drawn.call(entry))
    assert verdict.passed, verdict.reason
    assert 0 < (verdict.error or 0) < 1e-6


def test_a_layout_that_a_row_does_not_serve() -> None:
    row = next(entry for entry in TABLE if entry.name == "torch.sdpa_cudnn")
    with pytest.raises(ValueError, match=r"layout: torch.sdpa_cudnn serves dense, got 'paged'"):
        row.load("paged")


PAGED_ON_CPU = [e for e in TABLE if "paged" in e.needs.layouts and "cpu" in e.needs.dtypes]


@pytest.mark.parametrize("entry", PAGED_ON_CPU, ids=lambda entry: entry.name)
def test_what_lies_behind_a_sequence_is_never_seen(entry: Entry) -> None:
    pytest.importorskip({"mlx": "mlx.core"}.get(entry.backend, entry.backend))
    backend = backends.open(entry.backend, "cpu")
    drawn = Problem(backend, BY_NAME["paged_verify"], "fp32", seed=0)
    clean = backend.numpy(drawn.call(entry)())
    table, held = (
        backend.numpy(drawn.indices[name]).astype(np.int32)
        for name in ("block_table", "cache_seqlens")
    )
    used = np.zeros(tuple(drawn.arrays[1].shape[:2]), bool)
    for b, length in enumerate(held):
        for i in range(length):
            used[table[b, i // 16], i % 16] = True
        table[b, -(-length // 16) :] = -7
    poisoned = [drawn.arrays[0]]
    for cache in drawn.arrays[1:]:
        host = backend.numpy(cache).copy()
        host[~used] = np.nan
        poisoned.append(backend.asarray(host, "fp32"))
    indices = {"block_table": backend.whole(table), "cache_seqlens": backend.whole(held)}
    out = backend.numpy(entry.load("paged")(*poisoned, causal=True, **indices))
    assert np.array_equal(out, clean)


VARLEN_ON_CPU = [e for e in TABLE if "varlen" in e.needs.layouts and "cpu" in e.needs.dtypes]


@pytest.mark.parametrize("entry", VARLEN_ON_CPU, ids=lambda entry: entry.name)
def test_rows_behind_the_last_sequence_are_never_seen(entry: Entry) -> None:
    """A buffer of keys may be larger than its sequences, and hold anything there."""
    pytest.importorskip({"mlx": "mlx.core"}.get(entry.backend, entry.backend))
    backend = backends.open(entry.backend, "cpu")
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((rows, 2, 8)).astype(np.float32) for rows in (7, 12, 12))
    offsets = {"cu_seqlens_q": np.array([0, 3, 7], np.int32),
               "cu_seqlens_k": np.array([0, 4, 9], np.int32)}  # fmt: skip
    more = {"max_seqlen_q": 4, "max_seqlen_k": 5, "causal": True}
    wanted = reference.attention_varlen(q, k, v, **offsets, **more)
    k[9:], v[9:] = np.nan, np.nan
    given_ = (backend.asarray(x, "fp32") for x in (q, k, v))
    whole = {name: backend.whole(x) for name, x in offsets.items()}
    out = backend.numpy(entry.load("varlen")(*given_, **whole, **more))
    assert np.abs(out - wanted).max() < 1e-5
