"""Kernels of one case beside each other: the least time, ours, peers, and how ours compare.

For the report's tables of ops and for notebooks; from records alone. The least time is what the
ceilings measured on the same machine allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zenrepro import stats
from zenrepro.errors import InputError
from zenrepro.records import Origin, Record, Status
from zenrepro.report import grids
from zenrepro.report.evidence import Evidence, Machine, identity_key
from zenrepro.report.exploring import Ceilings
from zenrepro.report.grids import Cell, Grid, Line
from zenrepro.report.numbers import Missing, Number
from zenrepro.report.wording import FORMAT_NAMES, Words
from zenrepro.units import unit

# What ours must reach of the best peer's speed: the bar that each op is held to.
BARS: dict[str, float] = {"attention": 0.95, "mla_prefill": 0.95, "mla_decode": 1.0}
_SHOWN = (Status.OK, Status.DISTURBED)
_IN_TURN = "in turn with "


class Timed(NamedTuple):
    """One implementation's time of a case in seconds, with its record."""

    implementation: str
    ours: bool
    summary: stats.Summary
    record: Record


class Missed(NamedTuple):
    """An implementation without a time of a case, and the record that says why."""

    implementation: str
    ours: bool
    record: Record


class Row(NamedTuple):
    """One case. ``least_s`` is what ceilings allow, None where they or the work are unknown;
    ``bound`` the resource that sets it."""

    conditions: Mapping[str, Any]
    timed: list[Timed]
    missed: list[Missed]
    least_s: float | None
    bound: str | None

    @property
    def ours(self) -> Timed | None:
        """Our fastest, the plain twins that speeds are told against left out."""
        return _fastest(one for one in self.timed if one.ours and one.record.baseline is not None)

    @property
    def peer(self) -> Timed | None:
        """The fastest peer."""
        return _fastest(one for one in self.timed if not one.ours)

    @property
    def speed(self) -> stats.Summary | None:
        """Our fastest against the fastest peer: above 1 ours is ahead."""
        ours, peer = self.ours, self.peer
        return None if ours is None or peer is None else stats.ratio(peer.summary, ours.summary)

    @property
    def in_turn(self) -> bool:
        """Whether the two were sampled in the same rounds."""
        ours, peer = self.ours, self.peer
        return ours is not None and peer is not None and beside(ours.record, peer.implementation)

    @property
    def reached(self) -> bool | None:
        """Whether ours is at the bar, by the median; None where there is nothing to compare."""
        speed = self.speed
        bar = BARS.get(str(self.conditions.get("op")))
        return None if speed is None or bar is None else speed.value >= bar

    def share_of_least(self, one: Timed) -> float | None:
        """How much of the least time the implementation's is: 1 is at the ceiling."""
        return None if self.least_s is None else self.least_s / one.summary.value


def _fastest(found: Iterable[Timed]) -> Timed | None:
    return min(found, key=lambda one: one.summary.value, default=None)


def beside(record: Record, implementation: str) -> bool:
    """Whether a record's samples were taken in turn with another implementation's."""
    said = (record.method or "").rpartition(_IN_TURN)
    return bool(said[1]) and implementation in said[2].split(", ")


def apart(found: Iterable[Row]) -> bool:
    """Whether there are times to compare, and none was sampled in turn with another."""
    compared = [one for row in found if len(row.timed) > 1 for one in row.timed]
    return bool(compared) and not any(_IN_TURN in (one.record.method or "") for one in compared)


def rows(records: Iterable[Record], ops: Sequence[str], most: Ceilings) -> list[Row]:
    """One row a case of these ops, in the order of the records; times only."""
    found: dict[tuple[tuple[str, Any], ...], list[Record]] = {}
    for record in records:
        if (record.quantity, record.metric) != ("time", "call"):
            continue
        if record.conditions.get("op") in ops:
            found.setdefault(tuple(sorted(record.conditions.items())), []).append(record)
    return [_row(dict(conditions), members, most) for conditions, members in found.items()]


