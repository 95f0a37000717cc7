"""Units of everything that is published or measured: a closed table with dimensions.

A dimension is a product of powers of the base quantities in ``BASES``; a unit is a factor on its
coherent combination. Percentages, percentage points and "times" are dimensionless.
"""

from __future__ import annotations

from typing import NamedTuple

from zenrepro.errors import InputError

BASES = ("s", "J", "B", "FLOP", "token", "parameter", "count")


class Dimension(NamedTuple):
    """Exponents of the base quantities, in the order of ``BASES``."""

    s: int = 0
    J: int = 0
    B: int = 0
    FLOP: int = 0
    token: int = 0
    parameter: int = 0
    count: int = 0  # type: ignore[assignment]

    def __mul__(self, other: object) -> Dimension:  # type: ignore[override]
        if not isinstance(other, Dimension):
            return NotImplemented
        return Dimension(*(a + b for a, b in zip(self, other, strict=True)))

    def __truediv__(self, other: Dimension) -> Dimension:
        return Dimension(*(a - b for a, b in zip(self, other, strict=True)))

    def __pow__(self, power: int) -> Dimension:
        return Dimension(*(a * power for a in self))


NONE = Dimension()


class Unit(NamedTuple):
    """A unit: ``value_in_base = value * factor``; ``tex`` is its siunitx form."""

    symbol: str
    factor: float
    dimension: Dimension
    tex: str


def _table() -> dict[str, Unit]:
    s, j = Dimension(s=1), Dimension(J=1)
    byte, flop, token = Dimension(B=1), Dimension(FLOP=1), Dimension(token=1)
    parameter, count = Dimension(parameter=1), Dimension(count=1)
    watt, hertz = j / s, NONE / s
    rows: list[tuple[str, float, Dimension, str]] = [
        ("1", 1.0, NONE, ""),
        ("x", 1.0, NONE, r"\times"),
        ("%", 1e-2, NONE, r"\percent"),
        ("pp", 1e-2, NONE, r"pp"),
        ("s", 1.0, s, r"\second"),
        ("ms", 1e-3, s, r"\milli\second"),
        ("us", 1e-6, s, r"\micro\second"),
        ("ns", 1e-9, s, r"\nano\second"),
        ("J", 1.0, j, r"\joule"),
        ("mJ", 1e-3, j, r"\milli\joule"),
        ("kJ", 1e3, j, r"\kilo\joule"),
        ("W", 1.0, watt, r"\watt"),
        ("mW", 1e-3, watt, r"\milli\watt"),
        ("bit", 0.125, byte, "bit"),
        ("B", 1.0, byte, "B"),
        ("kB", 1e3, byte, "kB"),
        ("MB", 1e6, byte, "MB"),
        ("GB", 1e9, byte, "GB"),
        ("TB", 1e12, byte, "TB"),
        ("KiB", 2.0**10, byte, "KiB"),
        ("MiB", 2.0**20, byte, "MiB"),
        ("GiB", 2.0**30, byte, "GiB"),
        ("B/s", 1.0, byte / s, "B/s"),
        ("GB/s", 1e9, byte / s, "GB/s"),
        ("TB/s", 1e12, byte / s, "TB/s"),
        ("FLOP", 1.0, flop, "FLOP"),
        ("GFLOP", 1e9, flop, "GFLOP"),
        ("TFLOP", 1e12, flop, "TFLOP"),
        ("FLOP/s", 1.0, flop / s, "FLOP/s"),
        ("GFLOP/s", 1e9, flop / s, "GFLOP/s"),
        ("TFLOP/s", 1e12, flop / s, "TFLOP/s"),
        # Integer operations share the dimension of FLOPs: one ceiling table serves both.
        ("TOP/s", 1e12, flop / s, "TOP/s"),
        ("FLOP/B", 1.0, flop / byte, "FLOP/B"),
        ("FLOP/token", 1.0, flop / token, "FLOP/token"),
        ("GFLOP/token", 1e9, flop / token, "GFLOP/token"),
        ("token", 1.0, token, "token"),
        ("token/s", 1.0, token / s, "token/s"),
        ("token/s/chip", 1.0, token / s / count, "token/s/chip"),
        ("token/J", 1.0, token / j, "token/J"),
        ("J/token", 1.0, j / token, "J/token"),
        ("ms/token", 1e-3, s / token, "ms/token"),
        ("us/token", 1e-6, s / token, r"\micro\second/token"),
        ("B/token", 1.0, byte / token, "B/token"),
        ("kB/token", 1e3, byte / token, "kB/token"),
        ("MB/token", 1e6, byte / token, "MB/token"),
        ("parameter", 1.0, parameter, "parameter"),
        ("Gparameter", 1e9, parameter, "Gparameter"),
        ("bit/parameter", 0.125, byte / parameter, "bit/parameter"),
        ("B/parameter", 1.0, byte / parameter, "B/parameter"),
        ("count", 1.0, count, ""),
        ("Hz", 1.0, hertz, r"\hertz"),
        ("MHz", 1e6, hertz, r"\mega\hertz"),
        ("GHz", 1e9, hertz, r"\giga\hertz"),
    ]
    return {symbol: Unit(symbol, factor, dim, tex) for symbol, factor, dim, tex in rows}


UNITS: dict[str, Unit] = _table()


def unit(symbol: str) -> Unit:
    """Return the unit with this symbol. Raises InputError for an unknown one."""
    try:
        return UNITS[symbol]
    except KeyError:
        raise InputError(f"unknown unit {symbol!r}; known units: {', '.join(UNITS)}") from None


def convert(value: float, source: str, target: str) -> float:
    """Convert ``value`` between units of one dimension. Raises InputError when they differ."""
    a, b = unit(source), unit(target)
    if a.dimension != b.dimension:
        raise InputError(f"cannot convert {source!r} to {target!r}: the dimensions differ")
    return value * a.factor / b.factor
