"""What the checks of every op ask of an argument, whichever framework made it. Imports none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_WANTED = {"torch": "a torch tensor", "jax": "a jax array", "mlx": "an mlx array"}


def framework(array: Any) -> str:
    """The package that an array comes from: "torch", "jax" (its tracers too), "mlx", "numpy"."""
    for kind in type(array).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in ("torch", "jax", "jaxlib", "mlx", "numpy"):
            return "jax" if package == "jaxlib" else package
    return type(array).__module__.partition(".")[0]


def check_framework(wanted: str | None, **arrays: Any) -> None:
    """Refuse arrays of another framework than ``wanted``; None takes any. Raises ValueError."""
    if wanted is None:
        return
    for name, array in arrays.items():
        if framework(array) != wanted:
            kind = type(array)
            raise ValueError(
                f"{name}: wants {_WANTED[wanted]}, got {kind.__module__}.{kind.__qualname__}"
            )


def check_accelerator(**arrays: Any) -> None:
    """Refuse jax arrays that lie on a CPU, where a kernel has no code; a tracer lies nowhere yet.
    Raises ValueError."""
    for name, array in arrays.items():
        platform = getattr(getattr(array, "device", None), "platform", None)
        if platform == "cpu":
            raise ValueError(f"{name}: wants an array on an accelerator, got one on a CPU")


def scale(given: Any, usual: float) -> float:
    """The factor of scores: ``given``, or ``usual`` where it is None. Raises ValueError."""
    if given is None:
        return usual
    number = isinstance(given, int | float | np.integer | np.floating)
    try:
        value = float(given) if number and not isinstance(given, bool) else math.nan
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"scale: wants a positive finite number or None, got {given!r:.40}")
    return value
