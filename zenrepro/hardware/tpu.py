"""Google TPUs: seen through their device files, described by jax once it is asked for."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from zenrepro.hardware import installed
from zenrepro.hardware.state import State, Static

_DEV = Path("/dev")


def missing() -> str | None:
    """Why there is no TPU to use, in one line; None where there is."""
    if "libtpu" not in installed.distributions():
        return "libtpu is not installed (jax[tpu])"
    if not count():
        return "this machine has no TPU"
    return None


@cache
def count() -> int:
    """TPU chips of this machine."""
    chips = list(_DEV.glob("accel[0-9]*"))
    if not chips:
        chips = list((_DEV / "vfio").glob("[0-9]*"))
    return len(chips)


def static(index: int) -> Static:
    """Kind ("TPU v5 lite") and memory, asked of jax: it alone knows them."""
    import jax

    device = jax.devices("tpu")[index]
    stats = device.memory_stats() or {}
    return Static(
        names=[str(device.device_kind)],
        identity=f"tpu-{index}",
        memory_bytes=stats.get("bytes_limit"),
        runtime=installed.runtime("jax", "tpu"),
    )


def state() -> State:
    """A TPU tells nothing of its clocks or temperature; only the time of the look is known."""
    return State(at_s=time.monotonic())