def _row(conditions: dict[str, Any], members: list[Record], most: Ceilings) -> Row:
    timed = [
        Timed(r.implementation, r.origin is Origin.OURS, _summary(r), r)
        for r in members
        if r.status in _SHOWN and r.samples
    ]
    missed = [
        Missed(r.implementation, r.origin is Origin.OURS, r)
        for r in members
        if not (r.status in _SHOWN and r.samples)
    ]
    work = next((one.record.work for one in timed if one.record.work), None)
    rate = most.flop_rate.get(str(conditions.get("dtype")))
    if work is None or not work.flops or not work.bytes or not rate or not most.bandwidth:
        return Row(conditions, timed, missed, None, None)
    computing, moving = work.flops / rate, work.bytes / most.bandwidth
    bound = "FLOPs" if computing > moving else "bytes"
    return Row(conditions, timed, missed, max(computing, moving), bound)


def _summary(record: Record) -> stats.Summary:
    value, low, high, n = stats.summarise(record.samples)
    factor = unit(record.unit).factor
    return stats.Summary(value * factor, low * factor, high * factor, n)


# -- the report's tables -----------------------------------------------------------------------

# Columns of implementations that a page holds.
_MOST = 6
_MARKS = {"✓": "at the bar", "✗": "below it", "†": "not sampled in turn"}
_TITLES = {
    "attention": "Attention, every case", "mla_prefill": "Latent attention, prefill",
    "mla_decode": "Latent attention, decode",
}  # fmt: skip


def grid(evidence: Evidence, op: str, machine: Machine | None) -> Grid:
    """The table of one op: a case a line, times by implementation, ours against the best peer.

    Of several backends the one with the most times. Raises InputError for an op without a bar.
    """
    if op not in BARS:
        raise InputError(f"grid 'kernels:{op}': ops of such tables are {', '.join(BARS)}")
    name, title = f"kernels:{op}", _TITLES[op]
    nothing = f"No machine has timed {title.lower()} yet."
    every = rows(machine.records, (op,), Ceilings(machine.records)) if machine else []
    backends = Counter(one.implementation.partition(".")[0] for row in every for one in row.timed)
    if machine is None or not backends:
        return Grid(name, title, [], [], empty=nothing)
    backend = backends.most_common(1)[0][0]
    own = [row for row in (_of_backend(row, backend) for row in every) if row.timed]
    columns = _columns(own)
    peers = any(row.peer and row.ours for row in own)
    head = ["Case", "least", "by", *(_short(column) for column in columns)]
    alike = shared(own)
    lines = [_line(row, columns, alike, evidence.words, peers) for row in sorted(own, key=_order)]
    note = (f"{_format(alike['dtype'])}. " if "dtype" in alike else "") + (
        f"Times in µs, medians on {machine.title} ({backend}). Least: the time that the ceilings "
        "measured on that machine allow, and whether bytes or FLOPs set it."
    )
    if peers:
        head.append("over peer")
        bar = "ahead of it" if BARS[op] == 1.0 else f"{BARS[op]:g} of its speed"
        note += f" Over peer: our fastest kernel against the fastest peer; the bar is {bar}."
    elif any(row.peer for row in own):
        note += " No kernel of ours was timed there, plain forms aside."
    if apart(own):
        note += " These records were sampled one implementation after the other, not in turn."
    return Grid(name, f"{title} on {machine.title}", head, lines, note, marks=_MARKS)


def _of_backend(row: Row, backend: str) -> Row:
    def mine(one: Timed | Missed) -> bool:
        return one.implementation.partition(".")[0] == backend

    return row._replace(
        timed=[one for one in row.timed if mine(one)],
        missed=[one for one in row.missed if mine(one)],
    )


