"""Page 1: verdicts counted, the first findings, where the records come from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from zenrepro.report.evidence import MEASUREMENT_VERDICTS, Evidence, FindingEntry, Machine
from zenrepro.report.summary import PrintedFinding, period, printed_finding

TOP_FINDINGS = 16
# Where a report sums itself up: what it states there comes first.
_PROMINENT = frozenset(("title", "abstract", "conclusion"))


@dataclass(frozen=True)
class MeasurementCounts:
    """How many claims have each verdict on one machine, in the order of MEASUREMENT_VERDICTS."""

    machine: str
    title: str
    detail: str  # driver and days
    counts: list[int]


@dataclass(frozen=True)
class AuditCount:
    """How many claims have a verdict; ``part`` where the number is part of the one above."""

    words: str
    verdict: str
    number: int
    part: bool = False


def top(evidence: Evidence, limit: int = TOP_FINDINGS) -> list[PrintedFinding]:
    """The findings for page 1: errors, then what concerns abstract and conclusion, then the rest;
    no rule twice before every rule once."""
    chosen: list[FindingEntry] = []
    claims = evidence.claims
    errors = [e for e in evidence.findings if e.finding.severity == "error"]
    notes = [e for e in evidence.findings if e.finding.severity != "error"]
    first = [e for e in notes if claims[e.finding.claims[0]].where.part in _PROMINENT]
    for pool in (errors, first, [e for e in notes if e not in first]):
        times = Counter[str]()
        ranked = []
        for entry in pool:
            ranked.append((times[entry.finding.rule], entry.number, entry))
            times[entry.finding.rule] += 1
        chosen += [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])]
    return [printed_finding(evidence, e) for e in sorted(chosen[:limit], key=lambda e: e.number)]


def audit_counts(evidence: Evidence) -> list[AuditCount]:
    """Claims by verdict. Unverifiable ones are told apart: something that they need is not stated
    (a finding says what), or nothing in the report and the datasheets speaks of them."""
    out = []
    found = {
        name
        for entry in evidence.findings
        if entry.finding.verdict == "unverifiable"
        for name in entry.finding.claims
    }
    for verdict, number in evidence.audit.counts().items():
        out.append(AuditCount(verdict, verdict, number))
        if verdict == "unverifiable":
            lacking = sum(evidence.audit.verdicts[name] == verdict for name in found)
            out.append(AuditCount("something is left out", verdict, lacking, True))
            out.append(AuditCount("nothing to check against", verdict, number - lacking, True))
    return out


def measurement_counts(evidence: Evidence) -> list[MeasurementCounts]:
    """Per machine, claims by measurement verdict; claims without a verdict count as not run."""
    total = len(evidence.publication.claims)
    out = []
    for machine in evidence.machines:
        own = [m for m in evidence.measurements if m.machine == machine.name]
        counted = Counter[str](m.verdict for m in own)
        rest = total - sum(counted[v] for v in MEASUREMENT_VERDICTS[:-1])
        counts = [counted[v] for v in MEASUREMENT_VERDICTS[:-1]]
        out.append(MeasurementCounts(machine.name, machine.title, _when(machine), [*counts, rest]))
    return out


def _when(machine: Machine) -> str:
    drivers = sorted({r.environment.driver for r in machine.records if r.environment.driver})
    days = period(sorted(r.started for r in machine.records if r.started))
    return ", ".join([*(f"driver {d}" for d in drivers), f"measured {days}"])


def provenance(evidence: Evidence) -> str:
    """One line: how many records, from how many machines, of which days."""
    records = [entry.record for entry in evidence.records]
    if not records:
        return "No records yet: the audit alone"
    machines_word = "machine" if len(evidence.machines) == 1 else "machines"
    return (
        f"{len(records):,} records from {len(evidence.machines)} {machines_word}, measured "
        f"{period(sorted(r.started for r in records if r.started))}"
    )
