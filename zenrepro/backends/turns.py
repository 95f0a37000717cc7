"""Several calls sampled in turn (A B C, B C A, ...): what drifts meanwhile meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from zenrepro.backends.timing import FEWEST, Timing


class Sampler(Protocol):
    """Takes the samples of one call, one at a time."""

    def take(self) -> None:
        """Take one sample."""

    def timing(self) -> Timing:
        """The samples so far, and how they were taken."""


class Turn(NamedTuple):
    """What became of one of several calls: its samples, or the error that it raised.

    ``beside`` are the calls that were sampled in the same rounds.
    """

    timing: Timing | None
    error: Exception | None = None
    beside: tuple[str, ...] = ()


class OneAtATime:
    """A sampler of any function that times a call for one sample."""

    def __init__(self, once: Callable[..., Timing], warmup: int) -> None:
        self._once, self._warmup = once, warmup
        self._seconds: list[float] = []
        self._method = ""

    def take(self) -> None:
        """Take one sample; before the first one the call is warmed up."""
        seconds, self._method = self._once(warmup=0 if self._seconds else self._warmup)
        self._seconds += seconds

    def timing(self) -> Timing:
        """The samples so far, and how the last one was taken."""
        return Timing(self._seconds, self._method)


def fitting(samples: int, length_s: float, budget_s: float | None) -> int:
    """How many samples of this length fit the time box: at least three, or all if fewer."""
    if budget_s is None:
        return samples
    return min(samples, max(FEWEST, int(budget_s / max(length_s, 1e-9))))


def rounds(wanted: Mapping[str, int]) -> Iterator[list[str]]:
    """Each round's calls in order. The first one moves on by one from round to round; a call that
    wants fewer samples than another sits out rounds at even distances."""
    names = list(wanted)
    most = max(wanted.values(), default=0)
    for i in range(most):
        first = i % len(names)
        yield [
            name
            for name in (*names[first:], *names[:first])
            if (i + 1) * wanted[name] // most > i * wanted[name] // most
        ]


def take_in_turn(
    samplers: Mapping[str, Sampler], samples: Mapping[str, int], budget_s: float | None
) -> dict[str, Turn]:
    """Sample in rounds. The time box is each call's own; a call that raises drops out."""
    failed: dict[str, Exception] = {}
    lengths: dict[str, float] = {}

    def take(name: str) -> None:
        if name in failed:
            return
        began = time.perf_counter()
        try:
            samplers[name].take()
        except Exception as error:  # noqa: BLE001  (its caller gets it; the others go on)
            failed[name] = forgotten(error)
        lengths.setdefault(name, time.perf_counter() - began)

    for name in samplers:
        take(name)
    left = {
        name: fitting(samples[name], lengths[name], budget_s) - 1
        for name in samplers
        if name not in failed
    }
    for order in rounds(left):
        for name in order:
            take(name)
    beside = tuple(name for name in samplers if name not in failed)
    return {
        name: Turn(None, failed[name])
        if name in failed
        else Turn(sampler.timing(), None, others(name, beside))
        for name, sampler in samplers.items()
    }


def others(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without this one."""
    return tuple(other for other in names if other != name)


def forgotten(error: Exception) -> Any:
    """The error without its traceback, whose frames hold the arrays of the call that failed."""
    error.__traceback__ = None
    error.__context__ = None
    return error
