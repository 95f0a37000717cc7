"""Tokens a joule against tokens a second and watts."""

from __future__ import annotations

from collections.abc import Iterator

from zenrepro.audit.engine import (
    Check,
    Item,
    Meaning,
    Outcome,
    View,
    agreement,
    leaves_open,
    quantity,
    show,
)  # fmt: skip
from zenrepro.audit.intervals import divide, exact, hull
from zenrepro.audit.platforms import figure
from zenrepro.printed import Interval
from zenrepro.units import UNITS

# Power is stated of the machine, so what the tokens are about does not matter to the match.
_CONFIGURATION = frozenset({"implementation"})
# A board that works draws more than this share of its design power.
LEAST_SHARE_OF_TDP = 0.2


def energy(view: View) -> Iterator[Item]:
    """Tokens a joule = throughput / power drawn; without it, at least throughput / design power.

    A device under its design power makes more tokens a joule than throughput / TDP, so that only
    less is an error; far more is a note. A stated power budget counts like a design power. Chips
    that the report leaves open may be any number from one.
    """
    for name in view.having("energy_per_token", "rate"):
        equal, loose = view.partners(name, "throughput", "rate")
        rates = equal or loose
        if not rates:
            continue
        drawn = view.partners(name, "power", "draw", _CONFIGURATION)
        powers = drawn[0] or drawn[1]
        outcomes: list[Outcome] = []
        for rate in rates:
            if powers:
                for power in powers:
                    for e, r, p in view.combinations(name, rate, power):
                        outcomes.append(_against_draw(e, r, p))
            else:
                for e, r in view.combinations(name, rate):
                    outcomes.append(_against_design(view, e, r))
        if len(rates) > 1 or len(powers) > 1:
            outcomes = [o for o in outcomes if o.holds] or outcomes
        claims = [view.claims[i] for i in (name, *rates, *powers)]
        key = leaves_open(claims, "chips", "devices", "batch") if powers else None
        demote = f"true if {key} differs: the report leaves it unstated" if key else None
        yield Check("energy", (name,), (*rates, *powers), outcomes, demote=demote)


def _per_joule(e: Meaning) -> Interval:
    """Tokens a joule, whichever way round the claim states it."""
    return e.interval if e.unit.dimension.J < 0 else divide(exact(1.0), e.interval)


def _against_draw(e: Meaning, r: Meaning, p: Meaning) -> Outcome:
    if not (agreement(e, r) and agreement(e, p, _CONFIGURATION)):
        return Outcome(None)
    if (p.quantity, r.quantity) != ("power", "throughput"):
        return Outcome(None)
    expected = divide(r.interval, p.interval)
    holds = expected.meets(_per_joule(e))
    arithmetic = f"{r.printed} / {p.printed} = {_tokens(expected)}, printed {e.printed}"
    needed = divide(r.interval, _per_joule(e))
    mend = f"{_tokens(expected)}, or {_watts(needed)} drawn"
    return Outcome(holds, arithmetic, mend, _texts(e, r, p))


def _against_design(view: View, e: Meaning, r: Meaning) -> Outcome:
    platform = e.get("platform") or r.get("platform")
    if not agreement(e, r) or platform is None or r.quantity != "throughput":
        return Outcome(None)
    found = [
        span for metric in ("tdp", "limit")
        if (span := figure(view, platform, "power", metric)) is not None
    ]  # fmt: skip
    if not found:
        return Outcome(None)
    design = hull(found)
    chips = e.get("chips") or r.get("chips") or view.chips(e)
    open_chips = e.get("chips") is None and leaves_open((e.claim, r.claim), "chips", "devices")
    total = design.scaled(chips or 1)
    least = divide(r.interval, total)
    stated = _per_joule(e)
    count = f"{chips} × " if chips and chips > 1 else ""
    arithmetic = (
        f"{r.printed} / ({count}{quantity(design.high, 'W')} design power) = "
        f"{_tokens(least)} at least, printed {e.printed}"
    )
    drawn = divide(r.interval, stated)
    if stated.high < least.low * (1 - 1e-9) and not open_chips:
        mend = f"{_tokens(least)} or more; the printed number takes {_watts(drawn)}"
        return Outcome(False, arithmetic, mend, _texts(e, r))
    if stated.low > least.high / LEAST_SHARE_OF_TDP:
        return Outcome(
            None, f"{arithmetic}: {_watts(drawn)} drawn", "name the power drawn", _texts(e, r)
        )
    return Outcome(True, arithmetic, "", _texts(e, r))


def draw(view: View) -> Iterator[Item]:
    """Power drawn by a device stays within its design power times the number of chips.

    A note, since the number may include the host. Silent without a design power.
    """
    for name in view.having("power", "draw"):
        outcomes = []
        for m in view.readings[name]:
            platform = m.get("platform")
            design = figure(view, platform, "power", "tdp") if platform else None
            if design is None:
                outcomes.append(Outcome(None, reading=m.text))
                continue
            chips = view.chips(m)
            limit = design.high * chips
            holds = m.interval.low <= limit * (1 + 1e-9)
            arithmetic = (
                f"{m.printed} drawn, {chips} × {quantity(design.high, 'W')} design power = "
                f"{quantity(limit, 'W')}"
            )
            outcomes.append(Outcome(holds, arithmetic, "", m.text))
        yield Check(
            "draw", (name,), (), outcomes,
            demote="true if it is the power of the whole system, or more chips ran",
        )  # fmt: skip


def _tokens(span: Interval) -> str:
    return show(span, UNITS["token/J"])


def _watts(span: Interval) -> str:
    return show(span, UNITS["W"])


def _texts(*meanings: Meaning) -> str:
    return ", ".join(m.text for m in meanings if m.text != "as written")
