"""The report's tables, built from claims alone: rows stay until they are measured.

A table has groups (the published rows), a group has lines (one claim each), a line has the
published value, the bound, one measured cell per machine, and the verdicts. Values are typed
(``Number``, ``Missing``, ``str``); the formatter of the medium turns them into TeX or HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zenrepro.claims import Claim
from zenrepro.errors import InputError
from zenrepro.report import wording
from zenrepro.report.escape import Tex, escape
from zenrepro.report.evidence import Evidence, FindingEntry, identity_key
from zenrepro.report.formulas import Formatted, formatted
from zenrepro.report.numbers import CODES, Missing, Number, published, split
from zenrepro.report.wording import Words
from zenrepro.units import convert

if TYPE_CHECKING:
    from zenrepro.audit import Bound
    from zenrepro.audit.measurement import Measurement

TEXT_TABLE = "text"  # the table of claims made in sentences and formulas
MARKS = {
    "reproduced": "✓",
    "exceeded": "▲",
    "not reproduced": "✗",
    "different hardware": "≠",
}
# What was let differ in a comparison; the letters stand beside the verdict's mark.
LIBERTIES = {
    "r": "under conditions that were let differ",
    "a": "a ratio from another class of device",
    "w": "under another reading of the words",
}

Value = Number | Missing | Formatted | str


@dataclass(frozen=True)
class Published:
    """What the report prints: a relation sign where it is not "=", and the value."""

    relation: str
    value: Value
    high: Number | None = None  # the upper end, for an interval


@dataclass(frozen=True)
class Measured:
    """One machine's cell: the value, its record's anchor, the verdict's mark, the ratio to print.

    ``ratio`` is measured over published, printed where the hardware differs; ``liberties`` are
    letters of ``LIBERTIES``.
    """

    machine: str
    value: Number | Missing | Formatted
    verdict: str
    mark: str = ""
    record: str | None = None
    ratio: Number | None = None
    note: str = ""
    liberties: str = ""


@dataclass(frozen=True)
class Limit:
    """A bound that the audit derived: ``≤ 270 token/s``."""

    relation: str
    value: Number
    arithmetic: str
    assumption: str


@dataclass(frozen=True)
class Line:
    """One claim."""

    claim: Claim
    label: str
    detail: str  # where and under what it is stated, for claims outside tables
    unit: str  # "" where the numbers have none
    published: Published
    limit: Limit | None
    measured: list[Measured]
    audit: str
    findings: list[FindingEntry]

    @property
    def shown_unit(self) -> str:
        """The unit to name beside the label: none where the label names it already."""
        return "" if self.unit in self.label.replace("tokens", "token") else self.unit


@dataclass(frozen=True)
class Group:
    """One published row."""

    label: str
    lines: list[Line]


@dataclass(frozen=True)
class Table:
    """One published table, or the table of the text's claims."""

    name: str
    title: str
    machines: list[str]
    groups: list[Group]
    note: str = ""  # what a reader has to know of its measured columns

    @property
    def single(self) -> bool:
        """Whether every row has one line, so that row and quantity share a line."""
        return all(len(group.lines) == 1 for group in self.groups)

    @property
    def lines(self) -> list[Line]:
        return [line for group in self.groups for line in group.lines]

    @property
    def columns(self) -> set[str]:
        """The quantities of the rows: one name need not be said in every row."""
        return {line.label for line in self.lines}

    @property
    def ratios(self) -> bool:
        return any(cell.ratio for line in self.lines for cell in line.measured)

    @property
    def assumed(self) -> bool:
        return any(line.limit and line.limit.assumption for line in self.lines)

    @property
    def cited(self) -> bool:
        return any(line.findings for line in self.lines)

    @property
    def codes(self) -> dict[str, str]:
        """The codes of missing values that this table uses, in the order of ``CODES``."""
        used = {
            cell.value.code
            for line in self.lines
            for cell in line.measured
            if isinstance(cell.value, Missing)
        }
        if not self.machines:
            used.add("n")
        return {code: words for code, words in CODES.items() if code in used}

    @property
    def liberties(self) -> dict[str, str]:
        """The letters of ``LIBERTIES`` that this table uses."""
        used = {c for line in self.lines for cell in line.measured for c in cell.liberties}
        return {letter: words for letter, words in LIBERTIES.items() if letter in used}

    @property
    def marks(self) -> dict[str, str]:
        """The verdicts' marks that this table uses."""
        used = {cell.verdict for line in self.lines for cell in line.measured}
        return {mark: verdict for verdict, mark in MARKS.items() if verdict in used}


