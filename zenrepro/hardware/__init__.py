"""Which devices are here, what class they are of, and in what state.

No framework is imported, with one exception: only jax can describe a TPU. No host name, serial
number or path enters anything that is recorded.
"""

from __future__ import annotations

import hashlib
import platform as python_platform
from contextlib import AbstractContextManager
from functools import cache

import msgspec

from zenrepro import records
from zenrepro.errors import InputError
from zenrepro.hardware import apple, cpu, installed, locks, machine, nvidia, platforms, tpu
from zenrepro.hardware.selection import BACKENDS, absent, available, missing, resolve, split
from zenrepro.hardware.state import State, Static
from zenrepro.paths import Project

__all__ = [
    "BACKENDS", "Hardware", "Missing", "State", "absent", "available", "devices", "environment",
    "lock", "probe", "resolve", "state",
]  # fmt: skip

_ACCELERATORS = {"torch": ("cuda",), "jax": ("gpu", "tpu"), "mlx": ("metal", "gpu")}


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One device as one backend sees it."""

    backend: str
    device: str
    device_class: records.DeviceClass
    environment: records.Environment
    machine: str
    compute_capability: tuple[int, int] | None
    lock_name: str
    power_mode: str | None = None


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A backend, or a backend's kind of device, that is not usable here, and why."""

    backend: str
    reason: str
    device: str | None = None


def probe(backend: str, device: str | None = None, project: Project | None = None) -> Hardware:
    """The device that ``backend`` means by ``device`` (None: its default), described.

    Raises InputError for a backend or device that does not exist or is not usable here, naming
    those that are.
    """
    device = resolve(backend, device)
    reason = absent(backend, device)
    if reason is not None:
        raise InputError(f"backend {backend}, device {device}: {reason}")
    kind, _ = split(backend, device)
    static = _static(backend, device)
    now = state(backend, device)
    device_class = platforms.classify(
        kind, static, cpu.cores() if kind == "cpu" else None, project.hardware if project else None
    )
    return Hardware(
        backend=backend,
        device=device,
        device_class=device_class,
        environment=environment(backend, device, now),
        machine=f"{device_class.platform}-{machine.label(project)}",
        compute_capability=static.compute_capability,
        lock_name=_lock_name(kind, static),
        power_mode=static.power_mode,
    )


def devices(project: Project | None = None) -> list[Hardware | Missing]:
    """Every device of every backend here, and for each backend or kind that is not, why."""
    found: list[Hardware | Missing] = []
    for backend in BACKENDS:
        reason = installed.missing(backend)
        if reason is not None:
            found.append(Missing(backend=backend, reason=reason))
            continue
        found += [probe(backend, device, project) for device in available(backend)]
        for kind in _ACCELERATORS[backend]:
            reason = missing(backend, kind)
            if reason is not None:
                found.append(Missing(backend=backend, device=kind, reason=reason))
    return found


def lock(hardware: Hardware, wait: bool = True) -> AbstractContextManager[None]:
    """Hold the physical device for the ``with`` block; see ``locks.hold``."""
    return locks.hold(hardware.lock_name, hardware.device_class.model, wait)


def state(backend: str, device: str, *, holds_context: bool = False) -> State:
    """The device's volatile state, now. ``holds_context``: see ``nvidia.state``."""
    kind, index = split(backend, device)
    if kind == "cpu":
        return cpu.state()
    if kind == "tpu":
        now = tpu.state()
    elif kind == "metal":
        now = apple.state()
    else:
        now = nvidia.state(index, holds_context=holds_context)
    return msgspec.structs.replace(now, on_battery=cpu.on_battery())


def environment(backend: str, device: str, now: State) -> records.Environment:
    """Software and state of a device, as records keep them."""
    kind, _ = split(backend, device)
    static = _static(backend, device)
    return records.Environment(
        os=operating_system(),
        python=python_platform.python_version(),
        driver=static.driver or None,
        runtime=static.runtime or installed.runtime(backend, kind),
        packages=installed.packages(backend, kind),
        compilers=installed.compilers(backend, kind),
        power_limit_w=static.power_limit_w,
        clocks_mhz=now.clocks_mhz,
        throttle_reasons=now.throttle_reasons,
        temperature_c=now.temperature_c,
        other_load=describe_load(now),
    )


def describe_load(now: State) -> str | None:
    """Other work on the device, in words; None where the device does not tell."""
    if now.other_processes:
        share = now.other_utilisation
        using = "use unknown" if share is None else f"using {share:.0%}"
        return f"{now.other_processes} other processes on the device, {using}"
    if now.load_average is not None and now.cores:
        return f"load average {now.load_average:.1f} on {now.cores:.0f} cores, our own included"
    return "none" if now.other_processes == 0 else None


@cache
def operating_system() -> str:
    """The system's name and release, without the kernel's build: "Ubuntu 24.04, x86_64"."""
    architecture = python_platform.machine()
    if python_platform.system() == "Darwin":
        return f"macOS {python_platform.mac_ver()[0]}, {architecture}"
    try:
        release = python_platform.freedesktop_os_release()
        name = f"{release.get('NAME', 'Linux')} {release.get('VERSION_ID', '')}".strip()
    except OSError:
        name = python_platform.system()
    return f"{name}, {architecture}"


@cache
def _static(backend: str, device: str) -> Static:
    kind, index = split(backend, device)
    if kind == "cpu":
        return cpu.static()
    if kind == "tpu":
        return tpu.static(index)
    if kind == "metal":
        return apple.static()
    return nvidia.static(index)


def _lock_name(kind: str, static: Static) -> str:
    if kind in ("cuda", "gpu"):
        return "cuda-" + hashlib.sha256(static.identity.encode()).hexdigest()[:12]
    return static.identity
