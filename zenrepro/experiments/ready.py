"""A point between its gate and its samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from typing import Any

from zenrepro.experiments import events
from zenrepro.experiments.point import Point, Prepared, Result
from zenrepro.records import Record


class Ready:
    """A point that has begun; ``take`` makes it ready to be sampled.

    ``index`` is its place among the points to measure, ``shells`` what it would write if the
    process died.
    """

    def __init__(self, index: int, point: Point, shells: list[Record]) -> None:
        self.index, self.point, self.shells = index, point, shells
        self.call: Callable[[], Any] | None = None
        self.finish: Callable[[Any], list[Result]] | None = None
        self._began = time.perf_counter()
        self._prepared_s: float | None = None
        self.sampled_s = 0.0

    @property
    def name(self) -> str:
        """The point in one line."""
        return events.name(self.point.implementation, self.shells[0].conditions)

    @property
    def conditions(self) -> str:
        """Its conditions in one line."""
        return events.name("", self.shells[0].conditions).strip()

    @property
    def seconds(self) -> float:
        """What the point took: preparing it and its share of the rounds, or all of it till now."""
        if self._prepared_s is None:
            return time.perf_counter() - self._began
        return self._prepared_s + self.sampled_s

    def take(self, prepared: Prepared) -> None:
        """The gate is passed."""
        self.call, self.finish = prepared
        self._prepared_s = time.perf_counter() - self._began


def free_name(name: str, taken: Container[str]) -> str:
    """The name, numbered where it is taken: points of a group may share an implementation."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
