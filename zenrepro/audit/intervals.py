"""Interval arithmetic: what may follow from printed numbers, each of which is an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable

from zenrepro.printed import Interval

EVERYTHING = Interval(-math.inf, math.inf)


def add(a: Interval, b: Interval) -> Interval:
    """a + b."""
    return Interval(a.low + b.low, a.high + b.high)


def subtract(a: Interval, b: Interval) -> Interval:
    """a - b, taking the two as independent."""
    return Interval(a.low - b.high, a.high - b.low)


def multiply(a: Interval, b: Interval) -> Interval:
    """a x b."""
    ends = [_product(x, y) for x in a for y in b]
    return Interval(min(ends), max(ends))


def divide(a: Interval, b: Interval) -> Interval:
    """a / b; everything when b may be zero."""
    if b.low <= 0 <= b.high:
        return EVERYTHING
    ends = [x / y for x in a for y in b]
    return Interval(min(ends), max(ends))


def total(items: Iterable[Interval]) -> Interval:
    """The sum of any number of intervals."""
    result = Interval(0.0, 0.0)
    for item in items:
        result = add(result, item)
    return result


def hull(items: Iterable[Interval]) -> Interval:
    """The smallest interval that holds them all (at least one is wanted)."""
    given = list(items)
    return Interval(min(i.low for i in given), max(i.high for i in given))


def exact(value: float) -> Interval:
    """The interval of one number."""
    return Interval(value, value)


def _product(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y
