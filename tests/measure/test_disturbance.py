"""The criteria: each is crossed by a little, and missed by a little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro.hardware import State
from zenrepro.measure import disturbance
from zenrepro.measure.disturbance import Seen, look

STEADY = [1.0 + 0.001 * (i % 3) for i in range(30)]


def judge(after: State, before: State | None = None, kind: str = "cuda") -> Seen:
    return look(STEADY, before or State(at_s=0.0), after, kind)


def test_an_undisturbed_device_gives_nothing() -> None:
    assert judge(State(at_s=1.0, other_processes=0, on_battery=False)) == Seen([], [])


def test_unknown_is_not_disturbed() -> None:
    assert judge(State(at_s=1.0)) == Seen([], [])


@pytest.mark.parametrize(
    ("cause", "held_s", "flags", "reasons"),
    [
        ("thermal", 0.04, 1, 0), ("thermal", 0.06, 0, 1), ("thermal", 0.0, 0, 0),
        ("power", 0.9, 1, 0), ("board limit", 0.06, 0, 1),
    ],
)  # fmt: skip
def test_throttled_time(cause: str, held_s: float, flags: int, reasons: int) -> None:
    seen = judge(
        State(at_s=1.0, throttled_s={cause: 3.0 + held_s}),
        State(at_s=0.0, throttled_s={cause: 3.0}),
    )
    assert (len(seen.flags), len(seen.reasons)) == (flags, reasons)


def test_a_counter_without_a_first_look_says_nothing() -> None:
    assert judge(State(at_s=1.0, throttled_s={"thermal": 3.0})) == Seen([], [])


@pytest.mark.parametrize(
    ("reason", "serious"),
    [
        ("thermal, hardware", True), ("thermal, software", True), ("power brake", True),
        ("hardware slowdown", True), ("power cap", False), ("application clocks", False),
    ],
)  # fmt: skip
def test_throttle_reasons_at_the_end(reason: str, serious: bool) -> None:
    seen = judge(State(at_s=1.0, throttle_reasons=[reason]))
    assert bool(seen.reasons) is serious
    assert bool(seen.flags) is not serious


def test_one_cause_is_told_once() -> None:
    seen = judge(
        State(at_s=1.0, throttled_s={"power": 0.5}, throttle_reasons=["power cap"]),
        State(at_s=0.0, throttled_s={"power": 0.0}),
    )
    assert seen.flags == ["clocks held back for 50% of the window (power)"]


@pytest.mark.parametrize(
    ("share", "disturbed"), [(0.0, False), (0.04, False), (0.06, True), (None, True)]
)
def test_another_process_is_flagged_and_disturbs_when_it_works(
    share: float | None, disturbed: bool
) -> None:
    seen = judge(State(at_s=1.0, other_processes=1, other_utilisation=share))
    assert bool(seen.reasons) is disturbed
    assert len(seen.flags) + len(seen.reasons) == 1


def test_a_process_that_left_is_seen_too() -> None:
    before = State(at_s=0.0, other_processes=1, other_utilisation=0.9)
    assert judge(State(at_s=1.0, other_processes=0), before).reasons


def busy(others: float, own: float, window_s: float = 1.0) -> tuple[State, State]:
    before = State(at_s=0.0, busy_s=100.0, own_busy_s=10.0, cores=2.0)
    after = State(
        at_s=window_s, busy_s=100.0 + (others + own) * window_s,
        own_busy_s=10.0 + own * window_s, cores=2.0,
    )  # fmt: skip
    return before, after


@pytest.mark.parametrize(
    ("others", "flags", "reasons"), [(0.0, 0, 0), (0.15, 0, 0), (0.3, 1, 0), (1.1, 0, 1)]
)
def test_the_load_of_others_on_a_cpu(others: float, flags: int, reasons: int) -> None:
    seen = look(STEADY, *busy(others, own=0.5), "cpu")
    assert (len(seen.flags), len(seen.reasons)) == (flags, reasons)


def test_our_own_load_on_two_cores_disturbs_nothing() -> None:
    assert look(STEADY, *busy(others=0.0, own=2.0), "cpu") == Seen([], [])


def test_a_window_shorter_than_the_counters_tick_says_nothing() -> None:
    before, after = busy(others=2.0, own=0.0, window_s=0.1)
    assert look(STEADY, before, after, "cpu") == Seen([], [])
    assert disturbance.describe(before, after) is None


def test_a_busy_cpu_does_not_disturb_a_gpu() -> None:
    assert look(STEADY, *busy(others=2.0, own=0.0), "cuda") == Seen([], [])


def test_the_load_is_told_in_words() -> None:
    assert disturbance.describe(*busy(others=1.5, own=0.5)) == "others used 1.5 of 2 cores"


def test_a_battery_disturbs() -> None:
    assert judge(State(at_s=1.0, on_battery=True)).reasons == ["ran on battery"]


@pytest.mark.parametrize(
    ("change", "flags", "reasons"),
    [(0.04, 0, 0), (0.1, 1, 0), (-0.1, 1, 0), (0.3, 0, 1), (-0.3, 0, 1)],
)
def test_drift(change: float, flags: int, reasons: int) -> None:
    seen = Seen([], [])
    disturbance.drift([1.0] * 10 + [1.0 + change / 2] * 10 + [1.0 + change] * 10, seen)
    assert (len(seen.flags), len(seen.reasons)) == (flags, reasons)


def test_noise_wider_than_the_drift_explains_it() -> None:
    seen = Seen([], [])
    disturbance.drift([1.0, 2.0] * 6 + [1.2, 2.2] * 6, seen)
    assert seen == Seen([], [])


@pytest.mark.parametrize(("apart", "disturbed"), [(0.1, False), (0.5, True)])
def test_two_groups(apart: float, disturbed: bool) -> None:
    samples = [1.0, 1.0 + apart] * 10
    seen = Seen([], [])
    disturbance.modes(samples, seen)
    assert bool(seen.reasons) is disturbed


def test_noise_is_rarely_taken_for_a_disturbance() -> None:
    """10 % noise, 15 samples: at most one run in fifty is disturbed by shape alone."""
    generator = np.random.default_rng(0)
    disturbed = 0
    for _ in range(1000):
        samples = np.exp(generator.normal(0, 0.1, 15)).tolist()
        disturbed += bool(look(samples, State(at_s=0.0), State(at_s=1.0), "cpu").reasons)
    assert disturbed <= 20


def test_two_noisy_groups_are_found() -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        samples = generator.normal(0, 0.02, 15) + generator.permutation([1.0] * 8 + [1.4] * 7)
        found += bool(look(samples.tolist(), State(at_s=0.0), State(at_s=1.0), "cpu").reasons)
    assert found >= 95


def test_a_few_outliers_are_no_group() -> None:
    seen = Seen([], [])
    disturbance.modes([1.0] * 27 + [5.0] * 3, seen)
    assert seen == Seen([], [])


@settings(deadline=None)
@given(st.lists(st.floats(1e-7, 1e3), max_size=14))
def test_too_few_samples_show_no_shape(samples: list[float]) -> None:
    assert look(samples, State(at_s=0.0), State(at_s=1.0), "cpu") == Seen([], [])


@settings(deadline=None)
@given(st.lists(st.floats(1.0, 1.04), min_size=10, max_size=60))
def test_steady_samples_are_never_disturbed(samples: list[float]) -> None:
    assert look(samples, State(at_s=0.0), State(at_s=1.0), "cpu") == Seen([], [])


@settings(deadline=None)
@given(st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=60), st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(samples: list[float], factor: float) -> None:
    def counts(values: list[float]) -> tuple[int, int]:
        seen = look(values, State(at_s=0.0), State(at_s=1.0), "cpu")
        return len(seen.flags), len(seen.reasons)

    exact = 2.0 ** round(factor)  # A power of two scales without rounding.
    assert counts(samples) == counts([s * exact for s in samples])
