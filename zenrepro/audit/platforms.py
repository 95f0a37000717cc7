"""What a platform can do at most: the most generous of what the report and the vendor state."""

from __future__ import annotations

from typing import NamedTuple

from zenrepro.audit.engine import Meaning, View, quantity
from zenrepro.audit.intervals import hull
from zenrepro.printed import Interval
from zenrepro.specs import Datasheet
from zenrepro.units import UNITS

# The metrics that state what the hardware can do, by quantity.
_OF_HARDWARE = {
    "bandwidth": ("peak",),
    "flop_rate": ("dense", "sparse"),
    "memory": ("capacity",),
}


class Ceiling(NamedTuple):
    """A value in base units and where it comes from."""

    value: float
    source: str


def sheets(view: View, platform: str) -> list[Datasheet]:
    """The platform's datasheet, or those of what may have been meant when it does not exist."""
    sheet = view.datasheets.get(platform)
    if sheet is None:
        return []
    if sheet.exists:
        return [sheet]
    near = [view.datasheets[n] for n in sheet.nearest if n in view.datasheets]
    return [sheet, *near]


def hardware_claims(view: View, quantity: str, metric: str, platform: str) -> list[Meaning]:
    """What the report states of the platform itself: as written, and of no model's run."""
    return [
        m
        for m in view.stated(quantity, metric, platform=platform)
        if m is view.readings[m.claim.id][0] and m.get("model") is None
    ]


def figure(view: View, platform: str, quantity: str, metric: str) -> Interval | None:
    """What the report and the datasheets state of it, as one interval; None when nobody does."""
    found = [m.interval for m in hardware_claims(view, quantity, metric, platform)]
    found += [
        Interval(f.value * UNITS[f.unit].factor, f.value * UNITS[f.unit].factor)
        for sheet in sheets(view, platform)
        for f in sheet.figures
        if (f.quantity, f.metric) == (quantity, metric)
    ]
    return hull(found) if found else None


def ceiling(view: View, platform: str, wanted: str, unit: str) -> Ceiling | None:
    """The highest bandwidth, FLOP rate or capacity that anyone states of the platform.

    For ``flop_rate`` that is the best over every format, structured sparsity included.
    """
    best: Ceiling | None = None
    for sheet in sheets(view, platform):
        for f in sheet.figures:
            if f.quantity == wanted:
                value = f.value * UNITS[f.unit].factor
                what = " ".join(x for x in (sheet.name, f.dtype, f.metric) if x)
                best = _better(best, value, f"{quantity(value, unit)} ({what})")
    for metric in _OF_HARDWARE[wanted]:
        for m in hardware_claims(view, wanted, metric, platform):
            # A stated number that rounds to the vendor's says no more than the vendor's.
            if best is None or m.interval.low > best.value:
                most = quantity(m.interval.high, unit)
                best = _better(best, m.interval.high, f"{most} ({m.printed} stated)")
    return best


def _better(best: Ceiling | None, value: float, source: str) -> Ceiling:
    return best if best is not None and best.value >= value else Ceiling(value, source)
