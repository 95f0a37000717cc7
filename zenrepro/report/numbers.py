"""Numbers in print: one formatter for TeX (siunitx) and for plain text, digits by uncertainty.

Nothing that is not a finite number can pass: None, NaN and infinities raise ``NotPrintable``.
A value that is missing is a ``Missing``: an em dash with a coded reason.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Any, NamedTuple

from zenrepro import printed as printed_module
from zenrepro.report.escape import Tex
from zenrepro.units import unit

# Why a cell is empty. The letters stand beside the dash, the words in the table's note.
CODES: dict[str, str] = {
    "n": "not run",
    "c": "measured under other conditions only",
    "u": "unsupported there",
    "d": "disturbed, so not compared",
    "f": "failed",
    "o": "out of memory",
    "s": "skipped",
    "b": "its baseline is not stated",
    "p": "no number is stated",
    "x": "a condition of the run, nothing to measure",
}

# Units that a reader expects, by dimension, for numbers that no publication fixes the unit of.
_READABLE = (
    ("s", "ms", "us"),
    ("TFLOP/s", "GFLOP/s"),
    ("TB/s", "GB/s"),
    ("GB", "MB", "kB"),
    ("J", "mJ"),
    ("GHz", "MHz"),
)

_DIGITS = 3  # significant digits of a number without an uncertainty


class NotPrintable(ValueError):
    """A value that must not reach print: None, NaN, an infinity, or a bare float."""


class Number(NamedTuple):
    """A finite value with its unit and, where samples exist, the ends of its interval.

    ``digits`` fixes the printed form (a published number keeps the digits that it was printed
    with); otherwise digits follow from the interval, or are three significant ones.
    """

    value: float
    unit: str = "1"
    low: float | None = None
    high: float | None = None
    digits: str | None = None


class Missing(NamedTuple):
    """No number: ``code`` is a key of ``CODES``, ``reason`` says more."""

    code: str
    reason: str = ""


def published(printed: str, symbol: str) -> Number:
    """A number with the digits of its publication. Raises InputError when it is not a number."""
    text = printed.strip().replace("\u2212", "-").replace(",", "")
    return Number(printed_module.parse(printed)[0], symbol, digits=text)


def split(number: Number) -> tuple[str, str | None, int]:
    """(mantissa, half-width or None, exponent of ten): decimal digits, not yet grouped.

    The half-width is that of the interval, rounded up to one significant digit (two when the
    first is a 1), and the value is rounded to the same place. Raises NotPrintable.
    """
    _require_finite(number.value)
    for end in (number.low, number.high):
        if end is not None:
            _require_finite(end)
    if number.digits is not None:
        return number.digits, None, 0
    value = Decimal(repr(float(number.value)))
    width = Decimal(0)
    if number.low is not None and number.high is not None:
        ends = (Decimal(repr(float(number.low))), Decimal(repr(float(number.high))))
        width = max(ends[1] - value, value - ends[0], Decimal(0))
    exponent = _exponent(max(abs(value), width))
    value, width = value.scaleb(-exponent), width.scaleb(-exponent)
    if width > 0:
        place = _half_width_place(width)
        width = _at(width, place, ROUND_CEILING)
        return _plain(_at(value, place, ROUND_HALF_EVEN)), _plain(width), exponent
    if value == value.to_integral_value() and abs(value) < 10**6 and not exponent:
        return _plain(value.to_integral_value()), None, 0
    place = value.adjusted() - (_DIGITS - 1) if value else 0
    return _plain(_at(value, min(place, 0), ROUND_HALF_EVEN)), None, exponent


def _require_finite(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NotPrintable(f"{value!r} cannot be printed as a number")


def _exponent(size: Decimal) -> int:
    """Powers of ten taken out: none for 0.001 <= size < 100 million."""
    if size == 0 or -3 <= size.adjusted() < 8:
        return 0
    return size.adjusted()


def _half_width_place(width: Decimal) -> int:
    """The decimal place that the half-width, and with it the value, is rounded to."""
    first = int(width.scaleb(-width.adjusted()))
    return width.adjusted() - (1 if first == 1 else 0)


def _at(value: Decimal, place: int, rounding: str) -> Decimal:
    return value.quantize(Decimal(1).scaleb(place), rounding=rounding)


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.removeprefix("-") if not value else text


def readable(value: float, symbol: str) -> str:
    """The unit of the same dimension in which ``value`` (in ``symbol``) has few zeros."""
    own = unit(symbol)
    for family in _READABLE:
        if unit(family[0]).dimension == own.dimension and symbol not in ("TOP/s", "bit"):
            for candidate in family:
                if abs(value) * own.factor >= unit(candidate).factor:
                    return candidate
            return family[-1] if value else symbol
    return symbol


def tex(number: Number, *, with_unit: bool = True) -> Tex:
    r"""siunitx TeX: ``\qty{31203 +- 40}{token/s}``. Raises NotPrintable, InputError (unit)."""
    mantissa, width, exponent = split(number)
    body = mantissa + (f" +- {width}" if width else "") + (f"e{exponent}" if exponent else "")
    name = unit_tex(number.unit)
    if number.unit == "x":
        return Tex(rf"\num{{{body}}}\,\ensuremath{{\times}}" if with_unit else rf"\num{{{body}}}")
    if not with_unit or not name:
        return Tex(rf"\num{{{body}}}")
    return Tex(rf"\qty{{{body}}}{{{name}}}")


def text(number: Number, *, with_unit: bool = True) -> str:
    """Plain Unicode: ``31,203 ± 40 token/s``. Raises NotPrintable, InputError (unit)."""
    mantissa, width, exponent = split(number)
    body = _grouped(mantissa) + (f" ± {_grouped(width)}" if width else "")
    if exponent:
        body = f"({body})" if width else body
        body += "×10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    if number.unit == "x" and with_unit:
        return f"{body}×"
    symbol = unit_text(number.unit)
    return f"{body}\u00a0{symbol}" if with_unit and symbol else body


def unit_tex(symbol: str) -> str:
    """A unit as siunitx reads it; empty where a number stands alone. Raises InputError."""
    return "billion" if symbol == "Gparameter" else unit(symbol).tex


def unit_text(symbol: str) -> str:
    """A unit in plain text; empty where a number stands alone. Raises InputError."""
    known = unit(symbol).symbol
    if known in ("1", "count"):
        return ""
    return {"Gparameter": "billion", "us": "µs", "us/token": "µs/token", "x": "×"}.get(known, known)


def _grouped(digits: str) -> str:
    """Thousands separated by commas, a true minus sign."""
    sign, bare = ("−", digits[1:]) if digits.startswith("-") else ("", digits.removeprefix("+"))
    whole, _, fraction = bare.partition(".")
    return f"{sign}{int(whole):,}" + (f".{fraction}" if fraction else "")


def check(value: Any) -> Any:
    """``value``, unless it is one of the things that must never be printed."""
    if value is None or isinstance(value, float | bool):
        raise NotPrintable(
            f"{value!r} reached a template; only texts, whole numbers, Number and Missing are set"
        )
    return value
