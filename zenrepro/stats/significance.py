"""Whether two sets of samples differ, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zenrepro.stats.intervals import Summary, ratio, summarise

METHOD = (
    "ratio of medians; 95 % interval from both medians' order-statistic intervals (MOVER, log "
    "scale); they differ where it excludes 1; fewer than 4 samples on either side cannot tell"
)
# Three against three samples cannot reach p < 0.05 by any rank test: 2 / C(6, 3) = 0.1.
FEWEST_TO_DIFFER = 4


class Comparison(NamedTuple):
    """``ratio`` is b / a. ``differs`` is None where there are too few samples to tell."""

    a: Summary
    b: Summary
    ratio: Summary | None
    differs: bool | None


def compare(a: Sequence[float], b: Sequence[float], exact: bool = False) -> Comparison:
    """Compare two sets of samples in one unit by the method in ``METHOD``.

    ``exact`` is for counted numbers: any difference counts, whatever the number of samples.
    """
    first, second = summarise(a), summarise(b)
    change = ratio(second, first)
    if exact:
        return Comparison(first, second, change, first.value != second.value)
    if min(first.n, second.n) < FEWEST_TO_DIFFER:
        return Comparison(first, second, change, None)
    if change is None:
        apart = first.high < second.low or second.high < first.low
        return Comparison(first, second, change, apart)
    return Comparison(first, second, change, not change.low <= 1 <= change.high)