def names(evidence: Evidence) -> list[str]:
    """The names of the published tables, in the report's order."""
    out: dict[str, None] = {}
    for claim in sorted(evidence.publication.claims, key=lambda c: c.where.line):
        if claim.where.table is not None:
            out.setdefault(claim.where.table)
    return list(out)


def build(evidence: Evidence, name: str, machines: Sequence[str] | None = None) -> Table:
    """The table of this name (``TEXT_TABLE`` for all claims outside tables).

    ``machines`` are the measured columns; left out, the body's. Raises InputError for a name that
    no claim has.
    """
    chosen = list(evidence.body if machines is None else machines)
    in_text = name == TEXT_TABLE
    claims = [
        c
        for c in evidence.publication.claims
        if (c.where.table is None if in_text else c.where.table == name)
    ]
    if not claims and not in_text:
        raise InputError(
            f"a template asks for table {name!r}, which no claim is in; tables: "
            f"{', '.join(names(evidence)) or 'none'}"
        )
    claims.sort(key=lambda c: c.where.line)
    bounds = _tightest(evidence.audit.bounds)
    judged = {(m.claim, m.machine): m for m in evidence.measurements}
    words = evidence.words
    rows: dict[str, list[Line]] = {}
    for claim in claims:
        row = claim.where.row
        label = wording.place(claim) if in_text or not row else words.row(name, row)
        rows.setdefault(label, []).append(
            Line(
                claim=claim,
                label=words.label(claim),
                detail=words.detail(claim) if in_text else "",
                unit=_shared_unit(claim),
                published=published_value(claim, words),
                limit=_limit(claim, bounds.get(claim.id)),
                measured=[_measured(judged.get((claim.id, m)), m, words) for m in chosen],
                audit=evidence.audit.verdicts.get(claim.id, "unverifiable"),
                findings=evidence.findings_of(claim.id),
            )
        )
    groups = [Group(label, lines) for label, lines in rows.items()]
    title = "Claims made in sentences and formulas" if in_text else words.table(name)
    return Table(name, title, chosen, groups, words.note(name))


def measured_only(table: Table) -> Table:
    """The table without the lines for which none of its machines has a number."""
    groups = []
    for group in table.groups:
        kept = [
            line
            for line in group.lines
            if any(isinstance(cell.value, Number | Formatted) for cell in line.measured)
        ]
        if kept:
            groups.append(Group(group.label, kept))
    return Table(table.name, table.title, table.machines, groups, table.note)


def _shared_unit(claim: Claim) -> str:
    return "" if claim.printed is None or claim.unit in ("1", "count") else claim.unit


def published_value(claim: Claim, words: Words) -> Published:
    """What the report prints of a claim; a name that it states, in words."""
    relation = "" if claim.relation == "=" else claim.relation
    if claim.kind == "interval" and isinstance(claim.value, list):
        low, high = (Number(float(end), claim.unit, digits=_exact(end)) for end in claim.value)
        return Published(relation, low, high)
    if claim.printed is not None:
        return Published(relation, published(claim.printed, claim.unit))
    if claim.formula is not None and (shown := formatted(claim.formula)).text:
        return Published("", shown)
    if isinstance(claim.value, bool):
        return Published("", "yes" if claim.value else "no")
    if isinstance(claim.value, int | float):
        return Published(
            relation, Number(float(claim.value), claim.unit, digits=_exact(claim.value))
        )
    if isinstance(claim.value, str):
        return Published(relation, words.prose(claim.value))
    return Published(relation, Missing("p"))


