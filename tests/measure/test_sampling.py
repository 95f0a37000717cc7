"""Sampling: what becomes of samples, disturbance, lack of memory and other errors."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest

from zenrepro import backends, measure
from zenrepro.backends import Timing
from zenrepro.backends.turns import Turn
from zenrepro.errors import InputError
from zenrepro.hardware import State
from zenrepro.measure import sampling
from zenrepro.records import Status


def nothing() -> None:
    """A call that does nothing."""


def test_an_undisturbed_measurement_is_ok(scripted: Any) -> None:
    scripted.peak = 4096
    scripted.states = [State(at_s=0.0), State(at_s=1.0, clocks_mhz={"sm": 1980.0})]
    sampled = measure.sample(scripted, nothing, scale="small")
    assert sampled.status is Status.OK
    assert sampled.reason is None
    assert sampled.flags == []
    assert sampled.seconds == [1e-3] * 15
    assert sampled.method == "by script"
    assert sampled.peak_bytes == 4096
    assert sampled.state.clocks_mhz == {"sm": 1980.0}
    assert sampled.state.packages == scripted.packages()


def test_a_throttled_one_is_disturbed_and_keeps_its_samples(scripted: Any) -> None:
    scripted.states = [
        State(at_s=0.0, throttled_s={"thermal": 5.0}),
        State(at_s=1.0, throttled_s={"thermal": 5.5}),
    ]
    sampled = measure.sample(scripted, nothing, scale="small")
    assert sampled.status is Status.DISTURBED
    assert sampled.reason == "clocks held back for 50% of the window (thermal)"
    assert len(sampled.seconds) == 15


def test_all_reasons_are_told(scripted: Any) -> None:
    scripted.states = [State(at_s=0.0), State(at_s=1.0, on_battery=True, other_processes=2)]
    sampled = measure.sample(scripted, nothing, scale="small")
    assert sampled.reason == "2 other processes on the device, use unknown; ran on battery"
    assert sampled.state.other_load == "2 other processes on the device"


@pytest.mark.parametrize("where", ["peak_memory", "time"])
def test_lack_of_memory_is_a_status_and_memory_is_given_back(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    class Large:
        pass

    seen: list[weakref.ref[Large]] = []

    def fail(*_: Any, **__: Any) -> None:
        large = Large()  # Held by this frame, and so by the error's traceback.
        seen.append(weakref.ref(large))
        raise scripted.OutOfMemory("tried to allocate 512 GiB\nand a long tail")

    monkeypatch.setattr(scripted, where, fail)
    sampled = measure.sample(scripted, nothing, scale="full")
    assert sampled.status is Status.OOM
    assert sampled.reason == "out of memory: tried to allocate 512 GiB"
    assert sampled.seconds == []
    assert sampled.peak_bytes is None
    assert scripted.released == 1
    gc.collect()
    assert seen[0]() is None


def test_any_other_error_is_raised(scripted: Any) -> None:
    def call() -> None:
        raise ZeroDivisionError("of the call")

    with pytest.raises(ZeroDivisionError, match="of the call"):
        measure.sample(scripted, call, scale="smoke")


def test_an_unknown_scale_names_the_scales(scripted: Any) -> None:
    with pytest.raises(InputError, match="unknown scale 'big'; wanted one of smoke, small, full"):
        measure.sample(scripted, nothing, scale="big")


@pytest.mark.parametrize(
    ("scale", "once_s", "samples", "warmup"),
    [
        ("smoke", 1e-5, 3, 1), ("small", 1e-3, 15, 50), ("full", 1e-3, 50, 250),
        ("full", 1.0, 10, 1), ("small", 2.5, 4, 0), ("small", 8.0, 1, 0), ("full", 60.0, 1, 0),
    ],
)  # fmt: skip
def test_slow_calls_get_fewer_samples(
    scripted: Any,
    monkeypatch: pytest.MonkeyPatch,
    scale: str,
    once_s: float,
    samples: int,
    warmup: int,
) -> None:
    monkeypatch.setattr(sampling, "_once", lambda backend, call: once_s)
    measure.sample(scripted, nothing, scale=scale)
    assert scripted.asked["samples"] == samples
    assert scripted.asked["warmup"] == warmup


def test_a_compiling_first_call_does_not_make_it_slow(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([4.0, 1e-3])
    monkeypatch.setattr(sampling, "_once", lambda backend, call: next(times))
    measure.sample(scripted, nothing, scale="small")
    assert scripted.asked["samples"] == 15


def test_fewer_samples_than_planned_are_flagged(scripted: Any) -> None:
    scripted.seconds = [1.0, 1.0, 1.0]
    sampled = measure.sample(scripted, nothing, scale="small")
    assert sampled.flags == ["time box: 3 of 15 samples"]
    assert sampled.status is Status.OK


@pytest.mark.parametrize("name", backends.NAMES)
def test_real_backends_are_sampled(name: str) -> None:
    try:
        backend = backends.open(name, "cpu")
    except backends.Unavailable as error:
        pytest.skip(str(error))
    a = backend.random((16, 16), "fp32", 0)
    product = backend.compile(lambda x: x @ x)
    sampled = measure.sample(backend, lambda: product(a), scale="smoke")
    # A busy machine may disturb it; either way the samples are there.
    assert sampled.status in (Status.OK, Status.DISTURBED)
    assert len(sampled.seconds) == 3
    assert all(math.isfinite(s) and s > 0 for s in sampled.seconds)
    assert sampled.state.packages[name]


def test_calls_are_sampled_together_and_the_method_says_beside_which(scripted: Any) -> None:
    sampled = measure.sample_together(scripted, {"a": nothing, "b": nothing}, scale="small")
    assert list(sampled) == ["a", "b"]
    assert sampled["a"].status is Status.OK
    assert sampled["a"].seconds == [1e-3] * 15 * 15  # the script gives 15 for each one asked
    assert sampled["a"].method == "by script; in turn with b"
    assert sampled["b"].method == "by script; in turn with a"
    alone = measure.sample_together(scripted, {"a": nothing}, scale="small")
    assert alone["a"].method == "by script; by itself"


def test_one_that_fails_or_runs_out_of_memory_takes_no_other_down(scripted: Any) -> None:
    def wrong() -> None:
        raise ZeroDivisionError("of the call\nand more")

    def huge() -> None:
        raise scripted.OutOfMemory("tried to allocate 512 GiB")

    sampled = measure.sample_together(
        scripted, {"a": nothing, "wrong": wrong, "huge": huge, "b": nothing}, scale="small"
    )
    assert [one.status.value for one in sampled.values()] == ["ok", "failed", "oom", "ok"]
    assert sampled["wrong"].reason == "ZeroDivisionError: of the call"
    assert sampled["huge"].reason == "out of memory: tried to allocate 512 GiB"
    assert sampled["wrong"].seconds == sampled["huge"].seconds == []
    assert sampled["a"].method == "by script; in turn with b"
    assert scripted.released == 2


def test_those_that_were_timed_apart_are_flagged(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(calls: Any, **_: Any) -> dict[str, Turn]:
        return {
            "a": Turn(Timing([1e-3] * 15, "m"), None, ("b",)),
            "b": Turn(Timing([1e-3] * 15, "m"), None, ("a",)),
            "c": Turn(Timing([1e-3] * 15, "m"), None, ()),
            "d": Turn(None, scripted.OutOfMemory("no"), ()),
        }

    monkeypatch.setattr(scripted, "time_together", apart)
    sampled = measure.sample_together(scripted, dict.fromkeys("abcd", nothing), scale="small")
    assert sampled["a"].flags == ["not in turn with c: no memory for all at once"]
    assert sampled["c"].flags == ["not in turn with a, b: no memory for all at once"]
    assert sampled["c"].method == "m; by itself"
    assert sampled["d"].status is Status.OOM


@pytest.mark.parametrize("name", backends.NAMES)
def test_real_backends_are_sampled_together(name: str) -> None:
    try:
        backend = backends.open(name, "cpu")
    except backends.Unavailable as error:
        pytest.skip(str(error))
    a = backend.random((16, 16), "fp32", 0)
    product = backend.compile(lambda x: x @ x)
    calls = {"one": lambda: product(a), "two": lambda: product(a)}
    for one in measure.sample_together(backend, calls, scale="smoke").values():
        assert one.status in (Status.OK, Status.DISTURBED)
        assert len(one.seconds) == 3
        assert "in turn with" in one.method
