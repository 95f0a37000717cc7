"""How long points took on this machine before: what estimates are made of.

Kept in ``.zenrepro/durations/``, never a result: losing it loses only estimates.
"""

from __future__ import annotations

import os
import statistics

import msgspec

from zenrepro.experiments.point import Point
from zenrepro.paths import Project


class Durations:
    """Seconds by point, of one experiment on one backend and machine."""

    def __init__(self, project: Project, experiment: str, backend: str, machine: str) -> None:
        folder = project.local / "durations" / machine
        self._path = folder / f"{experiment}-{backend}.json"
        try:
            self._seconds = msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.DecodeError):  # none yet, or unreadable: estimates start anew
            self._seconds = {}

    @staticmethod
    def key(point: Point, scale: str) -> str:
        """A point's name in the file."""
        conditions = " ".join(f"{k}={v}" for k, v in sorted(point.conditions.items()))
        return f"{scale} {point.implementation} {conditions}"

    def estimate(self, key: str) -> float | None:
        """What the point took before, else the median of its implementation at this scale."""
        if key in self._seconds:
            return self._seconds[key]
        like = key.split(" ", 2)[:2]
        alike = [s for name, s in self._seconds.items() if name.split(" ", 2)[:2] == like]
        return statistics.median(alike) if alike else None

    def put(self, key: str, seconds: float) -> None:
        """Remember a point's seconds, its work and its storing included."""
        self._seconds[key] = round(seconds, 3)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(self._seconds), indent=1))
        scratch.replace(self._path)
