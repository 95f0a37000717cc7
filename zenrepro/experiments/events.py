"""What a session tells about its progress: to the notebook's reader, or to the run that started it.

A run that executes the notebook names a file in ``ZENREPRO_EVENTS``; the session appends one JSON
line an event there. Without it, each event that a reader needs becomes one printed line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from zenrepro.records import Record, Status

VARIABLE = "ZENREPRO_EVENTS"


class Opened(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A session validated its parameters and knows its device."""

    experiment: str
    backend: str
    device: str
    machine: str
    scale: str
    missing: str | None


class Planned(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """How many points there are, and the seconds that each one to measure took before.

    ``estimates_s`` has None for a point like none that was measured here. ``edited`` says which
    code makes this a draft.
    """

    total: int
    estimates_s: list[float | None]
    edited: str | None


class Waiting(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Another run holds the device."""

    device: str


class Measuring(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A point starts, or the rounds in which several that were prepared are sampled in turn.

    ``if_it_dies`` are the records to store should the process die in it. ``rounds``: how many
    points are sampled together, 0 for a point that starts.
    """

    index: int
    total: int
    name: str
    estimate_s: float | None
    if_it_dies: list[Record]
    rounds: int = 0


class Measured(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A point ended; ``reason`` is the first one that its records give."""

    index: int
    total: int
    seconds: float
    status: str
    reason: str | None

    @classmethod
    def of(cls, index: int, total: int, records: Sequence[Record], seconds: float) -> Measured:
        """From the point's records: the first status that is not ok speaks for all."""
        worst = next((r for r in records if r.status is not Status.OK), None)
        return cls(
            index=index,
            total=total,
            seconds=seconds,
            status=str(worst.status) if worst else "ok",
            reason=worst.reason if worst else None,
        )


class Done(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A call of ``Session.measure`` ended; how many records have each status."""

    statuses: dict[str, int]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Done:
        """Count the records by status."""
        return cls(statuses=dict(Counter(str(record.status) for record in records)))


Event = Opened | Planned | Waiting | Measuring | Measured | Done


def name(implementation: str, conditions: Mapping[str, Any]) -> str:
    """A point in one line: its implementation and conditions."""
    words = [f"{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in conditions.items()]
    return " ".join([implementation, *words])
