"""Measured values of claims: of derived ones, from the records of what they are made of.

The operands of one value agree in every condition that the claims themselves leave open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import msgspec

from zenrepro.audit.candidates import Index, Missing, Value, ceiling, direct, is_ceiling
from zenrepro.claims import Claim
from zenrepro.conditions import KEYS
from zenrepro.stats import Summary, intervals
from zenrepro.units import NONE, Dimension, unit

# Metrics of utilisation: the rate that is meant, its unit, and the ceiling it is a share of.
SHARES: dict[str, tuple[str, str, tuple[str, str]]] = {
    "compute": ("flop_rate", "FLOP/s", ("flop_rate", "dense")),
    "bandwidth": ("bandwidth", "B/s", ("bandwidth", "peak")),
}
# Set by the device class or by the machine, and compared as such.
_PLACE = frozenset(("platform", "chips"))


def values(claim: Claim, claims: Mapping[str, Claim], index: Index) -> list[Value] | Missing:
    """Every value that one machine's records give a claim, or why there is none."""
    return _values(claim, claims, index, frozenset())


def _values(
    claim: Claim, claims: Mapping[str, Claim], index: Index, above: frozenset[str]
) -> list[Value] | Missing:
    if is_ceiling(claim):
        return ceiling(claim, index)
    found = direct(claim, index)
    if claim.quantity == "utilisation" and isinstance(found, Missing):
        return _utilisation(claim, index)
    if claim.kind not in ("ratio", "share") or not isinstance(found, Missing):
        return found
    if not claim.of and claim.baseline is None:
        return Missing("the report does not say what it is relative to")
    if claim.id in above:
        return Missing("the claims it is made of go in a circle")
    above |= {claim.id}
    parts = [_operand(claims[name], claim, claims, index, above) for name in claim.of]
    base = None
    if claim.baseline is not None:
        base = _operand(claims[claim.baseline], claim, claims, index, above)
    for operand, role in [*((part, "of") for part in parts), (base, "baseline")]:
        if isinstance(operand, Missing):
            return Missing(operand.reason if role == "of" else f"{operand.reason} (its baseline)")
    return _derived(
        claim,
        [part for part in parts if not isinstance(part, Missing)],
        base if not isinstance(base, Missing) else None,
        _stated(claim, claims),
    )


def _utilisation(claim: Claim, index: Index) -> list[Value] | Missing:
    """A rate's share of the ceiling that was measured on the same machine."""
    if claim.metric not in SHARES:
        return Missing(f"no utilisation ({claim.metric}) was measured")
    quantity, symbol, (of, metric) = SHARES[claim.metric]
    rate = msgspec.structs.replace(claim, quantity=quantity, metric="rate", unit=symbol)
    found = direct(rate, index)
    if isinstance(found, Missing):
        return found
    out: list[Value] = []
    missing = Missing("")
    for value in found:
        dtype = {"dtype": value.conditions["dtype"]} if "dtype" in value.conditions else {}
        conditions = {**claim.conditions, **dtype} if claim.metric == "compute" else {}
        limit = ceiling(
            msgspec.structs.replace(rate, quantity=of, metric=metric, conditions=conditions),
            index,
        )
        if isinstance(limit, Missing):
            missing = limit
            continue
        share = intervals.ratio(value.summary, limit[0].summary)
        if share is not None:
            records = (*value.records, *limit[0].records)
            out.append(value._replace(summary=share, dimension=NONE, records=records))
    return out or missing


def _operand(
    claim: Claim,
    whole: Claim,
    claims: Mapping[str, Claim],
    index: Index,
    above: frozenset[str],
) -> list[Value] | Missing:
    """Values of a part of a derived claim, which may relax what the whole may."""
    if claim.quantity == "count" and claim.metric in KEYS and claim.printed is not None:
        return [_constant(claim)]
    relax = sorted({*claim.relax, *whole.relax})
    return _values(msgspec.structs.replace(claim, relax=relax), claims, index, above)


