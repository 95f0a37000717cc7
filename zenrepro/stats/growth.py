"""How a quantity grows with a size: the exponent of a power law, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from zenrepro.errors import InputError
from zenrepro.stats.intervals import Summary

# 97.5 % points of Student's t by degrees of freedom, from 1; the normal's beyond.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
FEWEST = 3


def exponent(sizes: Sequence[float], values: Sequence[float]) -> Summary:
    """The slope p of log value on log size, as in value ~ size^p; ``n`` is the number of points.

    Least squares; the 95 % interval is the slope's t-interval. Where the points bend away from one
    power, that widens it: the interval is about the power law, not about noise alone. Raises
    InputError for fewer than three points, fewer than two sizes, and what has no logarithm.
    """
    if len(sizes) != len(values) or len(sizes) < FEWEST:
        raise InputError(
            f"a slope wants {FEWEST} points at least, got {len(sizes)} sizes, {len(values)} values"
        )
    for number in (*sizes, *values):
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"a slope on logarithms wants positive numbers, got {number}")
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    x = x - x.mean()
    spread = float((x * x).sum())
    if spread <= 1e-12:
        raise InputError("a slope wants two sizes at least, all of these are the same")
    slope = float((x * (y - y.mean())).sum()) / spread
    freedom = len(sizes) - 2
    left = float(((y - y.mean() - slope * x) ** 2).sum())
    half = (_T[freedom - 1] if freedom <= len(_T) else 1.96) * math.sqrt(left / freedom / spread)
    return Summary(slope, slope - half, slope + half, len(sizes))
