"""A backend that plays back a script, so that no test depends on real time or hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zenrepro.backends.base import Array, Backend, Timing
from zenrepro.hardware import State


class OutOfMemory(Exception):
    """What this backend raises when memory does not suffice."""


class ScriptedBackend(Backend):
    """Returns the seconds, peak and states it was given, and remembers what was asked."""

    name = "torch"
    OutOfMemory = OutOfMemory

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.seconds = [1e-3] * 15
        self.states = [State(at_s=0.0), State(at_s=1.0)]
        self.peak: int | None = None
        self.asked: dict[str, Any] = {}
        self.released = 0
        self.waited = 0

    def asarray(self, array: np.ndarray, dtype: str) -> Array:
        return array

    def whole(self, array: np.ndarray) -> Array:
        return array

    def numpy(self, array: Array) -> np.ndarray:
        return np.asarray(array)

    def _fill(self, block: Array, shape: tuple[int, ...], size: int) -> Array:
        return np.resize(block, shape)

    def unsupported(self, dtype: str) -> str | None:
        return None

    def synchronise(self, result: Any = None) -> None:
        self.waited += 1

    def time(
        self, call: Callable[[], Any], *, samples: int, warmup: int, cold: bool,
        budget_s: float | None = None,
    ) -> Timing:  # fmt: skip
        call()
        self.asked = {"samples": samples, "warmup": warmup, "cold": cold, "budget_s": budget_s}
        return Timing(self.seconds, "by script")

    def peak_memory(self, call: Callable[[], Any]) -> int | None:
        return self.peak

    def release(self) -> None:
        self.released += 1

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, OutOfMemory)

    def state(self) -> State:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


@pytest.fixture
def scripted() -> ScriptedBackend:
    return ScriptedBackend()
