"""One thing told twice: with different numbers, or one number under different conditions."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

from zenrepro import printed as printed_module
from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View, agreement
from zenrepro.audit.verdicts import Finding

# What is measured anew under each set of conditions, so that equal digits are a surprise.
MEASURED = ("time", "throughput", "latency", "energy_per_token", "bandwidth", "traffic")

# How something was run: what a sentence leaves out when it tells of a table's cell again.
OF_THE_RUN = frozenset(
    {
        "batch", "batching", "cache_len", "chips", "dtype", "format", "group_size", "parallelism",
        "phase", "policy", "power_mode", "query_len", "seq_len",
    }
)  # fmt: skip


def repeat(view: View) -> Iterator[Item]:
    """Two claims of one quantity under the same conditions must share a value.

    A sentence that leaves out how it was run must meet at least one of the claims it may repeat.
    Only numbers that the report states, not those it derives, are repeats of each other, unless
    they name the same operands. A note when a condition of either is listed as unstated.
    """
    seen: set[frozenset[str]] = set()
    for name, readings in view.readings.items():
        first = readings[0]
        if first.claim.printed is None:
            continue
        equal, loose = view.partners(name, first.quantity, first.metric)
        equal = [o for o in equal if _comparable(first, view.readings[o][0])]
        loose = [o for o in loose if _comparable(first, view.readings[o][0])]
        wider = [o for o in loose if _tells_again(first, view.readings[o][0])]
        for other in equal:
            if frozenset((name, other)) in seen or _two_sentences(view, name, other, wider):
                continue
            seen.add(frozenset((name, other)))
            outcomes = [_outcome(a, b) for a, b in view.combinations(name, other)]
            # Neither claim knows which is right: both get the verdict.
            demote = _open(view, name, other)
            yield Check("repeat", (name, other), (), outcomes, demote=demote)
        if not equal and wider:
            tried = [
                (other, outcome)
                for other in wider
                for a, b in view.combinations(name, other)
                if (outcome := _outcome(a, b)).holds is not None
            ]
            outcomes = [outcome for _, outcome in tried]
            # Any of the wider claims may be the one that is meant.
            fits = [o for o in outcomes if o.holds]
            against = tuple(o for o, outcome in tried if outcome.holds) or tuple(wider)
            demote = _open(view, name, *wider)
            yield Check("repeat", (name,), against, fits or outcomes, demote=demote)


def _open(view: View, *names: str) -> str | None:
    """What may differ between the claims, where the report leaves a condition of theirs open."""
    keys = {k for name in names for k in view.claims[name].unstated}
    keys -= {"active_parameters", "baseline"}
    if not keys:
        return None
    return f"true if {' or '.join(sorted(keys)[:3])} differs: the report leaves it unstated"


def _two_sentences(view: View, name: str, other: str, wider: list[str]) -> bool:
    """Whether each of two sentences may tell of another of the wider claims."""
    parts = {view.claims[i].where.part for i in (name, other)}
    return bool(wider) and not parts & {"table", "listing"}


def _comparable(a: Meaning, b: Meaning) -> bool:
    if b.claim.printed is None or a.unit.dimension != b.unit.dimension:
        return False
    if a.claim.kind in ("ratio", "share") or b.claim.kind in ("ratio", "share"):
        return bool(a.of) and (a.of, a.baseline) == (b.of, b.baseline)
    return True


def _tells_again(a: Meaning, b: Meaning) -> bool:
    """Whether a is a sentence about what b states with more of how it was run."""
    if a.claim.where.part in ("table", "listing") or a.implementation != b.implementation:
        return False
    missing = b.conditions.keys() - a.conditions.keys()
    told = dict(a.conditions)
    if "chips" not in b.conditions and told.get("chips") == 1:
        del told["chips"]
    return told.items() <= b.conditions.items() and missing <= OF_THE_RUN


def _outcome(a: Meaning, b: Meaning) -> Outcome:
    text = ", ".join(m.text for m in (a, b) if m.text != "as written")
    if (a.quantity, a.metric) != (b.quantity, b.metric) or agreement(a, b) == 0:
        return Outcome(None, reading=text)
    holds = a.interval.meets(b.interval)
    return Outcome(
        holds,
        f"{a.printed} and {b.printed} for one {a.quantity.replace('_', ' ')} under the same "
        "conditions",
        f"{b.printed} in both places, or a condition that tells them apart",
        text,
    )


def shared_number(view: View) -> Iterator[Item]:
    """One printed number of at least four digits under two sets of conditions.

    A note, never an error: two measurements may agree by chance. Silent for numbers that are not
    measured, and where the two differ only in the implementation or state no differing condition.
    """
    groups: dict[tuple[str, str, str, float], list[Meaning]] = defaultdict(list)
    for readings in view.readings.values():
        first = readings[0]
        printed = first.claim.printed
        if first.quantity not in MEASURED or printed is None or first.claim.kind != "scalar":
            continue
        digits = [c for c in printed if c.isdigit()]
        if len(digits) < 4 or len("".join(digits).strip("0")) < 2:
            continue
        value = printed_module.parse(printed)[0]
        groups[(first.quantity, first.metric, first.unit.symbol, value)].append(first)
    for group in groups.values():
        for a, b in itertools.combinations(group, 2):
            keys = sorted(a.conditions.keys() | b.conditions.keys())
            differing = [
                k for k in keys
                if k in a.conditions and k in b.conditions and a.get(k) != b.get(k)
            ]  # fmt: skip
            if not differing:
                continue
            what = "; ".join(
                f"{k} {_plain(a.get(k))} against {_plain(b.get(k))}" for k in differing
            )
            yield Finding(
                rule="shared-number", severity="note", verdict="note",
                claims=[a.claim.id, b.claim.id],
                arithmetic=f"{a.printed} is printed for two sets of conditions: {what}",
                mend="true if both runs gave the same digits, or if one of them carries over "
                "the other's conditions",
            )  # fmt: skip


def _plain(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
