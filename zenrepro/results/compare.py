"""Comparing two result sets, condition by condition: two machines, folders or archives."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from zenrepro.errors import InputError
from zenrepro.paths import Project
from zenrepro.records import Kind, Record, Status
from zenrepro.results import transfer
from zenrepro.results.store import Store
from zenrepro.stats import significance, summarise
from zenrepro.units import unit

METHOD = significance.METHOD


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity under one set of conditions in both sets; ``ratio`` is b / a.

    ``a``, ``b`` and their intervals are in ``unit`` (the first set's). ``differs`` is None where
    too few samples are there to tell. ``notes`` say what stands in the way of reading the ratio as
    the code's: a disturbed measurement, another kind, another device.
    """

    experiment: str
    quantity: str
    metric: str
    implementation: str
    conditions: dict[str, Any]
    unit: str
    a: float | None
    a_low: float | None
    a_high: float | None
    a_n: int
    b: float | None
    b_low: float | None
    b_high: float | None
    b_n: int
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    differs: bool | None
    notes: list[str]


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, and how many records have no counterpart."""

    a: str
    b: str
    method: str
    rows: list[Row]
    only_a: int
    only_b: int


def load(project: Project, name: str) -> list[Record]:
    """The records that a name means: a machine of the project, a results folder, or an archive.

    Raises InputError listing the machines when it is none of these, and for a folder of several
    machines, whose records could not be told apart.
    """
    store = Store(project.results)
    if name in store.machines():
        return store.load(name)
    path = Path(name)
    if path.is_file():
        return _of_one(transfer.read(path), name)
    if path.is_dir():
        inner = Store(path)
        if any(inner.machines()):
            return _of_one(inner.load(), name)
        outer = Store(path.resolve().parent)
        if path.resolve().name in outer.machines():
            return outer.load(path.resolve().name)
        raise InputError(f"{name}: holds no results; give a machine, a results folder or a zip")
    known = ", ".join(store.machines()) or "none"
    raise InputError(
        f"{name!r} is no machine with results, folder or zip archive; machines here: {known}"
    )


def compare(a: Iterable[Record], b: Iterable[Record], names: tuple[str, str]) -> Table:
    """Compare two sets by identity without the machine, in the order of the first."""
    first = {_key(record): record for record in a}
    second = {_key(record): record for record in b}
    shared = [key for key in first if key in second]
    return Table(
        a=names[0],
        b=names[1],
        method=METHOD,
        rows=[_row(first[key], second[key]) for key in shared],
        only_a=len(first) - len(shared),
        only_b=len(second) - len(shared),
    )


def _of_one(found: list[Record], name: str) -> list[Record]:
    machines = sorted({record.machine for record in found})
    if len(machines) > 1:
        raise InputError(f"{name}: has results of {', '.join(machines)}; compare one of them")
    return found


def _key(record: Record) -> tuple[Any, ...]:
    return record.identity()[1:]


def _row(a: Record, b: Record) -> Row:
    notes: list[str] = []
    for side, record in (("A", a), ("B", b)):
        if record.status is not Status.OK:
            notes.append(f"{side} is {record.status}: {record.reason or 'flagged'}")
    if a.kind != b.kind:
        notes.append(f"A is {a.kind}, B is {b.kind}")
    if a.device_class != b.device_class:
        notes.append(f"A on {a.device_class.model}, B on {b.device_class.model}")
    own, other = unit(a.unit), unit(b.unit)
    samples = b.samples
    if own.dimension != other.dimension:
        notes.append(f"A in {a.unit}, B in {b.unit}: not comparable")
        samples = []
    factor = other.factor / own.factor
    left, right = a.samples, [sample * factor for sample in samples]
    exact = a.kind is Kind.COUNTED and b.kind is Kind.COUNTED
    both = significance.compare(left, right, exact) if left and right and a.kind == b.kind else None
    from_a = summarise(left) if left else None
    from_b = summarise(right) if right else None
    ratio = both.ratio if both else None
    return Row(
        experiment=a.experiment,
        quantity=a.quantity,
        metric=a.metric,
        implementation=a.implementation,
        conditions=dict(a.conditions),
        unit=a.unit,
        a=from_a.value if from_a else None,
        a_low=from_a.low if from_a else None,
        a_high=from_a.high if from_a else None,
        a_n=from_a.n if from_a else 0,
        b=from_b.value if from_b else None,
        b_low=from_b.low if from_b else None,
        b_high=from_b.high if from_b else None,
        b_n=from_b.n if from_b else 0,
        ratio=ratio.value if ratio else None,
        ratio_low=ratio.low if ratio else None,
        ratio_high=ratio.high if ratio else None,
        differs=both.differs if both else None,
        notes=notes,
    )
