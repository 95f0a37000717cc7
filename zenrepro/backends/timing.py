"""Timing by the host's clock, shared by the backends: warm-up, time box, cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from zenrepro.backends.base import cpu_flush_elements

FEWEST = 3


def enough(taken: int, samples: int, started: float, budget_s: float | None) -> bool:
    """Whether to stop: all samples taken, or the time box is used up and three are there."""
    if taken >= samples:
        return True
    if budget_s is None or taken < min(FEWEST, samples):
        return False
    return time.perf_counter() - started >= budget_s


def by_host_clock(
    call: Callable[[], Any],
    wait: Callable[[Any], None],
    flush: Callable[[], None] | None,
    *,
    samples: int,
    warmup: int,
    budget_s: float | None,
    calls_per_sample: int = 1,
) -> list[float]:
    """Seconds per call by ``perf_counter_ns``: start, call(s), wait for the last result, stop."""
    for _ in range(warmup):
        wait(call())
    seconds: list[float] = []
    started = time.perf_counter()
    while not enough(len(seconds), samples, started, budget_s):
        if flush is not None:
            flush()
        begin = time.perf_counter_ns()
        result = call()
        for _ in range(calls_per_sample - 1):
            result = call()
        wait(result)
        seconds.append((time.perf_counter_ns() - begin) / 1e9 / calls_per_sample)
        del result  # A result that outlives its sample would hold memory during the next.
    return seconds


class CpuCache:
    """Empties the CPU's caches by writing and reading a buffer twice their size."""

    def __init__(self) -> None:
        self._buffer = np.ones(cpu_flush_elements(), dtype=np.float32)

    @property
    def mebibytes(self) -> int:
        """Size of the buffer."""
        return self._buffer.nbytes // 2**20

    def flush(self) -> None:
        """Touch every line of the buffer."""
        np.negative(self._buffer, out=self._buffer)
