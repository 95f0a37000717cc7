"""Wrong reports: one cell of a true report changed, as slips of the pen or the unit change it."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

Raw = dict[str, Any]
Cell = dict[str, Any]


def _reprint(cell: Cell, value: float) -> bool:
    """Print a new value with as many decimals as before; False when that changes nothing."""
    old = cell["printed"]
    places = len(old.split(".")[1]) if "." in old else 0
    text = f"{value:,.{places}f}" if "," in old else f"{value:.{places}f}"
    if float(text.replace(",", "")) == float(old.replace(",", "")):
        return False
    cell["printed"] = text
    cell["value"] = float(text.replace(",", ""))
    return True


def tenfold(raw: Raw, cell: Cell, rng: random.Random) -> bool:
    """The decimal point slips one place."""
    value = cell["value"]
    factor = 10 if rng.random() < 0.5 or float(value) == 0 else 0.1
    if factor == 0.1 and "." not in cell["printed"] and value % 10:
        places = len(cell["printed"])
        cell["printed"] = f"{value / 10:.1f}" if places else cell["printed"]
        cell["value"] = float(cell["printed"])
        return True
    return _reprint(cell, value * factor)


def swap_digits(raw: Raw, cell: Cell, rng: random.Random) -> bool:
    """Two neighbouring digits change places, among the first three that count."""
    text = list(cell["printed"])
    places = [i for i, c in enumerate(text) if c.isdigit()]
    while places and text[places[0]] == "0":
        places.pop(0)
    for a, b in itertools.pairwise(places[:3]):
        if text[a] != text[b] and not (text[b] == "0" and a == places[0]):
            text[a], text[b] = text[b], text[a]
            cell["printed"] = "".join(text)
            cell["value"] = float(cell["printed"].replace(",", ""))
            return True
    return False


def add_fifth(raw: Raw, cell: Cell, rng: random.Random) -> bool:
    """Twenty per cent more."""
    return _reprint(cell, cell["value"] * 1.2)


def flip_sign(raw: Raw, cell: Cell, rng: random.Random) -> bool:
    """Plus for minus."""
    text = cell["printed"]
    if cell["value"] == 0:
        return False
    cell["printed"] = text[1:] if text.startswith("-") else "-" + text
    cell["value"] = -cell["value"]
    return True


def swap_rows(raw: Raw, cell: Cell, rng: random.Random) -> bool:
    """Two cells of one column change places."""
    others = [
        c
        for c in raw["claims"]
        if c is not cell
        and all(c.get(key) == cell.get(key) for key in ("quantity", "metric", "unit"))
        and c.get("printed")
        and abs(c["value"] - cell["value"]) > 0.2 * abs(cell["value"])
    ]  # fmt: skip
    if not others:
        return False
    other = rng.choice(others)
    for key in ("printed", "value"):
        cell[key], other[key] = other[key], cell[key]
    return True


_SLIPS = {
    "ms": "s", "ms/token": "us/token", "us": "ms", "s": "ms", "GB": "MB", "GB/s": "TB/s",
    "TB/s": "GB/s", "TFLOP/s": "GFLOP/s", "W": "mW", "Gparameter": "parameter",
}  # fmt: skip


def slip_unit(raw: Raw, cell: Cell, rng: random.Random) -> bool:
    """The unit of one cell is the neighbouring one, a thousand times apart or more."""
    if cell.get("unit") not in _SLIPS:
        return False
    cell["unit"] = _SLIPS[cell["unit"]]
    return True


MUTATIONS: dict[str, Callable[[Raw, Cell, random.Random], bool]] = {
    "×10 or ÷10": tenfold,
    "digits swapped": swap_digits,
    "+20 %": add_fifth,
    "sign": flip_sign,
    "rows swapped": swap_rows,
    "unit slip": slip_unit,
}


def mutate(raw: Raw, index: int, kind: str, rng: random.Random) -> Raw | None:
    """A copy with claim ``index`` changed; None where this kind of change does not apply."""
    changed = {**raw, "claims": copy.copy(raw["claims"])}
    changed["claims"] = [dict(c) for c in raw["claims"]]
    cell = changed["claims"][index]
    if not cell.get("printed") or not MUTATIONS[kind](changed, cell, rng):
        return None
    return changed
