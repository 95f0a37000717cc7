"""The median with its 95 % interval, and the ratio of two medians with its own.

Both intervals are closed formulas of the sorted samples: no distribution is assumed, no random
numbers are drawn, and the same samples always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from zenrepro.errors import InputError

LEVEL = 0.95
# Below this the range (smallest to largest sample) covers the median with less than 95 %.
FEWEST = 6


class Summary(NamedTuple):
    """A median and its interval, in the unit of the samples. ``n`` is the number of samples.

    With ``n < 6`` the interval is the range, which covers the true median with probability
    ``1 - 2 ** (1 - n)`` only (94 % at 5, 75 % at 3, nothing at 1): print ``n`` beside it.
    """

    value: float
    low: float
    high: float
    n: int


def summarise(samples: Sequence[float]) -> Summary:
    """Median and 95 % interval of samples, in their unit.

    The interval lies between the r-th smallest and the r-th largest sample, for the largest r whose
    coverage, a binomial tail, is at least 95 % whatever the distribution (Conover, Practical
    Nonparametric Statistics, 3.2). It takes samples to be independent. Raises InputError for no
    samples and for samples that are not finite.
    """
    if not len(samples):
        raise InputError("no samples to summarise; a record without samples has no value")
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if not math.isfinite(ordered[0]) or not math.isfinite(ordered[-1]):
        raise InputError("a sample is not finite; only finite numbers are measured")
    n = int(ordered.size)
    rank = _rank(n)
    middle = float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
    return Summary(middle, float(ordered[rank - 1]), float(ordered[n - rank]), n)


@lru_cache(maxsize=4096)
def _rank(n: int) -> int:
    """The largest r for which [r-th smallest, r-th largest] covers the median with >= LEVEL."""
    if n < FEWEST:
        return 1
    # P(missed) = 2 * P(Binomial(n, 1/2) < r): exact in whole numbers.
    allowed = (1 - LEVEL) / 2 * 2.0**n if n < 1000 else None
    if allowed is None:
        # The normal approximation errs by less than one rank here; rounding down keeps it safe.
        return max(1, math.floor((n - 1.959964 * math.sqrt(n)) / 2))
    rank, below = 0, 0
    while True:
        below += math.comb(n, rank)
        if below > allowed:
            return max(1, rank)
        rank += 1


def ratio(a: Summary, b: Summary) -> Summary | None:
    """``a / b`` with a 95 % interval from the intervals of both; None unless all are positive.

    The two logarithmic intervals are combined by recovering each side's variance (MOVER; Zou and
    Donner, Statistics in Medicine 27, 2008): narrower than dividing end by end, which would need
    both medians to be at their worst at once. ``n`` is the smaller of the two.
    """
    if min(a.low, b.low) <= 0:
        return None
    below = math.hypot(math.log(a.value / a.low), math.log(b.high / b.value))
    above = math.hypot(math.log(a.high / a.value), math.log(b.value / b.low))
    value = a.value / b.value
    return Summary(value, value * math.exp(-below), value * math.exp(above), min(a.n, b.n))


def difference(a: Summary, b: Summary) -> Summary:
    """``a - b`` with a 95 % interval, combined as in ``ratio`` but on the plain scale."""
    value = a.value - b.value
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    return Summary(value, value - below, value + above, min(a.n, b.n))


def total(parts: Sequence[Summary]) -> Summary:
    """The sum of independent medians, its interval combined as in ``difference``."""
    value = sum(part.value for part in parts)
    below = math.hypot(*(part.value - part.low for part in parts))
    above = math.hypot(*(part.high - part.value for part in parts))
    return Summary(value, value - below, value + above, min(part.n for part in parts))


def hull(parts: Sequence[Summary]) -> Summary:
    """What several medians span: their mean, from the lowest low to the highest high."""
    value = sum(part.value for part in parts) / len(parts)
    lows, highs = [part.low for part in parts], [part.high for part in parts]
    return Summary(value, min(lows), max(highs), min(part.n for part in parts))


def scaled(summary: Summary, factor: float, offset: float = 0.0) -> Summary:
    """``offset + factor * summary``: another unit, or one minus a share. Exact."""
    ends = (offset + factor * summary.low, offset + factor * summary.high)
    return Summary(offset + factor * summary.value, min(ends), max(ends), summary.n)
