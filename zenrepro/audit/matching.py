"""Which records speak of a claim, and what value they give it.

Matching reads quantity, metric, dimension, implementation and conditions, never ids or labels. A
derived claim (a ratio, a share) takes its value from the records of the claims it is made of, under
conditions that are the same in all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import msgspec

from zenrepro.claims import Claim
from zenrepro.conditions import KEYS
from zenrepro.records import Kind, Record, Status
from zenrepro.stats import Summary, intervals, summarise
from zenrepro.units import Dimension, unit

# Numbers that a config or a file fixes, whatever the machine; counting settles them.
COUNTED = frozenset(("count", "size"))
# Set by the device class or by the machine, and compared as such.
_PLACE = frozenset(("platform", "chips"))


class Value(NamedTuple):
    """A value for a claim in base units.

    ``relaxed`` holds the conditions that were let differ, as the records have them; ``same_class``:
    the records come from the device class that is claimed.
    """

    summary: Summary
    dimension: Dimension
    records: tuple[Record, ...]
    relaxed: dict[str, Any]
    same_class: bool
    conditions: Mapping[str, Any]
    backend: str


class Missing(NamedTuple):
    """Why there is no value, in words; it begins with a record's status where one says why."""

    reason: str


class Entry(NamedTuple):
    """A record, its backend and its summary in base units (None without usable samples)."""

    record: Record
    backend: str
    algorithm: str
    summary: Summary | None


class Index:
    """One machine's records by quantity, metric and dimension, summarised once."""

    def __init__(
        self, records: Iterable[Record], names: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """``names`` maps implementations as claims name them to those that records name."""
        self.names = names or {}
        self.by_kind: dict[tuple[str, str, Dimension], list[Entry]] = defaultdict(list)
        self.by_quantity: dict[tuple[str, Dimension], list[Entry]] = defaultdict(list)
        for record in records:
            if not _counts(record):
                continue
            entry = _entry(record)
            dimension = unit(record.unit).dimension
            self.by_kind[record.quantity, record.metric, dimension].append(entry)
            self.by_quantity[record.quantity, dimension].append(entry)

    def implements(self, entry: Entry, name: str | None) -> bool:
        """Whether a record is of the implementation that a claim names.

        A name with a backend must be equal; one without is the algorithm on any backend, or what
        the names given to the index say.
        """
        if name is None:
            return True
        if name in self.names:
            return entry.record.implementation in self.names[name]
        return name in (entry.record.implementation, entry.algorithm)


def _counts(record: Record) -> bool:
    if record.kind is Kind.MEASURED:
        return True
    return record.kind is Kind.COUNTED and record.quantity in COUNTED


def _entry(record: Record) -> Entry:
    backend, _, algorithm = record.implementation.partition(".")
    summary = None
    if record.status is Status.OK and record.samples:
        summary = intervals.scaled(summarise(record.samples), unit(record.unit).factor)
    return Entry(record, backend, algorithm, summary)


def values(claim: Claim, claims: Mapping[str, Claim], index: Index) -> list[Value] | Missing:
    """Every value that one machine's records give a claim, or why there is none."""
    return _values(claim, claims, index, frozenset())


def _values(
    claim: Claim, claims: Mapping[str, Claim], index: Index, above: frozenset[str]
) -> list[Value] | Missing:
    direct = _direct(claim, index)
    if claim.kind not in ("ratio", "share") or not isinstance(direct, Missing):
        return direct
    if not claim.of and claim.baseline is None:
        return Missing("the report does not say what it is relative to")
    if claim.id in above:
        return Missing("the claims it is made of go in a circle")
    above |= {claim.id}
    parts = [_operand(claims[name], claim, claims, index, above) for name in claim.of]
    base = None
    if claim.baseline is not None:
        base = _operand(claims[claim.baseline], claim, claims, index, above)
    for found, role in [*((part, "of") for part in parts), (base, "baseline")]:
        if isinstance(found, Missing):
            return Missing(found.reason if role == "of" else f"{found.reason} (its baseline)")
    return _derived(
        claim,
        [part for part in parts if not isinstance(part, Missing)],
        base if not isinstance(base, Missing) else None,
        _stated(claim, claims),
    )


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


def _direct(claim: Claim, index: Index) -> list[Value] | Missing:
    dimension = unit(claim.unit).dimension
    entries = index.by_kind.get((claim.quantity, claim.metric, dimension), [])
    if not entries:
        return Missing(f"no {claim.quantity} ({claim.metric}) was measured")
    named = [
        entry
        for entry in entries
        if index.implements(entry, claim.implementation) or "implementation" in claim.relax
    ]
    if not named:
        return Missing(f"no implementation of {claim.implementation} was measured")
    found: list[Value] = []
    reasons: list[str] = []
    nearest: tuple[int, str] | None = None
    for entry in named:
        differing, relaxed = _compare(claim, entry.record)
        if differing:
            if nearest is None or len(differing) < nearest[0]:
                nearest = (len(differing), "; ".join(differing))
            continue
        if not index.implements(entry, claim.implementation):
            relaxed["implementation"] = entry.record.implementation
        if entry.summary is None:
            reasons.append(f"{entry.record.status}: {entry.record.reason or 'its samples flagged'}")
            continue
        found.append(
            Value(
                entry.summary, dimension, (entry.record,), relaxed,
                _same_class(claim, entry.record), entry.record.conditions, entry.backend,
            )
        )  # fmt: skip
    if found:
        return found
    if reasons:
        return Missing(reasons[0])
    return Missing(f"not under these conditions; the nearest record has {nearest[1]}"
                   if nearest else "nothing comparable was measured")  # fmt: skip


def _compare(claim: Claim, record: Record) -> tuple[list[str], dict[str, Any]]:
    """(what forbids the comparison, what was let differ and how the record has it)."""
    differing: list[str] = []
    relaxed: dict[str, Any] = {}
    for key, wanted in claim.conditions.items():
        if key == "platform":
            continue
        has = record.conditions.get(key)
        if key == "chips" and has is None:
            has = record.device_class.count
        if has == wanted:
            continue
        if key in claim.relax or (claim.match and key not in claim.match and has is None):
            relaxed[key] = has
        else:
            shown = "no" if has is None else has
            differing.append(f"{shown} {key} instead of {wanted}")
    return differing, relaxed


def _same_class(claim: Claim, record: Record) -> bool:
    platform = claim.conditions.get("platform")
    if platform is None or platform != record.device_class.platform:
        return False
    chips = claim.conditions.get("chips", record.device_class.count)
    return bool(record.conditions.get("chips", record.device_class.count) == chips)


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
    """Whether a derivation divides b by a: faster is less time, and a share of time is of rates
    the other way round."""
    if metric == "speedup":
        return dimension.s > 0
    return metric == "reduction_factor" or (metric == "time_share" and dimension.s < 0)


def _combined(claim: Claim, parts: Sequence[Value], base: Value | None) -> Value | None:
    """One value of a derived claim, None where its operands have the wrong dimensions."""
    if not parts or any(part.dimension != parts[0].dimension for part in parts):
        return None
    a = parts[0].summary if len(parts) == 1 else intervals.total([p.summary for p in parts])
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