def _constant(claim: Claim) -> Value:
    """A condition that is also stated as a number: the records match it, so it is exact."""
    own = unit(claim.unit)
    exact = float(claim.value) * own.factor  # type: ignore[arg-type]
    summary = Summary(exact, exact, exact, 2**31)
    return Value(summary, own.dimension, (), {}, True, {}, "")


def _stated(claim: Claim, claims: Mapping[str, Claim]) -> frozenset[str]:
    """Condition keys that the operands fix themselves: in these, two records may differ."""
    keys = {*_PLACE, *claim.relax}
    pending = [*claim.of, *([claim.baseline] if claim.baseline else [])]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        operand = claims[name]
        keys.update(operand.conditions, operand.relax)
        pending += [*operand.of, *([operand.baseline] if operand.baseline else [])]
    if keys & {"batch", "query_len"}:
        keys.add("tokens")  # which follows from both
    return frozenset(keys)


def _derived(
    claim: Claim, parts: list[list[Value]], base: list[Value] | None, free: frozenset[str]
) -> list[Value] | Missing:
    """Combine operands that agree in every condition but those in ``free``."""

    def key(value: Value) -> Any:
        if not value.records:
            return None
        fixed = frozenset(item for item in value.conditions.items() if item[0] not in free)
        return (value.backend, fixed)

    groups: list[dict[Any, list[Value]]] = []
    for operand in [*parts, *([base] if base is not None else [])]:
        group: dict[Any, list[Value]] = defaultdict(list)
        for value in operand:
            group[key(value)].append(value)
        groups.append(group)
    measured = [set(group) for group in groups if set(group) != {None}]
    if not measured:
        return Missing("made of stated conditions alone; nothing was measured")
    shared = reduce(set.intersection, measured)
    if not shared:
        return Missing("its parts were measured, but under different conditions")
    out: list[Value] = []
    for name in sorted(shared, key=repr):
        chosen = [(group.get(name) or group[None])[0] for group in groups]
        made = _combined(claim, chosen[: len(parts)], chosen[-1] if base is not None else None)
        if made is None:
            return Missing(f"its parts do not give a {claim.metric} in {claim.unit}")
        out.append(made)
    return out


def _inverted(metric: str, dimension: Dimension) -> bool:
    """Whether a derivation divides b by a: faster is less time or energy, and a share of time is
    of rates the other way round."""
    if metric == "speedup":
        return dimension.s > 0 or (dimension.s == 0 and dimension.J > 0)
    return metric == "reduction_factor" or (metric == "time_share" and dimension.s < 0)


def _combined(claim: Claim, parts: Sequence[Value], base: Value | None) -> Value | None:
    """One value of a derived claim, None where its operands have the wrong dimensions."""
    if not parts or any(part.dimension != parts[0].dimension for part in parts):
        return None
    together = intervals.total if claim.metric in ("sum", "share") else intervals.hull
    a = together([part.summary for part in parts])
    dimension = parts[0].dimension
    summary: Summary | None = a
    if base is None:
        summary = a if claim.metric == "sum" else None
    elif claim.metric == "difference":
        summary = intervals.difference(a, base.summary) if base.dimension == dimension else None
    elif _inverted(claim.metric, dimension):
        summary, dimension = intervals.ratio(base.summary, a), base.dimension / dimension
    else:
        summary, dimension = intervals.ratio(a, base.summary), dimension / base.dimension
    if summary is None or dimension != unit(claim.unit).dimension:
        return None
    if claim.metric == "increase":
        summary = intervals.scaled(summary, 1.0, -1.0)
    elif claim.metric == "reduction":
        summary = intervals.scaled(summary, -1.0, 1.0)
    operands = [*parts, *([base] if base is not None else [])]
    records = tuple(record for operand in operands for record in operand.records)
    first = next(operand for operand in operands if operand.records)
    return Value(
        summary=summary,
        dimension=dimension,
        records=records,
        relaxed=reduce(lambda all_, o: {**all_, **o.relaxed}, operands, {}),
        same_class=all(operand.same_class for operand in operands if operand.records),
        conditions=first.conditions,
        backend=first.backend,
    )
