"""Tables of measurements beside those of claims: cells by column, the same for TeX and HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from zenrepro.errors import InputError
from zenrepro.records import Record, Status
from zenrepro.report import numbers
from zenrepro.report.evidence import Evidence, Machine, identity_key
from zenrepro.report.layout import TEXT_MM
from zenrepro.report.numbers import CODES, Missing, Number

_STATUS_CODES = {
    Status.FAILED: "f", Status.UNSUPPORTED: "u", Status.OOM: "o", Status.SKIPPED: "s",
    Status.DISTURBED: "d",
}  # fmt: skip


# What a character takes in scriptsize, what stands between columns, and the narrowest label.
_DIGIT_MM, _LETTER_MM, _GAP_MM, _LEAST_MM = 1.33, 1.3, 3.0, 18.0


@dataclass(frozen=True)
class Cell:
    """What stands in one place: a value, the anchor of its record, and a mark behind it."""

    value: Number | Missing | str
    record: str | None = None
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """One row; ``group`` names the rows from here on, where it is not empty."""

    label: str
    cells: list[Cell]
    group: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of measurements of one machine. ``head`` names the columns, the label's first.

    ``spans`` stand above the head: texts and over how many columns. ``empty`` says why there are
    no lines.
    """

    name: str
    title: str
    head: list[str]
    lines: list[Line]
    note: str = ""
    empty: str = ""
    marks: dict[str, str] = field(default_factory=dict)
    spans: list[tuple[str, int]] = field(default_factory=list)

    @property
    def label_mm(self) -> int:
        """The label's width on paper: what the columns leave, and no more than it needs."""
        taken = 0.0
        for place, name in enumerate(self.head[1:]):
            cells = [line.cells[place] for line in self.lines if place < len(line.cells)]
            longest = max([len(name), *(_length(cell) for cell in cells)], default=0)
            taken += _DIGIT_MM * longest + _GAP_MM
        label = max((len(line.label or line.group) for line in self.lines), default=0)
        return int(max(_LEAST_MM, min(TEXT_MM - taken, _LETTER_MM * label + 4)))

    @property
    def codes(self) -> dict[str, str]:
        """The codes of missing values that this table uses."""
        values = [cell.value for line in self.lines for cell in line.cells]
        used = {value.code for value in values if isinstance(value, Missing)}
        return {code: words for code, words in CODES.items() if code in used}

    @property
    def marked(self) -> dict[str, str]:
        """The marks that this table uses."""
        used = {mark for line in self.lines for cell in line.cells for mark in cell.mark}
        return {mark: words for mark, words in self.marks.items() if mark in used}


def _length(cell: Cell) -> float:
    """Characters that a cell takes in print, about."""
    value = cell.value
    if isinstance(value, Missing):
        return 2.0
    text = numbers.text(value, with_unit=False) if isinstance(value, Number) else value
    return len(text) - 0.5 * sum(text.count(c) for c in ",.") + 1.5 * len(cell.mark)


def missing(record: Record) -> Cell:
    """A dash with the code of the record's status."""
    code = _STATUS_CODES.get(record.status, "n")
    return Cell(Missing(code, record.reason or ""), identity_key(record))


NONE = Cell("")


def _built(evidence: Evidence, name: str, machine: Machine | None) -> Grid:
    """The table of this name for a machine, or as it stands before any has measured."""
    from zenrepro.report import ablation, kernels, shape

    kind, _, of = name.partition(":")
    if kind == "shape" and of:
        return shape.grid(evidence, of, machine)
    if kind == "kernels" and of:
        return kernels.grid(evidence, of, machine)
    if name == "ablation":
        return ablation.grid(machine)
    raise InputError(f"a template asks for grid {name!r}; grids: shape:TABLE, kernels:OP, ablation")


def build(evidence: Evidence, name: str) -> Grid:
    """The table of this name for the first machine of the body that has numbers for it.

    ``shape:TABLE`` is a published table by implementation, ``kernels:OP`` an op's cases, and
    ``ablation`` the three forms of latent attention. Raises InputError for another name.
    """
    for machine in evidence.body:
        made = _built(evidence, name, evidence.machine(machine))
        if not made.empty:
            return made
    return _built(evidence, name, None)


def every(evidence: Evidence) -> Iterator[Grid]:
    """Every table that has numbers, for every machine."""
    from zenrepro.report import kernels, shape

    names = [f"shape:{table}" for table in shape.tables(evidence)]
    names += [f"kernels:{op}" for op in kernels.BARS]
    for name in [*names, "ablation"]:
        for machine in evidence.machines:
            made = _built(evidence, name, machine)
            if not made.empty:
                yield made
