"""The host-clock timers, on a clock of their own: nothing here depends on real time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zenrepro.backends import timing


class Device:
    """A device that runs what it is given in order, beside a host with its own clock (seconds).

    ``start`` costs the host ``dispatch_s`` and queues work; ``wait`` moves the host to the end of
    the queue and costs ``wake_s``.
    """

    def __init__(self, dispatch_s: float = 20e-6, wake_s: float = 10e-6) -> None:
        self.host_s = 0.0
        self.free_s = 0.0
        self.dispatch_s, self.wake_s = dispatch_s, wake_s

    def start(self, seconds: float) -> Callable[[], Any]:
        def call() -> None:
            self.host_s += self.dispatch_s
            self.free_s = max(self.free_s, self.host_s) + seconds

        return call

    def wait(self, _: Any) -> None:
        self.host_s = max(self.host_s, self.free_s) + self.wake_s

    def perf_counter_ns(self) -> int:
        return round(self.host_s * 1e9)

    def perf_counter(self) -> float:
        return self.host_s


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    one = Device()
    monkeypatch.setattr(timing, "time", one)
    return one


@pytest.mark.parametrize("true_s", [50e-6, 1e-3, 0.2])
def test_behind_a_flush_neither_starting_nor_waiting_is_counted(
    device: Device, true_s: float
) -> None:
    seconds = timing.behind_flush(
        device.start(true_s), device.wait, device.start(300e-6), samples=5, warmup=2, budget_s=None
    )
    assert seconds == pytest.approx([true_s] * 5, abs=2e-9)


def test_a_call_too_short_to_tell_from_the_flush_is_not_timed_so(device: Device) -> None:
    flushes = iter([300e-6, 300e-6] + [300e-6, 310e-6, 290e-6, 320e-6, 280e-6, 300e-6] * 10)

    def flush() -> None:
        device.start(next(flushes))()

    assert (
        timing.behind_flush(
            device.start(1e-6), device.wait, flush, samples=6, warmup=1, budget_s=None
        )
        is None
    )


def test_short_calls_are_timed_in_batches(device: Device) -> None:
    seconds, method = timing.in_batches(
        device.start(40e-6), device.wait, samples=4, warmup=1, budget_s=None
    )
    # Alone it would read 70 us: 20 to start, 40 to run, 10 to wake.
    assert seconds == pytest.approx([40e-6] * 4, rel=0.05)
    assert "29 calls started back to back, divided by 29" in method


def test_a_long_call_is_its_own_sample(device: Device) -> None:
    seconds, method = timing.in_batches(
        device.start(0.1), device.wait, samples=3, warmup=0, budget_s=None
    )
    assert seconds == pytest.approx([0.1 + 30e-6] * 3)
    assert "dispatch included" in method


def test_the_time_box_stops_after_three(device: Device) -> None:
    seconds = timing.around(
        device.start(1.0), device.wait, None, samples=50, warmup=0, budget_s=0.5
    )
    assert len(seconds) == 3
    seconds = timing.around(
        device.start(0.1), device.wait, None, samples=50, warmup=0, budget_s=1.05
    )
    assert len(seconds) == 11


def test_emptying_the_cache_is_not_counted(device: Device) -> None:
    def flush() -> None:
        device.host_s += 1.0

    seconds = timing.around(
        device.start(0.1), device.wait, flush, samples=3, warmup=0, budget_s=None
    )
    assert seconds == pytest.approx([0.1 + 30e-6] * 3)


def test_the_cpus_flush_is_twice_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.cpu, "last_level_cache_bytes", lambda: 3 * 2**20)
    assert timing.CpuCache().mebibytes == 6
    monkeypatch.setattr(timing.cpu, "last_level_cache_bytes", lambda: None)
    assert timing.CpuCache().mebibytes == 128


def test_a_result_is_let_go_before_the_next_sample() -> None:
    alive: list[int] = []

    class Result:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    most = []
    timing.around(
        Result, lambda _: most.append(len(alive)), None, samples=3, warmup=2, budget_s=None
    )
    assert max(most) == 1
