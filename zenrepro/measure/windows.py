"""Energy of a call that repeats, by the counters that Zeus finds, with idle power beside it.

Zeus (You et al., NSDI 2023; package ``zeus``) reads NVML, RAPL, Apple's and Jetson's counters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from zenrepro.backends import Backend
from zenrepro.backends.base import one_line
from zenrepro.hardware import jetson

# Counters move about every 100 ms: a shorter window is mostly rounding.
SHORTEST_S = 2.0
# Calls are started for so long before they are waited for.
_QUEUE_S = 0.05
# A device that was busy keeps its clocks and its heat up for a while.
_SETTLE_S = 3.0
_IDLE_S = 2.0
_KEY = "zenrepro"

_idle_w: dict[tuple[str, str], float | None] = {}


class Monitor(Protocol):
    """The part of ``zeus.monitor.ZeusMonitor`` that is used."""

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        """Begin to count."""

    def end_window(self, key: str, sync_execution: bool = True) -> Any:
        """Stop, and return a measurement: gpu_energy, cpu_energy, dram_energy, soc_energy."""


class EnergyWindow(msgspec.Struct, kw_only=True):
    """Energy of ``calls`` calls in ``seconds``. ``joules`` None is unknown; ``reason`` says why.

    ``idle_w`` is the same counter's power with nothing running; it is not taken off ``joules``.
    """

    joules: float | None
    seconds: float
    calls: int
    idle_w: float | None
    reason: str | None
    method: str | None = None


def energy(
    backend: Backend,
    call: Callable[[], Any],
    *,
    seconds: float,
    monitor: Monitor | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> EnergyWindow:
    """Repeat ``call`` for ``seconds`` (at least 2; 30 or more for a reported row) and read what
    the device counted.

    ``monitor`` and ``sleep`` stand in for Zeus and the clock in tests. Errors of the call are
    raised; a device without a counter is a reason.
    """
    if seconds < SHORTEST_S:
        return _unknown(
            f"a window of {seconds:g} s is too short: counters move every 100 ms or so; "
            f"it takes at least {SHORTEST_S:g} s"
        )
    if monitor is None:
        monitor, reason = open_monitor(backend)
        if monitor is None:
            return _unknown(reason or "no monitor")
    backend.synchronise(backend.start(call))
    monitor.begin_window(_KEY, sync_execution=False)
    trial = monitor.end_window(_KEY, sync_execution=False)
    if not counts(trial, backend.kind):
        return _unknown(read(trial, backend.kind, backend.index)[1])
    idle_w = _idle(backend, monitor, sleep)
    batch = _batch(backend, call)
    calls = 0
    monitor.begin_window(_KEY, sync_execution=False)
    begin = time.perf_counter()
    try:
        while time.perf_counter() - begin < seconds:
            result = None
            for _ in range(batch):
                result = backend.start(call)
            backend.synchronise(result)
            calls += batch
    finally:
        elapsed = time.perf_counter() - begin
        measurement = monitor.end_window(_KEY, sync_execution=False)
    joules, source = read(measurement, backend.kind, backend.index)
    if joules is None:
        return EnergyWindow(joules=None, seconds=elapsed, calls=calls, idle_w=None, reason=source)
    return EnergyWindow(
        joules=joules,
        seconds=elapsed,
        calls=calls,
        idle_w=idle_w,
        reason=None,
        method=f"{source}, {elapsed:.1f} s of back-to-back calls; idle power not taken off",
    )


def open_monitor(backend: Backend) -> tuple[Monitor | None, str | None]:
    """A Zeus monitor for the backend's device; or None, and why."""
    if backend.kind == "tpu":
        return None, "no TPU tells its energy"
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError as error:
        return None, f"zeus is not installed ({one_line(error)})"
    discrete = backend.kind in ("cuda", "gpu") and not jetson.is_jetson()
    try:
        return (
            ZeusMonitor(
                gpu_indices=[backend.index] if discrete else [],
                cpu_indices=[] if discrete else None,
            ),
            None,
        )
    except Exception as error:  # noqa: BLE001  (whatever a driver does wrong: energy is unknown)
        return None, f"zeus cannot read this device: {one_line(error)}"


def counts(measurement: Any, kind: str) -> bool:
    """Whether any counter of this kind of device was read at all, moved or not."""
    if kind in ("cuda", "gpu") and measurement.gpu_energy:
        return True
    if getattr(measurement, "soc_energy", None) is not None:
        return True
    return kind == "cpu" and bool(measurement.cpu_energy)


def read(measurement: Any, kind: str, index: int) -> tuple[float | None, str]:
    """(joules, what counted them) of the device; (None, why) where nothing did.

    An empty reading, or a counter that did not move, is unknown and never 0 J.
    """
    if kind in ("cuda", "gpu") and measurement.gpu_energy:
        joules = measurement.gpu_energy.get(index)
        return _positive(joules, "NVML's energy counter of the GPU")
    soc = getattr(measurement, "soc_energy", None)
    if soc is not None:
        return _soc(soc, kind)
    packages = measurement.cpu_energy
    if kind == "cpu" and packages:
        memory = measurement.dram_energy or {}
        source = "RAPL, packages and memory" if memory else "RAPL, packages without memory"
        return _positive(sum(packages.values()) + sum(memory.values()), source)
    return None, (
        "this device has no energy counter that can be read here "
        "(NVML, RAPL as root, Apple silicon and Jetson were tried)"
    )


def _soc(soc: Any, kind: str) -> tuple[float | None, str]:
    total = getattr(soc, "total_energy_mj", None)
    if total is not None:
        return _positive(total / 1e3, "the Jetson board's total power rail")
    names = {
        "cpu_total_mj": "CPU", "gpu_mj": "GPU", "gpu_sram_mj": "GPU SRAM", "dram_mj": "memory",
        "ane_mj": "neural engine", "cpu_energy_mj": "CPU", "gpu_energy_mj": "GPU",
    }  # fmt: skip
    parts = {
        text: float(value)
        for name, text in names.items()
        if (value := getattr(soc, name, None)) is not None
    }
    wanted = "CPU" if kind == "cpu" else "GPU"
    if wanted not in parts:
        return None, f"this chip tells no energy of its {wanted}"
    return _positive(sum(parts.values()) / 1e3, f"the chip's counters ({', '.join(parts)})")


def _positive(joules: float | None, source: str) -> tuple[float | None, str]:
    if joules is None or not joules > 0:
        return None, f"{source} did not move"
    return float(joules), source


def _idle(backend: Backend, monitor: Monitor, sleep: Callable[[float], None]) -> float | None:
    """Power with nothing running, measured once a process and device."""
    key = (backend.name, backend.device)
    if key not in _idle_w:
        sleep(_SETTLE_S)
        monitor.begin_window(_KEY, sync_execution=False)
        begin = time.perf_counter()
        sleep(_IDLE_S)
        elapsed = time.perf_counter() - begin
        joules, _ = read(
            monitor.end_window(_KEY, sync_execution=False), backend.kind, backend.index
        )
        _idle_w[key] = joules / elapsed if joules is not None else None
    return _idle_w[key]


def _batch(backend: Backend, call: Callable[[], Any]) -> int:
    begin = time.perf_counter()
    backend.synchronise(backend.start(call))
    once_s = max(time.perf_counter() - begin, 1e-6)
    return max(1, min(1000, int(_QUEUE_S / once_s)))


def _unknown(reason: str) -> EnergyWindow:
    return EnergyWindow(joules=None, seconds=0.0, calls=0, idle_w=None, reason=reason)
