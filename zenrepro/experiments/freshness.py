"""Whether a stored record still stands for what a session would measure now."""

from __future__ import annotations

from collections.abc import Sequence

from zenrepro.conditions import KEYS
from zenrepro.experiments.point import SCALES
from zenrepro.records import Record, Status

NOT_ATTEMPTED = "not attempted"
"""Flag of a record whose reason was known before measuring: stale once the reason is gone."""

DIED_TOGETHER = "died while several were sampled in turn"
"""Flag of a record whose process died in rounds with others: one of them did it, unknown which."""


def why_stale(record: Record, now: Record, selecting: Sequence[str] = ()) -> str | None:
    """Why ``record`` must be measured again, None where it is fresh.

    ``now`` is the record that would be written now, complete but for its outcome. A failed record
    is always tried again. A record of a larger scale serves a smaller one. ``selecting`` names
    the parameters that only choose among points.
    """
    if record.status is Status.FAILED:
        return "failed before"
    if NOT_ATTEMPTED in record.flags:
        return "not attempted before"
    for kind, then, today in (
        ("source", record.inputs.sources, now.inputs.sources),
        ("data", record.inputs.data, now.inputs.data),
    ):
        for name in sorted({*then, *today}):
            if then.get(name) != today.get(name):
                return f"{kind} {name} changed"
    if record.device_class != now.device_class:
        return f"device was {record.device_class.model}, is {now.device_class.model}"
    then, today = record.environment.stable(), now.environment.stable()
    for key in then:
        if then[key] != today[key]:
            return f"{key} changed: {_difference(then[key], today[key])}"
    return _parameters(record, now, selecting)


def _parameters(record: Record, now: Record, selecting: Sequence[str]) -> str | None:
    """Parameters that a record's identity, machine and device class do not tell already."""
    told = {"backend", "device", *KEYS, *selecting}
    for name in sorted({*record.parameters, *now.parameters} - told):
        was, is_ = record.parameters.get(name), now.parameters.get(name)
        if name == "scale" and was in SCALES and is_ in SCALES:
            if SCALES.index(was) >= SCALES.index(is_):
                continue
            return f"scale was {was}, is {is_}"
        if isinstance(is_, list):
            continue  # says which points there are; a record's own is in its conditions
        if was != is_:
            return f"parameter {name} was {was!r}, is {is_!r}"
    return None


def _difference(then: object, today: object) -> str:
    if isinstance(then, dict) and isinstance(today, dict):
        names = [n for n in sorted({*then, *today}) if then.get(n) != today.get(n)]
        return ", ".join(f"{n} {then.get(n)} -> {today.get(n)}" for n in names)
    return f"{then} -> {today}"
