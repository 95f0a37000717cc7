"""NVIDIA Jetson boards through Linux's own files: their GPU shares the CPU's memory, and NVML
knows little of it."""

from __future__ import annotations

import re
import time
from functools import cache
from pathlib import Path

from zenrepro.hardware.state import State, Static

_RELEASE = Path("/etc/nv_tegra_release")
_MODEL = Path("/proc/device-tree/model")
_MEMORY = Path("/proc/meminfo")
_POWER_MODE = Path("/var/lib/nvpmodel/status")
_POWER_MODES = Path("/etc/nvpmodel.conf")
_DEVFREQ = Path("/sys/class/devfreq")
_THERMAL = Path("/sys/class/thermal")
# Compute capability by the GPU generation that the board's name gives.
_CAPABILITIES = (("thor", (11, 0)), ("orin", (8, 7)), ("xavier", (7, 2)))


@cache
def is_jetson() -> bool:
    """Whether this machine is a Jetson."""
    return _RELEASE.exists()


def static() -> Static:
    """Board, memory (all of it: CPU and GPU share it), L4T release, power mode."""
    model = _read(_MODEL) or "NVIDIA Jetson"
    release = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", _read(_RELEASE) or "")
    capability = next((c for word, c in _CAPABILITIES if word in model.lower()), None)
    return Static(
        # A datasheet describes the module; the kit around it differs by name only.
        names=[model, re.sub(r"\s+(Developer Kit|Engineering Reference.*)$", "", model)],
        identity="jetson",
        memory_bytes=_memory_bytes(),
        driver=f"L4T {release.group(1)}.{release.group(2)}" if release else None,
        compute_capability=capability,
        power_mode=power_mode(),
    )


def state() -> State:
    """GPU clock and temperature, now."""
    clocks: dict[str, float] = {}
    for folder in sorted(_DEVFREQ.glob("*gpu*")) + sorted(_DEVFREQ.glob("*gv11b*")):
        hertz = _read(folder / "cur_freq")
        if hertz and hertz.isdigit():
            clocks["sm"] = int(hertz) / 1e6
    return State(
        at_s=time.monotonic(), clocks_mhz=clocks, temperature_c=_temperature(), on_battery=None
    )


def power_mode() -> str | None:
    """The name of nvpmodel's mode, such as "MAXN" or "MODE_30W"."""
    status = re.search(r"(\d+)", _read(_POWER_MODE) or "")
    if not status:
        return None
    for number, name in re.findall(
        r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", _read(_POWER_MODES) or ""
    ):
        if int(number) == int(status.group(1)):
            return str(name)
    return f"mode {int(status.group(1))}"


def _temperature() -> float | None:
    for zone in sorted(_THERMAL.glob("thermal_zone*")):
        if "gpu" in (_read(zone / "type") or "").lower():
            value = _read(zone / "temp")
            if value and value.lstrip("-").isdigit():
                return int(value) / 1000
    return None


def _memory_bytes() -> int | None:
    match = re.search(r"MemTotal:\s+(\d+) kB", _read(_MEMORY) or "")
    return int(match.group(1)) * 1024 if match else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\0\n ").strip()
    except OSError:
        return None
