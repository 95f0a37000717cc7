"""The interface that every backend fills, and what they share."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from zenrepro import hardware
from zenrepro.backends.timing import Timing as Timing  # part of the interface
from zenrepro.backends.turns import OneAtATime, Sampler, Turn, forgotten, take_in_turn
from zenrepro.errors import InputError
from zenrepro.hardware import installed
from zenrepro.hardware.selection import split

Array = Any
DTYPES = ("fp64", "fp32", "fp16", "bf16", "fp8_e4m3", "int8")

# Above so many elements, random data repeats a block of this prime length: the host draws some
# 1e8 normals a second, and a card holds 1e11. A prime keeps rows from being copies of each other.
TILE_ABOVE = 2**24
TILE = 16_777_213


class Unavailable(Exception):
    """A framework or a device is not there; the message is the reason, in one line."""


class Backend(ABC):
    """One framework on one device. ``device`` is the full string, such as "cuda:0"."""

    name: str

    def __init__(self, device: str) -> None:
        self.device = device
        self.kind, self.index = split(self.name, device)

    # Arrays ---------------------------------------------------------------------------------

    def random(self, shape: Sequence[int], dtype: str, seed: int, scale: float = 1.0) -> Array:
        """Normal values times ``scale`` (int8: uniform in -127…127, ``scale`` unused).

        The same on every backend: drawn by numpy's PCG64 in fp32 (fp64 for fp64), then rounded to
        nearest even. Above 16 Mi elements a block of 16,777,213 values repeats.
        """
        size = 1
        for extent in shape:
            size *= int(extent)
        drawn = draw(min(size, TILE) if size > TILE_ABOVE else size, dtype, seed, scale)
        return self._fill(self.asarray(drawn, dtype), tuple(int(n) for n in shape), size)

    @abstractmethod
    def asarray(self, array: np.ndarray, dtype: str) -> Array:
        """A copy on the device, rounded to ``dtype``. Raises InputError where it has none."""

    @abstractmethod
    def whole(self, array: np.ndarray) -> Array:
        """A copy on the device of whole numbers in their own type: uint8 or int32."""

    @abstractmethod
    def numpy(self, array: Array) -> np.ndarray:
        """A copy on the host, in fp32 (fp64 for fp64)."""

    @abstractmethod
    def _fill(self, block: Array, shape: tuple[int, ...], size: int) -> Array:
        """``block`` repeated to ``size`` elements, in ``shape``."""

    @abstractmethod
    def unsupported(self, dtype: str) -> str | None:
        """Why arrays of this dtype cannot be held here, in one line; None where they can."""

    # Running --------------------------------------------------------------------------------

    @abstractmethod
    def synchronise(self, result: Any = None) -> None:
        """Wait for ``result``, and for all else that was started on the device."""

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled the framework's usual way; torch runs as it is."""
        return function

    def start(self, call: Callable[[], Any]) -> Any:
        """Start a call without waiting for its result, which is returned."""
        return call()

    @abstractmethod
    def time(
        self,
        call: Callable[[], Any],
        *,
        samples: int,
        warmup: int,
        cold: bool,
        budget_s: float | None = None,
    ) -> Timing:
        """Time ``call`` after ``warmup`` untimed calls; ``cold`` empties the caches before each.

        Stops early, with at least three samples (or ``samples``, if fewer), once timing has taken
        ``budget_s``.
        """

    def time_together(
        self,
        calls: Mapping[str, Callable[[], Any]],
        *,
        samples: Mapping[str, int],
        warmup: Mapping[str, int],
        cold: bool,
        budget_s: float | None = None,
    ) -> dict[str, Turn]:
        """Time several calls in rounds in which each runs once, the order rotating.

        As ``time``, with ``samples`` and ``warmup`` of each call, ``budget_s`` for each of them.
        A call that raises gets its error, and the others go on.
        """
        samplers: dict[str, Sampler] = {}
        out: dict[str, Turn] = {}
        for name, call in calls.items():
            try:
                samplers[name] = self._sampler(call, warmup=warmup[name], cold=cold)
            except Exception as error:  # noqa: BLE001  (handed to the caller; the others go on)
                out[name] = Turn(None, forgotten(error))
        return out | take_in_turn(samplers, samples, budget_s)

    def _sampler(self, call: Callable[[], Any], *, warmup: int, cold: bool) -> Sampler:
        """One call warmed up, to be sampled a little at a time."""
        return OneAtATime(partial(self.time, call, samples=1, cold=cold), warmup)

    def peak_memory(self, call: Callable[[], Any]) -> int | None:
        """Device bytes that one call needs above what was held before; None is unknown."""
        return None

    def release(self) -> None:
        """Give memory that nothing refers to back to the device."""
        gc.collect()

    @abstractmethod
    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether this error says that memory did not suffice."""

    def lost(self) -> bool:
        """Whether the device answers no more in this process: a kernel's fault ends its context."""
        return False

    # Provenance -----------------------------------------------------------------------------

    def packages(self) -> dict[str, str]:
        """Versions of the packages that measurements here depend on."""
        return installed.packages(self.name, self.kind)

    def compilers(self) -> dict[str, str]:
        """Versions of the compilers that make device code here."""
        return installed.compilers(self.name, self.kind)

    def state(self) -> hardware.State:
        """The device's volatile state, now."""
        return hardware.state(self.name, self.device, holds_context=True)

    def _checked(self, dtype: str) -> str:
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; wanted one of {', '.join(DTYPES)}")
        reason = self.unsupported(dtype)
        if reason is not None:
            raise InputError(f"backend {self.name} on {self.device}: {reason}")
        return dtype


def draw(size: int, dtype: str, seed: int, scale: float) -> np.ndarray:
    """``size`` values for ``Backend.random``, on the host."""
    generator = np.random.Generator(np.random.PCG64(seed))
    if dtype == "int8":
        return generator.integers(-127, 128, size=size, dtype=np.int8)
    if dtype == "fp64":
        return generator.standard_normal(size) * scale
    values = generator.standard_normal(size, dtype=np.float32)
    if scale != 1.0:
        values *= np.float32(scale)
    return values


def one_line(error: BaseException) -> str:
    """An error's first line, for a method text or a reason."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
