"""What a printed number stands for: all values that round or truncate to it."""

from __future__ import annotations

import re
from typing import NamedTuple

from zenrepro.errors import InputError

_NUMBER = re.compile(r"^([+-]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?$")


class Interval(NamedTuple):
    """A closed interval of real numbers in some unit that the context names."""

    low: float
    high: float

    def meets(self, other: Interval) -> bool:
        """Whether the two share a point (a relative slack of 1e-9 absorbs binary rounding)."""
        slack = 1e-9 * max(abs(x) for x in (*self, *other))
        return self.low <= other.high + slack and other.low <= self.high + slack

    def scaled(self, factor: float) -> Interval:
        """The interval times a factor (swaps the ends when it is negative)."""
        ends = (self.low * factor, self.high * factor)
        return Interval(min(ends), max(ends))


def parse(printed: str) -> tuple[float, float]:
    """Return (value, unit of the last significant digit) of a printed decimal number.

    Thousands separators are commas. Trailing zeros of a whole number are taken as not
    significant: "28,400" may stand for anything that rounds to the hundreds.
    Raises InputError for anything else.
    """
    text = printed.strip().replace("\u2212", "-")
    match = _NUMBER.match(text)
    if not match:
        raise InputError(f"not a printed number: {printed!r}; wanted digits like 28,400 or -0.3")
    sign, whole, fraction = match.groups()
    value = float(whole.replace(",", "") + (fraction or ""))
    if fraction:
        last = 10.0 ** -(len(fraction) - 1)
    else:
        digits = whole.replace(",", "")
        last = 10.0 ** (len(digits) - len(digits.rstrip("0"))) if digits.strip("0") else 1.0
    return (-value if sign == "-" else value), last


def interval(printed: str) -> Interval:
    """All values that round (half a last digit either way) or truncate towards zero to it."""
    value, last = parse(printed)
    if printed.strip().startswith(("-", "\u2212")):
        return Interval(value - last, value + last / 2)
    return Interval(value - last / 2, value + last)
