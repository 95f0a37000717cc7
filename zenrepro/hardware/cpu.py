"""The CPU: model, usable cores, memory, and how busy others keep it (psutil)."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

from zenrepro.hardware import apple, jetson
from zenrepro.hardware.state import State, Static

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUP = Path("/sys/fs/cgroup")


@cache
def static() -> Static:
    """Model with its usable cores, and memory rounded to whole GiB.

    Rounded, because what a kernel keeps for itself differs from boot to boot, and a machine's
    class must not.
    """
    total = memory_bytes()
    gib = 2**30
    return Static(
        names=[model()],
        identity="cpu",
        memory_bytes=round(total / gib) * gib if total is not None and total >= gib else total,
        power_mode=jetson.power_mode() if jetson.is_jetson() else None,
    )


@cache
def model() -> str:
    """The CPU's name as it calls itself, such as "Intel(R) Xeon(R) CPU @ 2.20GHz"."""
    if platform.system() == "Darwin":
        return apple.brand() or "Apple silicon"
    text = _read(_CPUINFO) or ""
    # ARM kernels give no name: the board's says more than the architecture's.
    for pattern in (r"^model name\s*:\s*(.+)$", r"^Hardware\s*:\s*(.+)$"):
        match = re.search(pattern, text, re.MULTILINE)
        if match and match.group(1).strip():
            return match.group(1).strip()
    board = _read(Path("/proc/device-tree/model"))
    return board.strip("\0 \n") if board else platform.machine() or "unknown CPU"


@cache
def cores() -> int:
    """Cores that this process may use: physical ones, less what affinity or a cgroup holds back."""
    psutil = _psutil()
    logical = os.cpu_count() or 1
    physical = (psutil.cpu_count(logical=False) if psutil else None) or logical
    usable = physical
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        if allowed < logical:
            usable = min(usable, allowed)
    quota = re.fullmatch(r"(\d+) (\d+)", (_read(_CGROUP / "cpu.max") or "").strip())
    if quota and int(quota.group(2)):
        usable = min(usable, max(1, math.ceil(int(quota.group(1)) / int(quota.group(2)))))
    return usable


@cache
def memory_bytes() -> int | None:
    """Memory that this process may use: the machine's, or its cgroup's limit where lower."""
    psutil = _psutil()
    total = int(psutil.virtual_memory().total) if psutil else None
    limit = (_read(_CGROUP / "memory.max") or "").strip()
    if limit.isdigit():
        total = min(int(limit), total) if total is not None else int(limit)
    return total


@cache
def last_level_cache_bytes() -> int | None:
    """Size of the largest cache, or None where the system does not tell."""
    if platform.system() == "Darwin":
        sizes = [
            apple.sysctl(name)
            for name in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize")
        ]
        return max((int(s) for s in sizes if s and s.isdigit()), default=0) or None
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
    found = [
        int(match.group(1)) * scale[match.group(2)]
        for path in _CACHES.glob("index*/size")
        if (match := re.fullmatch(r"(\d+)([KMG]?)", (_read(path) or "").strip()))
    ]
    return max(found, default=0) or None


def state() -> State:
    """Clock, battery, and the CPU time that this process and all others have used so far."""
    psutil = _psutil()
    if psutil is None:
        return State(at_s=time.monotonic(), cores=float(cores()), load_average=_load_average())
    return State(
        at_s=time.monotonic(),
        clocks_mhz=_clock(psutil),
        temperature_c=_temperature(psutil),
        busy_s=_busy(psutil),
        own_busy_s=_own_busy(psutil),
        cores=float(cores()),
        load_average=_load_average(),
        on_battery=on_battery(),
    )


def on_battery() -> bool | None:
    """Whether the machine runs from its battery; False without one, None where unknown."""
    psutil = _psutil()
    if psutil is None or not hasattr(psutil, "sensors_battery"):
        return None
    try:
        battery = psutil.sensors_battery()
    except (OSError, RuntimeError, NotImplementedError):
        return None
    if battery is None:
        return False
    return None if battery.power_plugged is None else not battery.power_plugged


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _clock(psutil: Any) -> dict[str, float]:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError, AttributeError):
        return {}
    return {"cpu": round(float(frequency.current), 1)} if frequency and frequency.current else {}


def _temperature(psutil: Any) -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    try:
        sensors = read()
    except (OSError, RuntimeError, NotImplementedError):
        return None
    for name in ("coretemp", "k10temp", "zenpower", "cpu_thermal"):
        values = [entry.current for entry in sensors.get(name, ()) if entry.current]
        if values:
            return float(max(values))
    return None


def _busy(psutil: Any) -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guest time is part of user time already; stolen time is someone else's work.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - idle - guests)


def _own_busy(psutil: Any) -> float:
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    try:
        children = psutil.Process().children(recursive=True)
    except psutil.Error:
        return total
    for child in children:
        try:
            used = child.cpu_times()
        except psutil.Error:
            continue  # It ended between the two calls; its time is in ours once it is reaped.
        total += used.user + used.system
    return total


@cache
def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
