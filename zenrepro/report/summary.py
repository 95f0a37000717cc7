"""The appendices: findings, machines, comparisons and records, summarised for print."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from zenrepro import stats
from zenrepro.claims import Claim
from zenrepro.records import Record, Status
from zenrepro.report import tables, wording
from zenrepro.report.evidence import (
    Evidence,
    FindingEntry,
    Machine,
    RecordEntry,
    identity_key,
)
from zenrepro.report.numbers import Missing, Number, readable, unit_text
from zenrepro.report.wording import Words
from zenrepro.units import convert

_STATUS_CODES = {
    Status.FAILED: "f",
    Status.UNSUPPORTED: "u",
    Status.OOM: "o",
    Status.SKIPPED: "s",
    Status.DISTURBED: "d",
}


@dataclass(frozen=True)
class ClaimInWords:
    """A claim as findings name it."""

    id: str
    words: str
    printed: str
    line: int


@dataclass(frozen=True)
class PrintedFinding:
    """A finding with its claims in words. ``subject`` names them in a phrase."""

    number: int
    key: str
    finding: Any
    arithmetic: str
    mend: str
    claims: list[ClaimInWords]
    against: list[ClaimInWords]
    subject: str
    printed: Any  # what the report prints of the first claim
    instead: str  # what the audit holds against it, in a phrase

    @property
    def lines(self) -> int:
        """How many lines it takes on paper, about: a short finding stays on one page."""
        texts = [
            self.arithmetic,
            self.mend,
            " ".join(c.words for c in self.against),
        ]
        return min(10, 2 + len(self.claims) + sum(1 + len(text) // 95 for text in texts if text))


@dataclass(frozen=True)
class PrintedMachine:
    """A machine in the appendix: (name, value) pairs of what is known, and what is not."""

    name: str
    key: str
    title: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class SampleSummary:
    """What the raw samples of a record say."""

    median: Number
    low: Number
    high: Number
    least: Number
    most: Number
    n: int


@dataclass(frozen=True)
class PrintedRecord:
    """A line of the record appendix: a summary, or a reason why there is none."""

    number: int
    key: str
    quantity: str
    unit: str
    remark: str
    summary: SampleSummary | None
    missing: Missing | None
    record: Record

    @property
    def samples(self) -> str:
        """The raw samples, in the record's unit, as they were stored."""
        return " ".join(f"{sample:.9g}" for sample in self.record.samples)

    @property
    def provenance(self) -> list[tuple[str, str]]:
        """What the record came from, as far as it is known."""
        r = self.record
        known = [
            ("metric", r.metric), ("kind", str(r.kind)), ("origin", str(r.origin)),
            ("unit", r.unit), ("method", r.method), ("baseline", r.baseline),
            ("seed", None if r.seed is None else str(r.seed)), ("started", r.started),
            ("commit", f"{r.commit} (changed since)" if r.commit and r.dirty else r.commit),
            ("parameters", ", ".join(f"{k} {v}" for k, v in r.parameters.items())),
            ("sources", ", ".join(sorted(r.inputs.sources))),
            ("data", ", ".join(sorted(r.inputs.data))),
        ]  # fmt: skip
        return [(name, value) for name, value in known if value]


@dataclass(frozen=True)
class RecordGroup:
    """Records of one implementation under one set of conditions."""

    experiment: str
    implementation: str
    conditions: str
    rows: list[PrintedRecord]


def claim_in_words(claim: Claim, words: Words) -> ClaimInWords:
    """How a list of findings names a claim."""
    printed = claim.printed or ""
    if printed and claim.unit == "x":
        printed += "×"
    elif printed and unit_text(claim.unit):
        printed += f"\u00a0{unit_text(claim.unit)}"
    return ClaimInWords(claim.id, words.describe(claim), printed, claim.where.line)


def findings(evidence: Evidence) -> list[PrintedFinding]:
    """All findings, in print order."""
    return [printed_finding(evidence, entry) for entry in evidence.findings]


# What a table's column for the printed number says already, and asides.
_OPERANDS = re.compile(r"(?:(?<= give )|(?<=; ))(?!published)[^;=]+ = ")
_ASIDE = re.compile(r" in place of [^;]*| \([^()]*\)")


