"""NVIDIA GPUs through NVML (nvidia-ml-py). Numbers are those CUDA would give, after
CUDA_VISIBLE_DEVICES. Each figure that a driver does not give is None."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

from zenrepro.hardware import jetson
from zenrepro.hardware.state import State, Static

T = TypeVar("T")

# Bits of NVML's clock event reasons. "idle" is no throttling and is left out of what is reported.
_REASONS: dict[int, str] = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
# Policies of NVML's violation counters.
_POLICIES = {"power": 0, "thermal": 1, "board limit": 3, "reliability": 5}


def missing() -> str | None:
    """Why there is no NVIDIA GPU to use, in one line; None where there is."""
    if jetson.is_jetson():
        return None
    nvml, reason = _load()
    if nvml is None:
        return reason
    if not _visible():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            part = " (parts of a GPU, MIG, are not supported)" if "MIG" in hidden else ""
            return f"CUDA_VISIBLE_DEVICES={hidden!r} leaves no NVIDIA GPU visible{part}"
        return "the NVIDIA driver sees no GPU"
    return None


def count() -> int:
    """How many GPUs CUDA would see."""
    return 1 if jetson.is_jetson() else len(_visible())


def static(index: int) -> Static:
    """Name, memory, driver, power limit of CUDA device ``index``."""
    if jetson.is_jetson():
        return jetson.static()
    nvml, _ = _load()
    handle = _handle(index)
    capability = _ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    limit = _ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    memory = _ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return Static(
        names=[_text(nvml.nvmlDeviceGetName(handle))],
        identity=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(memory.total) if memory is not None else None,
        driver=_text(_ask(nvml.nvmlSystemGetDriverVersion)),
        power_limit_w=limit / 1000 if limit is not None else None,
        compute_capability=(int(capability[0]), int(capability[1])) if capability else None,
    )


def state(index: int, *, holds_context: bool) -> State:
    """Clocks, throttling, temperature, power and other processes, now.

    ``holds_context`` says that this process itself has opened the GPU: inside a container the
    driver may list it under another process number, so that one entry is taken for our own.
    """
    if jetson.is_jetson():
        return jetson.state()
    nvml, _ = _load()
    handle = _handle(index)
    clocks = {
        name: _ask(partial(nvml.nvmlDeviceGetClockInfo, handle, kind))
        for name, kind in (("sm", nvml.NVML_CLOCK_SM), ("memory", nvml.NVML_CLOCK_MEM))
    }
    power = _ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    others = _other_processes(handle, holds_context)
    return State(
        at_s=time.monotonic(),
        clocks_mhz={name: float(mhz) for name, mhz in clocks.items() if mhz is not None},
        throttle_reasons=_throttle_reasons(handle),
        throttled_s=_throttled(handle),
        temperature_c=_ask(
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
        power_w=power / 1000 if power is not None else None,
        other_processes=others,
        other_utilisation=_other_utilisation(handle) if others else None,
    )


def _throttle_reasons(handle: Any) -> list[str]:
    nvml, _ = _load()
    # The old name serves drivers and bindings from before 535.
    read = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    mask = _ask(lambda: read(handle)) if read else None
    if mask is None:
        old = getattr(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None)
        mask = _ask(lambda: old(handle)) if old else None
    return [name for bit, name in _REASONS.items() if mask is not None and mask & bit]


def _throttled(handle: Any) -> dict[str, float]:
    nvml, _ = _load()
    totals: dict[str, float] = {}
    for name, policy in _POLICIES.items():
        found = _ask(partial(nvml.nvmlDeviceGetViolationStatus, handle, policy))
        if found is not None:
            totals[name] = found.violationTime / 1e9
    return totals


def _other_processes(handle: Any, holds_context: bool) -> int | None:
    nvml, _ = _load()
    running = _ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    if running is None:
        return None
    pids = {process.pid for process in running}
    if os.getpid() in pids:
        return len(pids) - 1
    return max(0, len(pids) - 1) if holds_context else len(pids)


def _other_utilisation(handle: Any) -> float | None:
    """Share of the GPU's time that other processes' kernels ran in the last second."""
    nvml, _ = _load()
    since = int((time.time() - 1) * 1e6)
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(handle, since)
    except nvml.NVMLError_NotFound:
        return 0.0  # The driver's way to say that no process ran anything.
    except nvml.NVMLError:
        return None
    latest: dict[int, Any] = {}
    for sample in samples:
        if sample.pid not in latest or sample.timeStamp > latest[sample.pid].timeStamp:
            latest[sample.pid] = sample
    return min(1.0, sum(s.smUtil for p, s in latest.items() if p != os.getpid()) / 100)


@cache
def _load() -> tuple[Any, str | None]:
    """(NVML, None), or (None, why not)."""
    try:
        import pynvml
    except ImportError:
        return None, "nvidia-ml-py is not installed, so NVIDIA GPUs cannot be seen"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"no NVIDIA driver ({error})"
    return pynvml, None


@cache
def _visible() -> tuple[int, ...]:
    """NVML indices of the GPUs that CUDA sees, in CUDA's order (by PCI bus: see ``order``)."""
    nvml, _ = _load()
    if nvml is None:
        return ()
    every = range(nvml.nvmlDeviceGetCount())
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(every)
    chosen: list[int] = []
    for entry in (part.strip() for part in wanted.split(",")):
        index = _find(entry, every)
        if index is None:
            break  # CUDA ignores what follows the first entry that it does not know.
        chosen.append(index)
    return tuple(chosen)


def _find(entry: str, every: range) -> int | None:
    nvml, _ = _load()
    if entry.isdigit():
        return int(entry) if int(entry) in every else None
    if not entry:
        return None
    for index in every:
        uuid = _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
        if uuid.startswith(entry):
            return index
    return None


def order() -> None:
    """Make CUDA number GPUs as NVML does. Takes effect before a framework opens CUDA."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def _handle(index: int) -> Any:
    nvml, _ = _load()
    return nvml.nvmlDeviceGetHandleByIndex(_visible()[index])


def _ask(question: Callable[[], T]) -> T | None:
    """The answer, or None where this driver or GPU does not give it."""
    nvml, _ = _load()
    try:
        return question()
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
