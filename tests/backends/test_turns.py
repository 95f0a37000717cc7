"""Several calls sampled in turn: the order of rounds, the time box, and calls that fail."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import backends
from zenrepro.backends import turns
from zenrepro.backends.timing import BehindFlush, Flushed, Timing


class Script:
    """A sampler that notes when it was asked; ``fails_at`` is the sample that raises."""

    def __init__(self, name: str, log: list[str], fails_at: int | None = None) -> None:
        self.name, self.log, self.fails_at = name, log, fails_at
        self.taken = 0

    def take(self) -> None:
        self.log.append(self.name)
        if self.taken == self.fails_at:
            raise ValueError(f"{self.name} broke")
        self.taken += 1

    def timing(self) -> Timing:
        return Timing([1.0] * self.taken, "by script")


def test_each_round_has_each_call_once_and_another_one_first() -> None:
    order = list(turns.rounds({"a": 4, "b": 4, "c": 4}))
    assert order == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40)))
def test_every_call_gets_its_samples_at_even_distances(wanted: dict[str, int]) -> None:
    order = list(turns.rounds(wanted))
    assert len(order) == max(wanted.values(), default=0)
    for name, count in wanted.items():
        places = [i for i, names in enumerate(order) if name in names]
        assert len(places) == count
        assert all(names.count(name) <= 1 for names in order)
        gaps = [b - a for a, b in itertools.pairwise(places)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_samples_of_all_calls_are_spread_over_the_same_rounds() -> None:
    log: list[str] = []
    samplers = {name: Script(name, log) for name in "ab"}
    got = turns.take_in_turn(samplers, {"a": 4, "b": 4}, None)
    assert log == ["a", "b", *"ab", *"ba", *"ab"]
    assert got["a"].timing == Timing([1.0] * 4, "by script")
    assert (got["a"].beside, got["b"].beside) == (("b",), ("a",))


def test_a_call_that_fails_drops_out_and_the_others_go_on() -> None:
    log: list[str] = []
    samplers = {"a": Script("a", log), "b": Script("b", log, fails_at=2), "c": Script("c", log)}
    got = turns.take_in_turn(samplers, dict.fromkeys("abc", 5), None)
    assert str(got["b"].error) == "b broke"
    assert got["b"].timing is None
    assert log.count("b") == 3
    for name, beside in (("a", "c"), ("c", "a")):
        timing = got[name].timing
        assert timing is not None
        assert len(timing.seconds) == 5
        assert got[name].beside == (beside,)


@pytest.mark.parametrize(
    ("samples", "length_s", "budget_s", "fits"),
    [(50, 0.01, 3.0, 50), (50, 0.1, 3.0, 30), (50, 2.0, 3.0, 3), (2, 9.0, 3.0, 2), (7, 1, None, 7)],
)
def test_the_time_box_is_each_calls_own(
    samples: int, length_s: float, budget_s: float | None, fits: int
) -> None:
    assert turns.fitting(samples, length_s, budget_s) == fits


def test_an_error_lets_go_of_what_its_call_held() -> None:
    class Large:
        pass

    seen = []

    def fail() -> None:
        large = Large()
        seen.append(weakref.ref(large))
        raise RuntimeError("no")

    try:
        fail()
    except RuntimeError as error:
        kept = turns.forgotten(error)
    gc.collect()
    assert str(kept) == "no"
    assert seen[0]() is None


def test_every_backend_times_calls_together(backend: backends.Backend) -> None:
    a = backend.random((16, 16), "fp32", seed=0)
    product = backend.compile(lambda x: x @ x)

    def broken() -> object:
        raise ZeroDivisionError("of the call")

    calls: dict[str, Callable[[], object]] = {
        "one": lambda: product(a), "two": lambda: product(a), "broken": broken,
    }  # fmt: skip
    got = backend.time_together(
        calls, samples=dict.fromkeys(calls, 4), warmup=dict.fromkeys(calls, 1), cold=True
    )
    assert list(got) == list(calls)
    assert isinstance(got["broken"].error, ZeroDivisionError)
    for name in ("one", "two"):
        timing = got[name].timing
        assert timing is not None
        assert len(timing.seconds) == 4
        assert min(timing.seconds) > 0
        assert "caches emptied" in timing.method
    assert got["one"].beside == ("two",)


def test_what_the_flush_hides_is_timed_in_batches_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = BehindFlush(lambda: None, lambda _: None, lambda: None, 1)
    monkeypatch.setattr(pairs, "_alone", [1.0, 1.1, 0.9])
    monkeypatch.setattr(pairs, "_together", [1.01, 1.02, 1.0])
    sampler = Flushed(pairs, "behind a flush", lambda n: ([2e-6] * n, "in batches, by itself"))
    assert sampler.timing() == Timing([2e-6] * 3, "in batches, by itself")
    monkeypatch.setattr(pairs, "_together", [3.0, 3.1, 2.9])
    assert sampler.timing().method == "behind a flush"
