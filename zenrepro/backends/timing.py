"""Timing by the host's clock, shared by the backends: warm-up, time box, cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from zenrepro.hardware import cpu

FEWEST = 3
# A batch of short calls is stretched to this, so that starting and waiting weigh little.
_BATCH_S = 2e-3
_LARGEST_BATCH = 200


class Timing(NamedTuple):
    """Seconds per call, one figure a sample, and the method in words."""

    seconds: list[float]
    method: str


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
    batches = Batches.of_short(call, wait, warmup)
    seconds = around(
        call, wait, None,
        samples=samples, warmup=0, budget_s=budget_s, calls_per_sample=batches.batch,
    )  # fmt: skip
    return seconds, batches.how


class Batches:
    """Samples of ``batch`` calls started back to back, by the host's clock."""

    def __init__(
        self, call: Callable[[], Any], wait: Callable[[Any], None], batch: int, how: str
    ) -> None:
        self._call, self._wait, self.batch, self.how = call, wait, batch, how
        self._seconds: list[float] = []

    @classmethod
    def of_short(cls, call: Callable[[], Any], wait: Callable[[Any], None], warmup: int) -> Batches:
        """As many calls as fill 2 ms."""
        once = around(call, wait, None, samples=1, warmup=max(1, warmup), budget_s=None)[0]
        batch = min(_LARGEST_BATCH, max(1, round(_BATCH_S / max(once, 1e-9))))
        if batch == 1:
            how = "host clock around each call, dispatch included; warm caches"
        else:
            how = (
                f"host clock around {batch} calls started back to back, divided by {batch}; "
                "warm caches"
            )
        return cls(call, wait, batch, how)

    def take(self) -> None:
        """Take one sample."""
        self._seconds += around(
            self._call, self._wait, None,
            samples=1, warmup=0, budget_s=None, calls_per_sample=self.batch,
        )  # fmt: skip

    def timing(self) -> Timing:
        """The samples so far."""
        return Timing(self._seconds, self.how)


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
    pairs = BehindFlush(call, wait, start_flush, warmup)
    started = time.perf_counter()
    while not enough(pairs.taken, samples, started, budget_s):
        pairs.take()
    return pairs.seconds()


class BehindFlush:
    """Samples for ``behind_flush``: pairs of emptying alone, and of emptying with the call."""

    def __init__(
        self,
        call: Callable[[], Any],
        wait: Callable[[Any], None],
        start_flush: Callable[[], Any],
        warmup: int,
    ) -> None:
        self._call, self._wait, self._start_flush = call, wait, start_flush
        self._alone: list[float] = []
        self._together: list[float] = []
        for _ in range(max(1, warmup)):
            start_flush()
            wait(call())

    @property
    def taken(self) -> int:
        """How many pairs there are."""
        return len(self._together)

    def take(self) -> None:
        """Take one pair."""
        begin = time.perf_counter_ns()
        self._wait(self._start_flush())
        middle = time.perf_counter_ns()
        self._start_flush()
        result = self._call()
        self._wait(result)
        end = time.perf_counter_ns()
        del result
        self._alone.append((middle - begin) / 1e9)
        self._together.append((end - middle) / 1e9)

    def seconds(self) -> list[float] | None:
        """Seconds per call, None when the call cannot be told from the emptying."""
        flush_s = median(self._alone)
        seconds = [total - flush_s for total in self._together]
        spread = median(abs(value - flush_s) for value in self._alone)
        if min(seconds) <= 0 or median(seconds) < 3 * spread:
            return None
        return seconds


class Flushed:
    """Samples behind a flush; where they turn out not to tell the call from it, batches instead."""

    def __init__(
        self, pairs: BehindFlush, how: str, instead: Callable[[int], tuple[list[float], str]]
    ) -> None:
        self._pairs, self._how, self._instead = pairs, how, instead

    def take(self) -> None:
        """Take one sample."""
        self._pairs.take()

    def timing(self) -> Timing:
        """The samples so far, or as many by batches, which are not in turn with others."""
        seconds = self._pairs.seconds()
        if seconds is not None:
            return Timing(seconds, self._how)
        return Timing(*self._instead(self._pairs.taken))


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