def _columns(found: Sequence[Row]) -> list[str]:
    """Ours first, then peers; where a page does not hold all, those that are fast in most rows."""
    score: dict[tuple[bool, str], float] = {}
    for row in found:
        best = min(one.summary.value for one in row.timed)
        for one in row.timed:
            key = (not one.ours, one.implementation)
            score[key] = score.get(key, 0.0) + best / one.summary.value
    kept = sorted(score, key=lambda key: (-score[key], key))[:_MOST]
    return [name for _, name in sorted(kept)]


def _short(implementation: str) -> str:
    return implementation.partition(".")[2].replace("_", " ")


def _line(
    row: Row, names: Sequence[str], alike: Mapping[str, Any], words: Words, peers: bool
) -> Line:
    timed = {one.implementation: one for one in row.timed}
    missed = {one.implementation: one for one in row.missed}
    least = grids.NONE if row.least_s is None else Cell(_us(row.least_s))
    cells = [least, Cell(row.bound or "")]
    for name in names:
        if name in timed:
            cells.append(Cell(_us(timed[name].summary.value), identity_key(timed[name].record)))
        elif name in missed:
            cells.append(grids.missing(missed[name].record))
        else:
            cells.append(Cell(Missing("n")))
    if peers:
        cells.append(_compared(row))
    return Line(case_in_words(row.conditions, alike, words), cells)


def _compared(row: Row) -> Cell:
    speed = row.speed
    if speed is None:
        return grids.NONE
    mark = ("✓" if row.reached else "✗") + ("" if row.in_turn else "†")
    return Cell(Number(speed.value, "x", digits=f"{speed.value:.2f}"), mark=mark)


def _us(seconds: float) -> Number:
    """Microseconds by three digits: a record has the interval."""
    return Number(float(f"{seconds * 1e6:.3g}"), "us")


def _order(row: Row) -> tuple[Any, ...]:
    given = row.conditions
    words = tuple(str(given.get(key, "")) for key in ("phase", "format", "layout", "dtype"))
    sizes = tuple(given.get(key, 0) for key in ("head_dim", "heads", "query_len", "cache_len"))
    return (*words, not given.get("causal", True), *sizes, -given.get("kv_heads", 0))


def shared(found: Sequence[Row]) -> dict[str, Any]:
    """The conditions that all rows have alike."""
    first = found[0].conditions if found else {}
    return {k: v for k, v in first.items() if all(row.conditions.get(k) == v for row in found)}


def case_in_words(given: Mapping[str, Any], alike: Mapping[str, Any], words: Words) -> str:
    """A case as a row is called, without what all rows have ``alike``: ``64 × 4,096, 128 heads,
    FP8 cache``."""
    queries = given.get("query_len", given.get("seq_len"))
    length = given.get("cache_len", given.get("seq_len"))
    parts = [f"{given.get('batch', 1):,} × {length or 0:,}"]
    if queries not in (length, None, 1):
        parts.append(f"{queries:,} queries")
    heads, kept = given.get("heads"), given.get("kv_heads")
    if heads is not None:
        parts.append(f"{heads}/{kept} heads" if kept not in (None, heads) else f"{heads} heads")
    wide, out = given.get("head_dim"), given.get("value_dim")
    if "head_dim" not in alike and wide is not None:
        parts.append(f"{wide}/{out} wide" if out not in (None, wide) else f"{wide} wide")
    if "phase" not in alike:
        parts.append(str(given.get("phase", "")))
    if given.get("causal") is False:
        parts.append("full")
    if given.get("skew"):
        parts.append(f"± {given['skew']:.0%}")
    if given.get("page_size") and "page_size" not in alike:
        parts.append(f"pages of {given['page_size']}")
    elif given.get("layout"):
        parts.append(str(given["layout"]))
    if "dtype" not in alike:
        parts.append(_format(given.get("dtype")))
    if given.get("format"):
        parts.append(f"{_format(given['format'])} cache")
    if given.get("model"):
        parts.append(words.value("model", given["model"]))
    return ", ".join(part for part in parts if part)


def _format(name: Any) -> str:
    return FORMAT_NAMES.get(str(name), str(name)).partition(" ")[0]
