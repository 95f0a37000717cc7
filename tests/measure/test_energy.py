"""Energy windows with a monitor that plays counters back; unknown is never 0 J."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from zenrepro import measure
from zenrepro.measure import windows


class Clock:
    """A clock that moves only when asked to wait or when a call is made."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Replay:
    """Counters of a device that draws ``idle_w``, and ``busy_w`` while calls run."""

    def __init__(self, clock: Clock, idle_w: float, busy_w: float) -> None:
        self.clock, self.idle_w, self.busy_w = clock, idle_w, busy_w
        self.joules = 1e6
        self.begun_j = 0.0
        self.shape = lambda joules: SimpleNamespace(
            gpu_energy={0: joules}, cpu_energy=None, dram_energy=None, soc_energy=None
        )
        self.syncs: list[bool] = []

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        self.syncs.append(sync_execution)
        self.begun_j = self.joules

    def end_window(self, key: str, sync_execution: bool = True) -> Any:
        self.syncs.append(sync_execution)
        return self.shape(self.joules - self.begun_j)

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.joules += seconds * self.idle_w

    def work(self) -> None:
        """One call: 10 ms."""
        self.clock.sleep(0.01)
        self.joules += 0.01 * self.busy_w


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Replay:
    clock = Clock()
    monkeypatch.setattr(windows, "time", clock)
    monkeypatch.setattr(windows, "_idle_w", {})
    return Replay(clock, idle_w=77.0, busy_w=650.0)


@pytest.fixture
def gpu(scripted: Any) -> Any:
    return type(scripted)("cuda:0")


def run(backend: Any, replay: Replay, seconds: float = 2.0) -> measure.EnergyWindow:
    return measure.energy(backend, replay.work, seconds=seconds, monitor=replay, sleep=replay.sleep)


def test_energy_calls_and_idle_power(gpu: Any, replay: Replay) -> None:
    window = run(gpu, replay)
    assert window.reason is None
    assert window.joules == pytest.approx(650 * window.seconds)
    assert window.seconds >= 2.0
    assert window.calls == round(window.seconds / 0.01)
    assert window.idle_w == pytest.approx(77.0)
    assert window.method is not None
    assert "NVML" in window.method
    assert not any(replay.syncs)  # We wait for the device ourselves, whatever the framework.


def test_idle_power_is_measured_once_a_device(gpu: Any, replay: Replay) -> None:
    run(gpu, replay)
    replay.idle_w = 500.0
    assert run(gpu, replay).idle_w == pytest.approx(77.0)


def test_an_empty_reading_is_unknown_and_costs_no_window(gpu: Any, replay: Replay) -> None:
    replay.shape = lambda joules: SimpleNamespace(
        gpu_energy={}, cpu_energy=None, dram_energy=None, soc_energy=None
    )
    window = run(gpu, replay, seconds=30)
    assert window.joules is None
    assert window.idle_w is None
    assert window.reason is not None
    assert "no energy counter" in window.reason
    assert replay.clock.now_s < 1


def test_a_counter_that_does_not_move_is_unknown(gpu: Any, replay: Replay) -> None:
    replay.idle_w = replay.busy_w = 0.0
    window = run(gpu, replay)
    assert window.joules is None
    assert window.reason == "NVML's energy counter of the GPU did not move"


def test_another_cards_energy_is_not_ours(replay: Replay) -> None:
    reading = SimpleNamespace(gpu_energy={0: 5.0}, cpu_energy=None, dram_energy=None)
    assert windows.read(reading, "cuda", 1)[0] is None


def test_a_short_window_is_refused(gpu: Any, replay: Replay) -> None:
    window = run(gpu, replay, seconds=0.5)
    assert window.joules is None
    assert window.calls == 0
    assert window.reason is not None
    assert "too short" in window.reason


def test_an_error_of_the_call_is_raised_and_the_window_closed(gpu: Any, replay: Replay) -> None:
    calls = iter(range(5))

    def call() -> None:
        if next(calls) == 4:
            raise ZeroDivisionError("of the call")
        replay.work()

    with pytest.raises(ZeroDivisionError):
        measure.energy(gpu, call, seconds=2.0, monitor=replay, sleep=replay.sleep)
    assert len(replay.syncs) % 2 == 0


@pytest.mark.parametrize(
    ("reading", "kind", "joules", "source"),
    [
        ({"cpu_energy": {0: 30.0, 1: 10.0}, "dram_energy": {0: 2.0}}, "cpu", 42.0, "and memory"),
        ({"cpu_energy": {0: 30.0}}, "cpu", 30.0, "without memory"),
        ({"cpu_energy": {0: 30.0}}, "cuda", None, "no energy counter"),
        ({"cpu_energy": {0: 30.0}, "gpu_energy": {0: 9.0}}, "cpu", 30.0, "RAPL"),
        ({"soc_energy": SimpleNamespace(cpu_total_mj=1000, gpu_mj=500, dram_mj=250)}, "metal",
         1.75, "CPU, GPU, memory"),
        ({"soc_energy": SimpleNamespace(cpu_total_mj=1000, gpu_mj=None)}, "metal", None, "its GPU"),
        ({"soc_energy": SimpleNamespace(total_energy_mj=9000.0, gpu_energy_mj=1.0)}, "cuda", 9.0,
         "Jetson"),
        ({}, "cpu", None, "no energy counter"),
    ],
)  # fmt: skip
def test_each_makers_counters(
    reading: dict[str, Any], kind: str, joules: float | None, source: str
) -> None:
    empty = {"gpu_energy": {}, "cpu_energy": None, "dram_energy": None, "soc_energy": None}
    found, text = windows.read(SimpleNamespace(**{**empty, **reading}), kind, 0)
    assert found == joules
    assert source in text


def test_without_zeus_there_is_a_reason(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    window = measure.energy(gpu, lambda: None, seconds=2.0)
    assert window.joules is None
    assert window.reason is not None
    assert window.reason.startswith("zeus is not installed")


def test_this_machine_answers_or_says_why(scripted: Any) -> None:
    monitor, reason = windows.open_monitor(scripted)
    assert (monitor is None) != (reason is None)
