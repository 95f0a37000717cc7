"""A session's records as a small table: text in a terminal, HTML in a notebook."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence

from zenrepro.records import Record

_HEAD = ("implementation", "conditions", "quantity", "median", "unit", "n", "status")


class Table:
    """Shows the median of each record's samples, or why there are none."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.rows = [_row(record) for record in records]

    def __repr__(self) -> str:
        widths = [max(len(row[i]) for row in (_HEAD, *self.rows)) for i in range(len(_HEAD))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (_HEAD, *self.rows)
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(record: Record) -> tuple[str, ...]:
    conditions = " ".join(
        f"{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in record.conditions.items()
    )
    value = f"{statistics.median(record.samples):.4g}" if record.samples else "—"
    reason = f": {record.reason}" if record.reason else ""
    return (
        record.implementation, conditions, f"{record.quantity} {record.metric}", value,
        record.unit, str(len(record.samples)), f"{record.status}{reason}",
    )  # fmt: skip
