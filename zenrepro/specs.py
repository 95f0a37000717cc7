"""Datasheets: what vendors state of their hardware, each figure with its source.

The schema of ``data/hardware/<platform>.yaml``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from zenrepro.documents import decode_yaml, read_yaml
from zenrepro.errors import InputError
from zenrepro.units import unit

SCHEMA = 1


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A vendor's page or datasheet."""

    title: str
    url: str
    publisher: str
    date: str | None = None


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One datasheet figure. ``source`` is an index into the datasheet's sources.

    ``quantity``: flop_rate | bandwidth | memory | power | count. ``metric`` tells kinds apart:
    dense | sparse (flop_rate), peak (bandwidth), capacity (memory), tdp (power), cores (count).
    """

    quantity: Literal["flop_rate", "bandwidth", "memory", "power", "count"]
    metric: str
    value: float
    unit: str
    source: int
    dtype: str | None = None
    note: str | None = None


class Datasheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One product. ``exists`` is false for a name that no vendor sells; ``nearest`` then lists
    platforms that may have been meant. ``device_names`` are what drivers call it. ``native``
    lists the formats that its matrix units compute in."""

    schema: int
    platform: str
    name: str
    vendor: str
    sources: list[Source]
    figures: list[Figure] = []
    exists: bool = True
    nearest: list[str] = []
    form_factor: str | None = None
    memory_type: str | None = None
    device_names: list[str] = []
    native: list[str] = []
    note: str | None = None

    def figure(self, quantity: str, metric: str, dtype: str | None = None) -> float | None:
        """The figure in base units (B/s, FLOP/s, B, W), or None where no vendor states it."""
        for f in self.figures:
            if (f.quantity, f.metric, f.dtype) == (quantity, metric, dtype):
                return f.value * unit(f.unit).factor
        return None


def load(folder: Path) -> dict[str, Datasheet]:
    """Load every datasheet in a folder, by platform slug. Raises InputError naming the file."""
    sheets: dict[str, Datasheet] = {}
    for path in sorted(folder.glob("*.yaml")):
        sheet = check(read_yaml(path), str(path))
        if sheet.platform != path.stem:
            raise InputError(f"{path}: platform is {sheet.platform!r}, the file's name differs")
        sheets[sheet.platform] = sheet
    for sheet in sheets.values():
        for other in sheet.nearest:
            if other not in sheets:
                raise InputError(f"{folder}/{sheet.platform}.yaml: nearest {other!r} has no file")
    return sheets


def parse(text: str, place: str) -> Datasheet:
    """Validate the text of one datasheet. Raises InputError naming ``place`` and the field."""
    return check(decode_yaml(text, place), place)


def check(raw: Any, place: str) -> Datasheet:
    """Validate the decoded content of one datasheet. Raises InputError naming ``place``."""
    try:
        sheet = msgspec.convert(raw, Datasheet)
        for f in sheet.figures:
            unit(f.unit)
            if not 0 < f.value < math.inf:
                raise InputError(f"a figure of {f.quantity} {f.metric} is {f.value}; leave it out")
            if not 0 <= f.source < len(sheet.sources):
                raise InputError(f"a figure's source {f.source} is not in sources")
    except (msgspec.ValidationError, InputError) as error:
        raise InputError(f"{place}: {error}") from None
    if sheet.schema != SCHEMA:
        raise InputError(f"{place}: schema is {sheet.schema}, this zenrepro reads {SCHEMA}")
    return sheet
