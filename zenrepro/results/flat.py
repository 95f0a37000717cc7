"""The flat view of records: one plain object each, for people's own tools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from zenrepro.records import Record
from zenrepro.stats import summarise

FIELDS = (
    "experiment", "quantity", "metric", "unit", "value", "low", "high", "n", "status", "reason",
    "kind", "machine", "device_class", "implementation", "origin", "baseline", "conditions",
)  # fmt: skip


def flatten(record: Record) -> dict[str, Any]:
    """One record as a JSON object with the keys of ``FIELDS``.

    ``value`` is the median, ``low`` and ``high`` its 95 % interval, ``n`` the number of samples;
    a record without samples has None and 0.
    """
    summary = summarise(record.samples) if record.samples else None
    return {
        "experiment": record.experiment,
        "quantity": record.quantity,
        "metric": record.metric,
        "unit": record.unit,
        "value": summary.value if summary else None,
        "low": summary.low if summary else None,
        "high": summary.high if summary else None,
        "n": summary.n if summary else 0,
        "status": record.status.value,
        "reason": record.reason,
        "kind": record.kind.value,
        "machine": record.machine,
        "device_class": msgspec.to_builtins(record.device_class),
        "implementation": record.implementation,
        "origin": record.origin.value,
        "baseline": record.baseline,
        "conditions": msgspec.to_builtins(record.conditions),
    }


def encode(records: Iterable[Record]) -> bytes:
    """The flat view as an indented JSON array, one object a record."""
    rows = [flatten(record) for record in records]
    return msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n"