def printed_finding(evidence: Evidence, entry: FindingEntry) -> PrintedFinding:
    """One finding, its claims and names in words."""
    claims = evidence.claims
    named = [claim_in_words(claims[name], evidence.words) for name in entry.finding.claims]
    words = [c.words for c in named[:2]]
    more = f" and {len(named) - 2} more" if len(named) > 2 else ""
    prose = evidence.words.prose
    told = entry.finding.mend if entry.finding.severity == "error" else entry.finding.arithmetic
    if entry.finding.severity != "error":
        told = _OPERANDS.sub("", told)
    told = told.removeprefix(f"{named[0].printed}: ".replace("\u00a0", " "))
    return PrintedFinding(
        number=entry.number,
        key=entry.key,
        finding=entry.finding,
        arithmetic=prose(entry.finding.arithmetic),
        mend=prose(entry.finding.mend),
        printed=tables.published_value(claims[entry.finding.claims[0]], evidence.words).value,
        instead=prose(_ASIDE.sub("", told)),
        claims=named,
        against=[claim_in_words(claims[name], evidence.words) for name in entry.finding.against],
        subject="; ".join(words) + more,
    )


def machines(evidence: Evidence) -> list[PrintedMachine]:
    """What is known of every machine, and of the software that its records came from."""
    return [
        PrintedMachine(m.name, f"machine-{i}", m.title, list(_facts(m)))
        for i, m in enumerate(evidence.machines, start=1)
    ]


def _facts(machine: Machine) -> Iterator[tuple[str, str]]:
    device = machine.device_class
    yield "Machine", machine.name
    devices = f"{device.count} × {device.model}" if device.count > 1 else device.model
    yield "Device", devices + (f", {device.form_factor}" if device.form_factor else "")
    yield "Memory", _memory(device.memory_bytes)
    environments = [record.environment for record in machine.records]
    for name, field in (
        ("Operating system", "os"),
        ("Python", "python"),
        ("Driver", "driver"),
        ("Runtime", "runtime"),
    ):
        yield name, _distinct(getattr(e, field) for e in environments)
    yield (
        "Power limit",
        _distinct(
            f"{e.power_limit_w:g} W" if e.power_limit_w is not None else None for e in environments
        ),
    )
    yield "Idle power", _range([e.idle_power_w for e in environments], "W")
    for clock in sorted({name for e in environments for name in e.clocks_mhz}):
        yield (
            f"Clock ({clock.replace('_', ' ')})",
            _range([e.clocks_mhz.get(clock) for e in environments], "MHz"),
        )
    yield "Temperature", _range([e.temperature_c for e in environments], "°C")
    throttles = sorted({reason for e in environments for reason in e.throttle_reasons})
    yield "Throttling seen", ", ".join(throttles) or "none reported"
    loads = _alike(e.other_load for e in environments if e.other_load)
    yield "Other load", "; ".join(text for text, _ in loads) or "unknown"
    packages: dict[str, set[str]] = {}
    for e in environments:
        for package, version in (*e.packages.items(), *e.compilers.items()):
            packages.setdefault(package, set()).add(version)
    listed = (f"{name} {' and '.join(sorted(versions))}" for name, versions in packages.items())
    yield "Software", ", ".join(sorted(listed)) or "unknown"
    yield "Flags", ", ".join(_flags(machine.records)) or "none"
    commits = sorted({r.commit for r in machine.records if r.commit})
    yield "Code", ", ".join(c[:12] for c in commits) or "commit unknown (source hashes are kept)"
    statuses = Counter(str(record.status) for record in machine.records)
    yield "Records", ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))
    started = sorted(r.started for r in machine.records if r.started)
    yield "Measured", period(started)


_DIGITS = re.compile(r"[+-]?\d+(?:\.\d+)?")


def _flags(records: Iterable[Record]) -> Iterator[str]:
    """The flags of all records, and how many have each."""
    for text, count in _alike(flag for record in records for flag in record.flags):
        yield f"{text} ({count} {'record' if count == 1 else 'records'})"


