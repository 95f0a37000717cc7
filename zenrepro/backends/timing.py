"""Timing by the host's clock, shared by the backends: warm-up, time box, cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import numpy as np

from zenrepro.hardware import cpu

FEWEST = 3
# A batch of short calls is stretched to this, so that starting and waiting weigh little.
_BATCH_S = 2e-3
_LARGEST_BATCH = 200


def enough(taken: int, samples: int, started: float, budget_s: float | None) -> bool:
    """Whether to stop: all samples taken, or the time box is used up and three are there."""
    if taken >= samples:
        return True
    if budget_s is None or taken < min(FEWEST, samples):
        return False
    return time.perf_counter() - started >= budget_s


def around(
    call: Callable[[], Any],
    wait: Callable[[Any], None],
    flush: Callable[[], None] | None,
    *,
    samples: int,
    warmup: int,
    budget_s: float | None,
    calls_per_sample: int = 1,
) -> list[float]:
    """Seconds per call by the host's clock: start, call(s), wait for the last result, stop."""
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


def in_batches(
    call: Callable[[], Any],
    wait: Callable[[Any], None],
    *,
    samples: int,
    warmup: int,
    budget_s: float | None,
) -> tuple[list[float], str]:
    """As ``around`` with warm caches, short calls many to a sample; and how, in words."""
    once = around(call, wait, None, samples=1, warmup=max(1, warmup), budget_s=None)[0]
    batch = min(_LARGEST_BATCH, max(1, round(_BATCH_S / max(once, 1e-9))))
    seconds = around(
        call, wait, None, samples=samples, warmup=0, budget_s=budget_s, calls_per_sample=batch
    )
    if batch == 1:
        return seconds, "host clock around each call, dispatch included; warm caches"
    return seconds, (
        f"host clock around {batch} calls started back to back, divided by {batch}; warm caches"
    )


def behind_flush(
    call: Callable[[], Any],
    wait: Callable[[Any], None],
    start_flush: Callable[[], Any],
    *,
    samples: int,
    warmup: int,
    budget_s: float | None,
) -> list[float] | None:
    """Seconds per cold call on a device that runs what it is given in order.

    The call is started while the device still empties its cache, so that starting it costs no
    time of its own; the time of emptying alone, measured before each sample, is taken off (the
    median of all). None when the two cannot be told apart: the call is then far too short.
    """
    for _ in range(max(1, warmup)):
        start_flush()
        wait(call())
    alone: list[float] = []
    together: list[float] = []
    started = time.perf_counter()
    while not enough(len(together), samples, started, budget_s):
        begin = time.perf_counter_ns()
        wait(start_flush())
        middle = time.perf_counter_ns()
        start_flush()
        result = call()
        wait(result)
        end = time.perf_counter_ns()
        del result
        alone.append((middle - begin) / 1e9)
        together.append((end - middle) / 1e9)
    flush_s = median(alone)
    seconds = [total - flush_s for total in together]
    spread = median(abs(value - flush_s) for value in alone)
    if min(seconds) <= 0 or median(seconds) < 3 * spread:
        return None
    return seconds


class CpuCache:
    """Empties the CPU's caches by reading and writing a buffer twice their size (64 MiB of cache
    are assumed where the system does not tell)."""

    def __init__(self) -> None:
        size = 2 * (cpu.last_level_cache_bytes() or 2**26)
        self._buffer = np.ones(size // 4, dtype=np.float32)

    @property
    def mebibytes(self) -> int:
        """Size of the buffer."""
        return self._buffer.nbytes // 2**20

    def flush(self) -> None:
        """Touch every line of the buffer."""
        np.negative(self._buffer, out=self._buffer)


@cache
def cpu_cache() -> CpuCache:
    """One buffer a process: making it takes longer than most calls."""
    return CpuCache()


def on_cpu(
    call: Callable[[], Any],
    wait: Callable[[Any], None],
    *,
    samples: int,
    warmup: int,
    cold: bool,
    budget_s: float | None,
) -> tuple[list[float], str]:
    """Time a call on the CPU, and say how."""
    emptied = cpu_cache() if cold else None
    seconds = around(
        call, wait, emptied.flush if emptied else None,
        samples=samples, warmup=warmup, budget_s=budget_s,
    )  # fmt: skip
    caches = f"caches emptied by a {emptied.mebibytes} MiB buffer" if emptied else "warm caches"
    return seconds, f"host clock around each call; {caches}"
