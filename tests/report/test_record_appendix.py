"""The appendix of records: what stands at a record, what is told once for a case."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from zenrepro.report import summary
from zenrepro.report.wording import Words


def test_a_flag_that_records_of_a_case_share_is_told_once(evidence: Any) -> None:
    entry = next(e for e in evidence.records if e.record.samples)
    flagged = [
        dataclasses.replace(
            entry, number=i, record=msgspec.structs.replace(entry.record, flags=["warm", *extra])
        )
        for i, extra in ((1, []), (2, ["drifted"]))
    ]
    (group,) = summary.record_groups(flagged, Words({}, {}))
    assert [row.remark for row in group.rows] == ["warm", "drifted"]


def test_loads_that_differ_in_numbers_are_one_text(evidence: Any) -> None:
    machine = evidence.machines[0]
    loads = ["others used 0.1 of 2 cores", "others used 0.9 of 2 cores", "none"]
    records = [
        msgspec.structs.replace(
            machine.records[0],
            environment=msgspec.structs.replace(machine.records[0].environment, other_load=load),
        )
        for load in loads
    ]
    rows = dict(summary._facts(dataclasses.replace(machine, records=records)))
    assert rows["Other load"] == "none; others used 0.1 to 0.9 of 2 cores"
