"""Kernels of one case beside each other: the least time, ours, peers, and how ours compare.

For the report's tables of ops and for notebooks; from records alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zenrepro import stats
from zenrepro.records import Origin, Record, Status
from zenrepro.report.exploring import Ceilings
from zenrepro.units import unit

# What ours must reach of the best peer's speed: the bar that each op is held to.
BARS: dict[str, float] = {"attention": 0.95, "mla_prefill": 0.95, "mla_decode": 1.0}
_SHOWN = (Status.OK, Status.DISTURBED)
_IN_TURN = "in turn with "


class Timed(NamedTuple):
    """One implementation's time of a case in seconds, with its record."""

    implementation: str
    ours: bool
    summary: stats.Summary
    record: Record


class Missed(NamedTuple):
    """An implementation without a time of a case, and the record that says why."""

    implementation: str
    ours: bool
    record: Record


class Row(NamedTuple):
    """One case. ``least_s`` is what ceilings allow, None where they or the work are unknown;
    ``bound`` the resource that sets it."""

    conditions: Mapping[str, Any]
    timed: list[Timed]
    missed: list[Missed]
    least_s: float | None
    bound: str | None

    @property
    def ours(self) -> Timed | None:
        """Our fastest."""
        return _fastest(one for one in self.timed if one.ours)

    @property
    def peer(self) -> Timed | None:
        """The fastest peer."""
        return _fastest(one for one in self.timed if not one.ours)

    @property
    def speed(self) -> stats.Summary | None:
        """Our fastest against the fastest peer: above 1 ours is ahead."""
        ours, peer = self.ours, self.peer
        return None if ours is None or peer is None else stats.ratio(peer.summary, ours.summary)

    @property
    def in_turn(self) -> bool:
        """Whether the two were sampled in the same rounds."""
        ours, peer = self.ours, self.peer
        return ours is not None and peer is not None and beside(ours.record, peer.implementation)

    @property
    def reached(self) -> bool | None:
        """Whether ours is at the bar, by the median; None where there is nothing to compare."""
        speed = self.speed
        bar = BARS.get(str(self.conditions.get("op")))
        return None if speed is None or bar is None else speed.value >= bar

    def share_of_least(self, one: Timed) -> float | None:
        """How much of the least time the implementation's is: 1 is at the ceiling."""
        return None if self.least_s is None else self.least_s / one.summary.value


def _fastest(found: Iterable[Timed]) -> Timed | None:
    return min(found, key=lambda one: one.summary.value, default=None)


def beside(record: Record, implementation: str) -> bool:
    """Whether a record's samples were taken in turn with another implementation's."""
    said = (record.method or "").rpartition(_IN_TURN)
    return bool(said[1]) and implementation in said[2].split(", ")


def rows(records: Iterable[Record], ops: Sequence[str], most: Ceilings) -> list[Row]:
    """One row a case of these ops, in the order of the records; times only."""
    found: dict[tuple[tuple[str, Any], ...], list[Record]] = {}
    for record in records:
        if (record.quantity, record.metric) != ("time", "call"):
            continue
        if record.conditions.get("op") in ops:
            found.setdefault(tuple(sorted(record.conditions.items())), []).append(record)
    return [_row(dict(conditions), members, most) for conditions, members in found.items()]


def _row(conditions: dict[str, Any], members: list[Record], most: Ceilings) -> Row:
    timed = [
        Timed(r.implementation, r.origin is Origin.OURS, _summary(r), r)
        for r in members
        if r.status in _SHOWN and r.samples
    ]
    missed = [
        Missed(r.implementation, r.origin is Origin.OURS, r)
        for r in members
        if not (r.status in _SHOWN and r.samples)
    ]
    work = next((one.record.work for one in timed if one.record.work), None)
    rate = most.flop_rate.get(str(conditions.get("dtype")))
    if work is None or not work.flops or not work.bytes or not rate or not most.bandwidth:
        return Row(conditions, timed, missed, None, None)
    computing, moving = work.flops / rate, work.bytes / most.bandwidth
    bound = "FLOPs" if computing > moving else "bytes"
    return Row(conditions, timed, missed, max(computing, moving), bound)


def _summary(record: Record) -> stats.Summary:
    value, low, high, n = stats.summarise(record.samples)
    factor = unit(record.unit).factor
    return stats.Summary(value * factor, low * factor, high * factor, n)