def _alike(texts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Texts and their counts; those that differ in their numbers alone are one, with the ranges."""
    alike: dict[str, list[list[str]]] = {}
    for each in texts:
        alike.setdefault(_DIGITS.sub("\0", each), []).append(_DIGITS.findall(each))
    for stem, numbers in sorted(alike.items()):
        text = stem
        for column in zip(*numbers, strict=True):
            low, high = min(column, key=float), max(column, key=float)
            text = text.replace("\0", low if low == high else f"{low} to {high}", 1)
        yield text, len(numbers)


def period(started: list[str]) -> str:
    """The days of these times, first to last."""
    if not started:
        return "unknown"
    first, last = started[0][:10], started[-1][:10]
    return first if first == last else f"{first} to {last}"


def _memory(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:,.1f} GB ({size / 2**30:,.1f} GiB)"


def _distinct(values: Iterator[str | None] | Any) -> str:
    return " and ".join(sorted({v for v in values if v})) or "unknown"


def _range(values: list[float | None], unit: str) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "unknown"
    low, high = min(known), max(known)
    return f"{low:.4g} {unit}" if low == high else f"{low:.4g} to {high:.4g} {unit}"


@dataclass(frozen=True)
class Comparison:
    """One measured claim: what was compared with what, and which liberties were taken."""

    claim: ClaimInWords
    verdict: str
    ratio: Number | None
    records: list[RecordEntry]
    remarks: list[str]


def comparisons(evidence: Evidence, machine: str) -> list[Comparison]:
    """Every claim for which a machine has a number, in the claims' order."""
    entries = {entry.key: entry for entry in evidence.records}
    out = []
    for found in evidence.measurements:
        if found.machine != machine or found.value is None:
            continue
        used = [r for r in (found.record, *found.against) if r is not None]
        remarks = [found.reason] if found.reason else []
        if found.reading:
            remarks.append(f"read as: {found.reading}")
        if found.relaxed:
            remarks.append(f"here with {evidence.words.conditions(found.relaxed)}")
        if found.across:
            remarks.append("a ratio from another class of device")
        out.append(
            Comparison(
                claim_in_words(evidence.claims[found.claim], evidence.words),
                found.verdict,
                None if found.ratio is None else Number(found.ratio, "x"),
                [entries[key] for r in used if (key := identity_key(r)) in entries],
                remarks,
            )
        )
    return out


def record_groups(entries: list[RecordEntry], words: Words) -> list[RecordGroup]:
    """One machine's records, by implementation and conditions."""

    def key(entry: RecordEntry) -> tuple[str, str, str]:
        record = entry.record
        phrase = words.conditions(record.conditions) or "no conditions"
        return record.experiment, record.implementation, phrase

    groups = []
    for shared, members in groupby(entries, key=key):
        # Records of one case come from the same samples mostly: a flag is told once.
        told: set[str] = set()
        groups.append(RecordGroup(*shared, [printed_record(entry, told) for entry in members]))
    return groups


def printed_record(entry: RecordEntry, told: set[str]) -> PrintedRecord:
    """One record, its samples summarised. Flags in ``told`` are left out; its own are added."""
    record = entry.record
    remarks = [str(record.kind)] if record.kind != "measured" else []
    if record.status is not Status.OK:
        remarks.append(f"{record.status}: {record.reason or 'no reason given'}")
    remarks += [flag for flag in record.flags if flag not in told]
    told.update(record.flags)
    summary = _summary(record) if record.samples else None
    return PrintedRecord(
        number=entry.number,
        key=entry.key,
        quantity=wording.quantity(record.quantity, record.metric),
        unit=_unit_shown(summary.median.unit if summary else record.unit),
        remark="; ".join(remarks),
        summary=summary,
        missing=None if summary else Missing(_STATUS_CODES.get(record.status, "n")),
        record=record,
    )


def _unit_shown(symbol: str) -> str:
    return "" if symbol in ("1", "count") else symbol


def _summary(record: Record) -> SampleSummary:
    value, low, high, n = stats.summarise(record.samples)
    symbol = readable(value, record.unit)

    def number(x: float) -> Number:
        return Number(convert(x, record.unit, symbol), symbol)

    return SampleSummary(
        number(value), number(low), number(high),
        number(min(record.samples)), number(max(record.samples)), n,
    )  # fmt: skip
