"""Apple silicon through sysctl: one chip, one memory for CPU and GPU."""

from __future__ import annotations

import platform
import subprocess
import time
from functools import cache

from zenrepro.hardware.state import State, Static


@cache
def is_apple_silicon() -> bool:
    """Whether this is a Mac with Apple silicon."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def missing_metal() -> str | None:
    """Why there is no Metal GPU, in one line; None where there is."""
    if platform.system() != "Darwin":
        return "Metal needs macOS"
    if not is_apple_silicon():
        return "mlx needs Apple silicon for Metal"
    return None


def static() -> Static:
    """Chip ("Apple M4 Max"), its unified memory, and the macOS version as the driver."""
    return Static(
        names=[brand() or "Apple silicon"],
        identity="metal",
        memory_bytes=_number("hw.memsize"),
        driver=f"macOS {platform.mac_ver()[0]}",
    )


def state() -> State:
    """What macOS tells without administrator rights: nothing but the time of the look.

    Clocks and thermal pressure need ``powermetrics`` as root.
    """
    return State(at_s=time.monotonic())


@cache
def brand() -> str | None:
    """The chip's name."""
    return sysctl("machdep.cpu.brand_string")


def sysctl(name: str) -> str | None:
    """One value of sysctl, None where this machine has none of that name."""
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _number(name: str) -> int | None:
    value = sysctl(name)
    return int(value) if value and value.isdigit() else None
