"""Records that speak of a claim as it stands: the index, matching, and measured ceilings.

Matching reads quantity, metric, dimension, implementation and conditions, never ids or labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zenrepro.claims import Claim
from zenrepro.records import Kind, Record, Status
from zenrepro.stats import Summary, intervals, summarise
from zenrepro.units import Dimension, unit

# Numbers that a config or a file fixes, whatever the machine; counting settles them.
COUNTED = frozenset(("count", "size"))
# Ops that are a whole step or run: what a claim without an op speaks of.
WHOLE_OPS = frozenset((None, "decode_step", "prefill", "serve", "speculate"))
# Upper limits that a vendor states: (quantity, metric) of claims, and the ops that try them.
CEILINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("bandwidth", "peak"): ("copy", "read"),
    ("flop_rate", "dense"): ("matmul",),
}


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


def direct(claim: Claim, index: Index) -> list[Value] | Missing:
    """Every value that one machine's records give a claim as it stands, or why there is none."""
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
            reasons.append(not_usable(record))
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


def not_usable(record: Record) -> str:
    """Why a record gives no value, beginning with its status."""
    return f"{record.status}: {record.reason or 'its samples are flagged'}"


def is_ceiling(claim: Claim) -> bool:
    """Whether a claim states what hardware does at most."""
    stated = claim.kind in ("scalar", "interval")
    return stated and (claim.quantity, claim.metric) in CEILINGS


def ceiling(claim: Claim, index: Index) -> list[Value] | Missing:
    """The most that any measured ceiling of this kind reached, in the claim's format if any."""
    ops = CEILINGS[claim.quantity, claim.metric]
    dimension = unit(claim.unit).dimension
    dtype = claim.conditions.get("dtype")
    best: Entry | None = None
    reasons: list[str] = []
    for entry in index.by_quantity.get((claim.quantity, dimension), []):
        record = entry.record
        if _has(record, "op") not in ops or dtype not in (None, _has(record, "dtype")):
            continue
        if entry.summary is None:
            reasons.append(not_usable(record))
        elif best is None or best.summary is None or entry.summary > best.summary:
            best = entry
    if best is None or best.summary is None:
        return Missing(reasons[0] if reasons else f"no {claim.quantity} ceiling was measured")
    same = claim.conditions.get("platform") == best.record.device_class.platform
    conditions = best.record.conditions
    return [Value(best.summary, dimension, (best.record,), {}, same, conditions, best.backend)]


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
