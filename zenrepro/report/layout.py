"""How wide the columns of a table are on paper, so that none sticks out of the text.

Widths are estimated from the characters that the cells hold: numbers keep their natural width,
texts get a column that breaks lines, and the first column takes what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zenrepro.report import numbers
from zenrepro.report.formulas import Formatted
from zenrepro.report.numbers import Missing, Number
from zenrepro.report.tables import Table
from zenrepro.report.wording import title_lines

TEXT_MM = 160.0  # the width of the text, less what the estimates may be off
AUDIT_MM = 25.0
_GAP_MM = 3.2  # between two columns
_DIGIT_MM = 1.5  # a digit at footnote size
_SMALLER = 0.88  # script size against footnote size
_NARROWEST_MM = 34.0  # a first column that still reads well
_LEAST_MM = 20.0


@dataclass(frozen=True)
class Layout:
    """Widths in whole millimetres. ``words_mm``: of a published column that holds texts, else 0;
    ``mostly_numbers``: nearly all its rows have numbers, so that it is set to the right;
    ``first_lines``: lines of text that head and first rows take; ``small``: the table is set one
    size smaller."""

    label_mm: int
    words_mm: int
    mostly_numbers: bool
    audit_mm: int
    first_lines: int
    small: bool


def fit(table: Table, titles: Mapping[str, str]) -> Layout:
    """The layout of a table. Where digits alone would not fit, the table is set smaller."""
    for small in (False, True):
        scale = _DIGIT_MM * (_SMALLER if small else 1.0)
        words = _words_mm(table) * (_SMALLER if small else 1.0)
        published = words or scale * max(
            [8.5, *(_length(line.published.value) + 2 for line in table.lines)]
        )
        bound = scale * max(
            [5.0, *(_length(line.limit.value) + 3.5 for line in table.lines if line.limit)]
        )
        measured = sum(
            _column(table, place, titles[name], scale) for place, name in enumerate(table.machines)
        )
        count = max(1, len(table.machines))
        audit = AUDIT_MM * (_SMALLER if small else 1.0)
        taken = published + bound + (measured or scale * 8) + audit + _GAP_MM * (3 + count)
        label = TEXT_MM - taken
        if label >= _NARROWEST_MM or small:
            # Room to spare goes to the last column, whose verdicts carry several findings.
            spare = min(10.0, max(0.0, label - 58.0))
            label, audit = label - spare, audit + spare
            return Layout(
                label_mm=int(max(_LEAST_MM, min(label, 70))),
                words_mm=int(words),
                mostly_numbers=_mostly_numbers(table),
                audit_mm=int(audit),
                first_lines=_first_lines(table, titles),
                small=small,
            )
    raise AssertionError  # the second round always returns


def _first_lines(table: Table, titles: Mapping[str, str]) -> int:
    """Caption, head and the rows that may not be parted from them."""
    first = min(4, len(table.groups[0].lines)) if table.groups else 0
    head = max((len(title_lines(titles[name])) for name in table.machines), default=1)
    return 7 + head + first * (2 if _words_mm(table) else 1)


def _column(table: Table, place: int, title: str, scale: float) -> float:
    """One machine's two columns: the value, and the mark with its letters and ratio."""
    value = mark = 2.0
    for line in table.lines:
        cell = line.measured[place]
        value = max(value, _length(cell.value) + 0.5)
        ratio = 0.8 + _length(cell.ratio) if cell.ratio else 0.0
        mark = max(mark, 1.8 * bool(cell.mark) + 0.6 * len(cell.liberties) + ratio)
    several = len(table.machines) > 1
    head = max(len(line) for line in title_lines(title)) if several else len(title)
    return scale * max(value + mark + 0.8, min(head, 24) * 1.1)


def _words_mm(table: Table) -> float:
    longest = max(
        (_length(line.published.value) for line in table.lines if _is_text(line.published.value)),
        default=0,
    )
    return 0.0 if longest <= 10 else 24.0 if longest <= 16 else 33.0


def _mostly_numbers(table: Table) -> bool:
    numbers_in = sum(isinstance(line.published.value, Number) for line in table.lines)
    return 4 * numbers_in > 3 * len(table.lines)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | Formatted)


def _length(value: Any) -> float:
    """Characters that a value takes in print, about: a power of ten takes four."""
    if isinstance(value, Missing):
        return 2.0
    if isinstance(value, Formatted):
        base, _, power = value.text.partition("^(")  # brackets are for plain text alone
        return len(base) + 0.7 * max(0, len(power) - 1)
    if isinstance(value, Number):
        text = numbers.text(value, with_unit=False)
        narrow = sum(text.count(c) for c in ",.")
        return len(text) - 0.45 * narrow - (0.8 if "\u00b1" in text else 0.0)
    return float(len(value)) if value else 0.0
