"""A published table by implementation: every one that stands for one of its rows.

Beside the published rate and factor: the measured ones, under every reading that was measured,
utilisation by count and the clock, and the same by hardware counters where they were read. Rows
stay until they are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zenrepro import stats
from zenrepro.audit import measured, measurement
from zenrepro.audit.candidates import Index, Missing, Value
from zenrepro.claims import Claim
from zenrepro.errors import InputError
from zenrepro.records import Record, Status
from zenrepro.report import grids
from zenrepro.report.evidence import Evidence, Machine, identity_key
from zenrepro.report.grids import Cell, Grid, Line
from zenrepro.report.numbers import Missing as Dash
from zenrepro.report.numbers import Number, published
from zenrepro.report.tables import missing_code
from zenrepro.report.wording import FORMAT_NAMES
from zenrepro.specs import Datasheet
from zenrepro.units import unit

HEAD = [
    "Implementation", "published", "factor", "tokens/s", "factor", "compute", "memory", "DRAM",
    "tensor",
]  # fmt: skip
_SHOWN = (Status.OK, Status.DISTURBED)


class Stand(NamedTuple):
    """One implementation under one reading that stands for a published row."""

    value: Value
    reading: str | None

    @property
    def record(self) -> Record:
        return self.value.records[0]


def tables(evidence: Evidence) -> list[str]:
    """The published tables whose rows name implementations and state throughputs."""
    named = [
        c.where.table
        for c in sorted(evidence.publication.claims, key=lambda c: c.where.line)
        if c.where.table and c.quantity == "throughput" and c.implementation
    ]
    return list(dict.fromkeys(named))


def grid(evidence: Evidence, table: str, machine: Machine | None) -> Grid:
    """The table for one machine; without one, the published rows with dashes.

    Raises InputError for a table that is not published or names no implementations.
    """
    name = f"shape:{table}"
    title = f"{evidence.words.table(table)} by implementation"
    if table not in tables(evidence):
        known = ", ".join(tables(evidence)) or "none"
        raise InputError(f"grid {name!r}: tables that name implementations: {known}")
    rates = _rates(evidence, table)
    records = machine.records if machine else []
    index = Index(records, evidence.publication.implementations)
    found = {claim.id: list(_stands(claim, evidence.claims, index)) for claim in rates}
    if machine and not any(found.values()):
        return Grid(name, title, HEAD, [], empty="This machine has not measured that shape.")
    lines = [
        line for claim in rates for line in _lines(claim, rates[0], found, evidence, index, records)
    ]
    title += f" on {machine.title}" if machine else ""
    shown = [stand.record for stands in found.values() for stand in stands]
    note = f"{evidence.words.note(name)} {_why_empty(shown, records, evidence.datasheets)}".strip()
    return Grid(name, title, HEAD, lines, note)


def _rates(evidence: Evidence, table: str) -> list[Claim]:
    """The throughputs of the table, in its order."""
    return sorted(
        (
            c
            for c in evidence.publication.claims
            if c.where.table == table and c.quantity == "throughput" and c.printed is not None
        ),
        key=lambda c: c.where.line,
    )


def _stands(claim: Claim, claims: Mapping[str, Claim], index: Index) -> Iterator[Stand]:
    """Each measured record that stands for a claim, as written and as its readings have it."""
    seen: set[str] = set()
    for variant, text in measurement.variants(claim):
        values = measured.values(variant, claims, index)
        for value in () if isinstance(values, Missing) else values:
            key = identity_key(value.records[0])
            if key not in seen:
                seen.add(key)
                yield Stand(value, text)


def _lines(
    claim: Claim,
    base: Claim,
    found: Mapping[str, list[Stand]],
    evidence: Evidence,
    index: Index,
    records: list[Record],
) -> Iterator[Line]:
    """The published row, then a line for each implementation that was measured."""
    label = evidence.words.row(claim.where.table or "", claim.where.row or "")
    stated = [Cell(published(claim.printed or "", claim.unit)), _factor(claim, base)]
    stands = found[claim.id]
    if not stands:
        values = measured.values(claim, evidence.claims, index)
        why = values.reason if isinstance(values, Missing) else ""
        dash = Cell(Dash(missing_code(why), why))
        yield Line("", [*stated, dash, *[grids.NONE] * 5], group=label)
        return
    yield Line("", [*stated, *[grids.NONE] * 6], group=label)
    for stand in stands:
        yield _measured(stand, found[base.id], records)


def _factor(claim: Claim, base: Claim) -> Cell:
    if claim is base or not isinstance(claim.value, int | float):
        return grids.NONE
    if not isinstance(base.value, int | float) or not base.value:
        return grids.NONE
    return Cell(Number(float(f"{claim.value / base.value:.3g}"), "x"))


def _measured(stand: Stand, bases: list[Stand], records: list[Record]) -> Line:
    record, summary = stand.record, stand.value.summary
    label = f"{record.implementation.replace('_', ' ')}, {_dtype(record)}"
    if stand.reading is not None:
        label += f": {stand.reading}"
    rate = Number(summary.value, "token/s", summary.low, summary.high)
    base = next((b for b in bases if b.value.backend == stand.value.backend), None)
    factor = grids.NONE
    if base is not None and base.record is not record:
        ratio = stats.ratio(summary, base.value.summary)
        if ratio is not None:
            factor = Cell(Number(float(f"{ratio.value:.3g}"), "x"))
    beside = [r for r in records if _same(r, record)]
    return Line(
        label,
        [
            grids.NONE,
            grids.NONE,
            Cell(rate, identity_key(record)),
            factor,
            *(_share(beside, metric) for metric in ("compute", "bandwidth", "dram", "tensor_pipe")),
        ],
    )


def _same(other: Record, record: Record) -> bool:
    """Whether another record is of the same implementation under the same conditions."""
    return other.implementation == record.implementation and other.conditions == record.conditions


def _share(records: list[Record], metric: str) -> Cell:
    """A utilisation in per cent; nothing where it was not recorded, a dash where it failed."""
    record = next((r for r in records if (r.quantity, r.metric) == ("utilisation", metric)), None)
    if record is None:
        return grids.NONE
    if record.status not in _SHOWN:
        return grids.missing(record)
    seen = stats.summarise(record.samples)
    factor = 100 * unit(record.unit).factor
    return Cell(Number(float(f"{seen.value * factor:.3g}"), "%"), identity_key(record))


def _why_empty(shown: list[Record], records: list[Record], sheets: Mapping[str, Datasheet]) -> str:
    """Why rows that were measured have no utilisation by count, each reason once; nothing where
    all have both."""
    reasons: dict[str, None] = {}
    for record in shown:
        kept = {r.metric for r in records if r.quantity == "utilisation" and _same(r, record)}
        sheet = sheets.get(record.device_class.platform)
        for metric in ("compute", "bandwidth"):
            if metric not in kept:
                reasons[_unrecorded(record, metric, sheet)] = None
    return f"Compute or memory is empty where {'; '.join(reasons)}." if reasons else ""


def _unrecorded(record: Record, metric: str, sheet: Datasheet | None) -> str:
    """Why a record that has a time has no utilisation beside it."""
    if sheet is None:
        return "no datasheet of the device is kept to take it of"
    if metric == "compute":
        stated = sheet.figure("flop_rate", "dense", str(record.conditions.get("dtype")))
        what = f"dense matrix rate in {_dtype(record)}"
    else:
        stated, what = sheet.figure("bandwidth", "peak"), "memory bandwidth"
    if stated is None:
        return f"the vendor states no {what}"
    return "records were made before utilisation was recorded beside the time"


def _dtype(record: Record) -> str:
    dtype = str(record.conditions.get("dtype", ""))
    return FORMAT_NAMES.get(dtype, dtype)
