"""Everything a report is rendered from, gathered once: claims, datasheets, records, verdicts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zenrepro import claims as claims_module
from zenrepro import specs
from zenrepro.claims import Claim, Publication
from zenrepro.errors import InputError
from zenrepro.paths import MARKER, Project
from zenrepro.records import Record
from zenrepro.report import wording
from zenrepro.report.wording import Words
from zenrepro.specs import Datasheet

if TYPE_CHECKING:
    from zenrepro.audit import Audit, Finding
    from zenrepro.audit.measurement import Measurement

BODY_MACHINES = 3  # columns of measured numbers that a page holds
MEASUREMENT_VERDICTS = (
    "reproduced",
    "exceeded",
    "not reproduced",
    "different hardware",
    "not run",
)


@dataclass(frozen=True)
class Machine:
    """One machine's records, and what it is called in print."""

    name: str
    title: str
    records: list[Record]

    @property
    def device_class(self) -> Any:
        return self.records[0].device_class


@dataclass(frozen=True)
class RecordEntry:
    """A record with its place in the appendix: ``number`` counts from 1, ``key`` is its anchor."""

    number: int
    key: str
    record: Record


@dataclass(frozen=True)
class FindingEntry:
    """A finding with its number in print (F1, F2, ...: errors first)."""

    number: int
    finding: Finding

    @property
    def key(self) -> str:
        return f"finding-{self.number}"


@dataclass(frozen=True)
class Evidence:
    """What the templates see. Lists are in print order."""

    project: Project
    publication: Publication
    datasheets: dict[str, Datasheet]
    machines: list[Machine]
    body: list[str]
    audit: Audit
    measurements: list[Measurement]
    words: Words
    records: list[RecordEntry] = field(default_factory=list)
    findings: list[FindingEntry] = field(default_factory=list)

    @property
    def claims(self) -> dict[str, Claim]:
        return self.publication.by_id()

    def machine(self, name: str) -> Machine:
        """The machine of this name; KeyError when it has no records."""
        return next(m for m in self.machines if m.name == name)

    def findings_of(self, claim: str) -> list[FindingEntry]:
        """The findings that name a claim, in print order."""
        return [entry for entry in self.findings if claim in entry.finding.claims]


def identity_key(record: Record) -> str:
    """A short hash of a record's identity: its anchor in the PDF and the HTML."""
    text = json.dumps(record.identity(), default=str, sort_keys=True)
    return "r" + hashlib.sha256(text.encode()).hexdigest()[:12]


def gather(project: Project) -> Evidence:
    """Load and judge everything. Raises InputError naming the file or key that is wrong."""
    from zenrepro import audit as audit_module
    from zenrepro.audit import measurement
    from zenrepro.results.store import Store

    publication = _publication(project)
    datasheets = specs.load(project.hardware)
    records = Store(project.results).load()
    return assemble(
        project,
        publication,
        datasheets,
        records,
        audit_module.run(publication, datasheets),
        measurement.judge(publication, records),
    )


def assemble(
    project: Project,
    publication: Publication,
    datasheets: dict[str, Datasheet],
    records: Sequence[Record],
    audit: Audit,
    measurements: Iterable[Measurement],
) -> Evidence:
    """Order and number what was loaded. Raises InputError for an unknown machine in the project."""
    machines = _machines(project, records)
    entries: list[RecordEntry] = []
    for machine in machines:
        for record in machine.records:
            entries.append(RecordEntry(len(entries) + 1, identity_key(record), record))
    ordered = sorted(audit.findings, key=lambda f: f.severity != "error")  # stable
    return Evidence(
        project=project,
        publication=publication,
        datasheets=datasheets,
        machines=machines,
        body=(project.machines or [m.name for m in machines])[:BODY_MACHINES],
        audit=audit,
        measurements=list(measurements),
        words=wording.load(
            project.templates / wording.LABELS,
            {platform: sheet.name for platform, sheet in datasheets.items()},
        ),
        records=entries,
        findings=[FindingEntry(i, finding) for i, finding in enumerate(ordered, start=1)],
    )


def _publication(project: Project) -> Publication:
    files = sorted(project.published.glob("*.yaml"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise InputError(
            f"{project.published}: a project is one report, so one file of claims (*.yaml) is "
            f"wanted here; found: {found}"
        )
    return claims_module.load(files[0])


def _machines(project: Project, records: Sequence[Record]) -> list[Machine]:
    """The machines: the project's first, in its order, then the rest by name."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.machine, []).append(record)
    for name in project.machines:
        if name not in by_name:
            raise InputError(
                f"{project.root / MARKER}: machines names {name!r}, which has no results under "
                f"{project.results}; machines with results: {', '.join(sorted(by_name)) or 'none'}"
            )
    names = [*project.machines, *sorted(set(by_name) - set(project.machines))]
    titles = _titles({name: by_name[name] for name in names})
    return [Machine(name, titles[name], sorted(by_name[name], key=_order)) for name in names]


def _order(record: Record) -> tuple[str, ...]:
    return (
        record.experiment,
        record.implementation,
        json.dumps(record.conditions, sort_keys=True, default=str),
        record.quantity,
        record.metric,
    )


def _titles(machines: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Short names for columns: the device's model, with the machine's label where two share it."""
    models = {name: short_model(records[0]) for name, records in machines.items()}
    out = {}
    for name, model in models.items():
        shared = list(models.values()).count(model) > 1
        label = name.removeprefix(machines[name][0].device_class.platform).strip("-")
        out[name] = f"{model} ({label})" if shared and label else model
    return out


def short_model(record: Record) -> str:
    """A device's model without trademark signs and clock rates, with the number of devices."""
    device = record.device_class
    model = re.sub(r"\((R|TM|C)\)|®|™| CPU| Processor|@.*$", "", device.model, flags=re.I)
    model = " ".join(model.split()) or device.platform
    return f"{device.count}× {model}" if device.count > 1 else model
