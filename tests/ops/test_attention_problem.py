"""A drawn case: which part of a large output is compared, and that it is the right part."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import backends
from zenrepro.ops.attention import TABLE, problem
from zenrepro.ops.attention.cases import Case, decode, prefill
from zenrepro.ops.attention.prediction import predict
from zenrepro.ops.attention.problem import Problem, picks

NAIVE = {entry.name: entry for entry in TABLE}
LARGE = prefill(None, 3, 160, 6, 16, kv_heads=2)


@given(st.integers(1, 500), st.integers(1, 40))
def test_picks_hold_the_first_and_the_last_and_no_more_than_asked(total: int, most: int) -> None:
    found = picks(total, most)
    assert found == sorted(set(found))
    assert len(found) <= most
    assert found[-1] == total - 1
    assert found[0] == 0 or most == 1


@pytest.fixture(params=["torch", "jax", "mlx"])
def backend(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip({"mlx": "mlx.core"}.get(request.param, request.param))
    return backends.open(request.param, "cpu")


@pytest.mark.parametrize("small_array", [problem.SMALL_ARRAY, 1], ids=["host", "device"])
def test_a_part_of_a_large_output_is_compared_where_it_was_computed(
    backend: Any, monkeypatch: pytest.MonkeyPatch, small_array: int
) -> None:
    monkeypatch.setattr(problem, "SMALL_ARRAY", small_array)
    drawn = Problem(backend, LARGE, "fp32", seed=0)
    assert drawn.compared.endswith("2 of 3 batches, 3 of 6 heads, 16 of 160 query rows")
    call = drawn.call(NAIVE[f"{backend.name}.naive"])
    verdict = drawn.judge(call)
    assert verdict.passed, verdict.reason
    assert 0 < (verdict.error or 0) < 1e-6


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 159, 5)], ids=["first", "last"])
def test_one_wrong_row_is_seen_where_rows_are_compared(place: tuple[int, int, int]) -> None:
    pytest.importorskip("torch")
    backend = backends.open("torch", "cpu")
    drawn = Problem(backend, LARGE, "fp32", seed=0)
    right = drawn.call(NAIVE["torch.naive"])
    b, t, h = place

    def wrong() -> Any:
        out = right().clone()
        out[b, t, h] *= 1.01
        return out

    assert not drawn.judge(wrong).passed


def test_memory_that_an_implementation_never_writes_is_seen() -> None:
    torch = pytest.importorskip("torch")
    backend = backends.open("torch", "cpu")
    drawn = Problem(backend, prefill(None, 1, 64, 4, 32), "fp32", seed=0)

    def lazy() -> Any:  # the allocator may give back what held NaN, or anything else
        return torch.empty(1, 64, 4, 32)

    assert not drawn.judge(lazy).passed


@pytest.mark.parametrize(
    ("case", "bound"),
    [(prefill(None, 1, 4096, 8, 64), "compute"), (decode(None, 1, 4096, 8, 8, 64), "bandwidth")],
)
def test_prediction_is_the_slower_of_computing_and_moving(case: Case, bound: str) -> None:
    found = predict(case, "fp32", flop_rate=1e12, bandwidth=1e10)
    assert found.bound == bound
    assert found.seconds == pytest.approx(max(found.flops / 1e12, found.bytes / 1e10))
    whole = found.flops if case.query_len == 1 else 2 * found.flops  # what a mask hides, too
    assert found.stored_seconds == pytest.approx(
        max(whole / 1e12, found.stored_bytes / 1e10), rel=1e-3
    )
    assert found.stored_bytes > found.bytes


@pytest.mark.parametrize("known", [{"flop_rate": None}, {"bandwidth": None}])
def test_prediction_without_a_ceiling_is_unknown(known: dict[str, None]) -> None:
    ceilings: dict[str, float | None] = {"flop_rate": 1.0, "bandwidth": 1.0, **known}
    found = predict(LARGE, "fp32", **ceilings)
    assert (found.seconds, found.stored_seconds, found.bound) == (None, None, None)
    assert found.flops > 0
