"""Numbers that no machine and no model can have, whatever the conditions."""

from __future__ import annotations

from collections.abc import Iterator

from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View
from zenrepro.printed import Interval

# Quantities that are a part of a whole: between nothing and all of it.
PARTS = ("utilisation", "acceptance")
# Quantities that cannot be negative when they are stated as such (not as a difference).
POSITIVE = (
    "time", "throughput", "latency", "bandwidth", "flop_rate", "traffic", "memory", "size",
    "count", "energy_per_token", "power", "utilisation", "acceptance",
)  # fmt: skip
SIGNED = ("difference", "increase", "reduction")


def in_range(view: View) -> Iterator[Item]:
    """Utilisation, acceptance, shares and accuracies lie in 0…100 %; amounts are not negative.

    Silent for differences, and for increases beyond the first 100 %. A reduction is at most 100 %.
    """
    for name, readings in view.readings.items():
        if readings[0].claim.printed is None:
            continue
        outcomes = [_outcome(m) for m in readings]
        if any(o.holds is not None for o in outcomes):
            # Bytes from a cache count too: an effective bandwidth may exceed the peak.
            cached = readings[0].quantity == "utilisation" and readings[0].metric == "bandwidth"
            above = readings[0].interval.low > 1
            yield Check(
                "range", (name,), (), outcomes, error="impossible",
                demote="true of bytes that a cache delivered" if cached and above else None,
            )  # fmt: skip


def _outcome(m: Meaning) -> Outcome:
    allowed = _allowed(m)
    if allowed is None:
        return Outcome(None, reading=m.text)
    holds = m.interval.meets(allowed)
    limit = "0 to 100 %" if allowed.high == 1 else "100 % at most" if allowed.low < 0 else "≥ 0"
    return Outcome(
        holds,
        f"{m.printed} for {m.metric.replace('_', ' ')} ({m.quantity}), which lies in {limit}",
        f"a value in {limit}",
        m.text,
    )


def _allowed(m: Meaning) -> Interval | None:
    infinite = float("inf")
    if m.metric == "reduction":
        return Interval(-infinite, 1.0)
    if m.metric in SIGNED:
        return None
    if m.metric in ("share", "time_share") or m.quantity in PARTS:
        return Interval(0.0, 1.0)
    if m.quantity == "quality" and m.unit.symbol == "%":
        return Interval(0.0, 1.0)
    if m.quantity in POSITIVE or m.quantity == "ratio":
        return Interval(0.0, infinite)
    return None
