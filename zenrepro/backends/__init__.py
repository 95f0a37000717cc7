"""torch, jax and mlx behind one small interface: arrays, compiling, timing, memory.

The framework is imported by ``open`` and not before.
"""

from __future__ import annotations

from zenrepro import hardware
from zenrepro.backends.base import Array, Backend, Timing, Unavailable

NAMES = hardware.BACKENDS

__all__ = ["NAMES", "Array", "Backend", "Timing", "Unavailable", "open"]


def open(name: str, device: str | None = None) -> Backend:  # noqa: A001  (backends.open reads well)
    """Open a backend on one device (None: its default one).

    Raises InputError for a name or device that no backend has, and Unavailable, with the reason
    in one line, when the framework or the device is not there.
    """
    full = hardware.resolve(name, device)
    reason = hardware.absent(name, full)
    if reason is not None:
        raise Unavailable(f"backend {name} on {full}: {reason}")
    try:
        if name == "torch":
            from zenrepro.backends.torch import TorchBackend

            return TorchBackend(full)
        if name == "jax":
            from zenrepro.backends.jax import JaxBackend

            return JaxBackend(full)
        from zenrepro.backends.mlx import MlxBackend

        return MlxBackend(full)
    except (ImportError, OSError) as error:
        # A framework that is there but cannot be loaded: a missing system library, as a rule.
        text = " ".join(str(error).split())
        raise Unavailable(f"backend {name} on {full}: cannot be imported ({text})") from error
