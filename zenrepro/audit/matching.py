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
# Ops that are a whole step or run: what a claim without an op speaks of.
WHOLE_OPS = frozenset((None, "decode_step", "prefill", "serve", "speculate"))
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

    def __init__(self, records: Iterable[Record], names: Mapping[str, Sequence[str]]) -> None:
        """``names`` maps implementations as claims name them to those that records name."""
        self.names = names
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

        One that the publication maps is what it says; any other is equal to the record's, or is
        the algorithm on any backend.
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
    conditions = [item for item in claim.conditions.items() if item[0] != "platform"]
    # A part's speed is not the whole's, whatever else agrees.
    whole_too = "op" in claim.conditions or "op" in claim.relax
    found: list[Value] = []
    reasons: list[str] = []
    nearest: tuple[int, Entry] | None = None
    for entry in named:
        record = entry.record
        if not whole_too and record.conditions.get("op") not in WHOLE_OPS:
            continue
        unequal = [item for item in conditions if _has(record, item[0]) != item[1]]
        forbidding = [key for key, _ in unequal if not _may_differ(claim, record, key)]
        if forbidding:
            if nearest is None or len(forbidding) < nearest[0]:
                nearest = (len(forbidding), entry)
            continue
        relaxed = {key: _has(record, key) for key, _ in unequal}
        if not index.implements(entry, claim.implementation):
            relaxed["implementation"] = record.implementation
        if entry.summary is None:
            reasons.append(f"{record.status}: {record.reason or 'its samples are flagged'}")
            continue
        same = _same_class(claim, record)
        found.append(
            Value(
                entry.summary, dimension, (record,), relaxed, same, record.conditions, entry.backend
            )
        )  # fmt: skip
    if found:
        return found
    if reasons:
        return Missing(reasons[0])
    if nearest is None:
        return Missing("only single ops were measured, not a whole step or run")
    differing = _differing(claim, nearest[1].record)
    return Missing(f"not under these conditions; the nearest record has {differing}")


def _has(record: Record, key: str) -> Any:
    """A record's value of a condition, None where it has none.

    The chips are the device's where the record does not say, and the length of the sequence that a
    decode step extends is that of its cache.
    """
    has = record.conditions.get(key)
    if has is None and key == "chips":
        return record.device_class.count
    if has is None and key == "seq_len":
        return record.conditions.get("cache_len")
    return has


def _may_differ(claim: Claim, record: Record, key: str) -> bool:
    """Whether a record may have another value of a condition than the claim."""
    has = _has(record, key)
    return key in claim.relax or (has is None and bool(claim.match) and key not in claim.match)


def _differing(claim: Claim, record: Record) -> str:
    """What keeps a record from being compared, in words."""
    out = []
    for key, wanted in claim.conditions.items():
        has = _has(record, key)
        if key != "platform" and has != wanted and not _may_differ(claim, record, key):
            out.append(f"{'no' if has is None else _words(has)} {key} instead of {_words(wanted)}")
    return "; ".join(out)


def _words(value: Any) -> str:
    return " + ".join(value) if isinstance(value, tuple) else str(value)


def _same_class(claim: Claim, record: Record) -> bool:
    platform = claim.conditions.get("platform")
    if platform is None or platform != record.device_class.platform:
        return False
    return "chips" not in claim.conditions or claim.conditions["chips"] == _has(record, "chips")


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