def _exact(value: float) -> str:
    return f"{value:.12g}" if "e" not in f"{value:.12g}" else f"{value:f}"


def _tightest(bounds: Iterable[Bound]) -> dict[str, Bound]:
    """One bound a claim: the lowest ceiling, or where there is none the highest floor.

    One that holds under every reading goes before one that rests on an assumption.
    """

    def key(bound: Bound) -> tuple[bool, bool, float]:
        ceiling = bound.relation == "≤"
        return (bound.assumption is not None, not ceiling, bound.value if ceiling else -bound.value)

    out: dict[str, Bound] = {}
    for bound in sorted(bounds, key=key):
        out.setdefault(bound.claim, bound)
    return out


def _limit(claim: Claim, bound: Bound | None) -> Limit | None:
    if bound is None:
        return None
    return Limit(
        bound.relation,
        Number(float(f"{convert(bound.value, bound.unit, claim.unit):.4g}"), claim.unit),
        bound.arithmetic,
        bound.assumption or "",
    )


def _measured(measurement: Measurement | None, machine: str, words: Words) -> Measured:
    if measurement is None:
        return Measured(machine, Missing("n", "no verdict"), "not run")
    if measurement.value is None:
        code = missing_code(measurement.reason)
        return Measured(
            machine, Missing(code, measurement.reason or ""), measurement.verdict,
            note=measurement.reason or "",
        )  # fmt: skip
    number = Number(measurement.value, measurement.unit or "1", measurement.low, measurement.high)
    value = power(measurement.power_of, number) if measurement.power_of else number
    ratio = None
    if measurement.verdict == "different hardware" and measurement.ratio is not None:
        ratio = Number(measurement.ratio, "x")
    remarks = [measurement.reason] if measurement.reason else []
    if measurement.reading:
        remarks.append(f"read as: {measurement.reading}")
    if measurement.relaxed:
        remarks.append(f"here with {words.conditions(measurement.relaxed)}")
    taken = (bool(measurement.relaxed), measurement.across, bool(measurement.reading))
    return Measured(
        machine=machine,
        value=value,
        verdict=measurement.verdict,
        mark=MARKS.get(measurement.verdict, ""),
        record=identity_key(measurement.record) if measurement.record else None,
        ratio=ratio,
        note="; ".join(remarks),
        liberties="".join(c for c, t in zip(LIBERTIES, taken, strict=True) if t),
    )


def power(symbol: str, exponent: Number) -> Formatted:
    """A measured growth as the power of a symbol that it is: N^(1.98 ± 0.09)."""
    low, high = (None if end is None else round(end, 3) for end in (exponent.low, exponent.high))
    mantissa, width, _ = split(Number(round(exponent.value, 3), "1", low, high))
    shown = f"({mantissa} ± {width})" if width else mantissa
    signed = mantissa + (rf" \pm {width}" if width else "")
    return Formatted(Tex(rf"\ensuremath{{{escape(symbol)}^{{{signed}}}}}"), f"{symbol}^{shown}")


_REASONS = {
    "unsupported:": "u",
    "disturbed:": "d",
    "failed:": "f",
    "oom:": "o",
    "skipped:": "s",
    "states a condition": "x",
    "states ": "p",
    "made of stated conditions": "x",
    "not under these conditions": "c",
    "its parts were measured": "c",
    "the report does not say what it is relative to": "b",
}


def missing_code(reason: str | None) -> str:
    """The code for the reason that a measurement verdict gives, by how it begins."""
    said = reason or ""
    return next((code for start, code in _REASONS.items() if said.startswith(start)), "n")
