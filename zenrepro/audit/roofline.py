"""Throughput against the fewest bytes a step must read and the least arithmetic of a token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View, leaves_open, number, quantity
from zenrepro.audit.platforms import Ceiling, ceiling
from zenrepro.audit.verdicts import Bound, Finding
from zenrepro.audit.weights import Weights, most_lookups
from zenrepro.claims import Claim

# Weights that may stay on a chip between steps, so that its memory need not deliver them.
ON_CHIP_BYTES = 128e6
_WHOLE = (None, "decode_step", "prefill", "serve", "speculate")


class Limit(NamedTuple):
    """Most tokens a second, what it rests on, and the same work if every weight took part."""

    rate: float | None
    arithmetic: str
    full_rate: float
    full_arithmetic: str
    share: str
    counts: tuple[str, ...]


def memory_roofline(view: View) -> Iterator[Item]:
    """Rate <= batch x tokens a step x chips x bandwidth / bytes that each step must read.

    Those bytes are the parts that are always read, at the least size that the published sizes
    allow, less what a chip may hold. If the active part is unstated, exceeding the rate with all
    weights read is a note with the break-even. Silent for prefill, without batch, format or
    bandwidth; tokens a step exceed one only with drafted tokens.
    """
    yield from _rule(view, "memory-roofline", _memory)


def compute_roofline(view: View) -> Iterator[Item]:
    """Rate <= chips x FLOP rate / (2 x parameters that each token uses).

    The FLOP rate is the best of all formats, structured sparsity included. If the active part is
    unstated, exceeding the dense rate is a note with the break-even.
    """
    yield from _rule(view, "compute-roofline", _compute)


_FROM = {
    "memory-roofline": "from the bytes that each step must read",
    "compute-roofline": "from the arithmetic of each token",
}


def _rule(view: View, rule: str, limit_of: object) -> Iterator[Item]:
    for name in view.having("throughput", "rate"):
        outcomes: list[Outcome] = []
        first: Limit | None = None
        claim = view.claims[name]
        for m in view.readings[name]:
            weights = view.weights.get(m.get("model") or "")
            found = None
            if weights and m.quantity == "throughput" and m.get("op") in _WHOLE:
                found = limit_of(view, weights, m)  # type: ignore[operator]
            if found is None:
                outcomes.append(Outcome(None, reading=m.text))
                continue
            first = first or found
            if found.rate is None:
                outcomes.append(Outcome(None, reading=m.text))
                continue
            holds = m.interval.low <= found.rate
            mend = f"{number(found.rate)} token/s or less, {_FROM[rule]}"
            arithmetic = f"printed {m.printed}; {found.arithmetic}"
            outcomes.append(Outcome(holds, arithmetic, mend, m.text))
        if first is None:
            continue
        keys = _left_open(view, claim, rule)
        demote = None
        if keys and first.rate is not None:
            demote = _enough(first, view.readings[name][0], keys)
        yield Check(rule, (name,), first.counts, outcomes, error="impossible", demote=demote)
        unit = claim.unit
        if first.rate is not None and not keys:
            yield Bound(
                claim=name, value=first.rate, unit=unit, relation="≤",
                arithmetic=first.arithmetic, rule=rule,
            )  # fmt: skip
        else:
            yield Bound(
                claim=name, value=first.rate if keys and first.rate else first.full_rate, unit=unit,
                relation="≤", rule=rule,
                arithmetic=first.arithmetic if keys and first.rate else first.full_arithmetic,
                assumption=_assumption(first, keys),
            )  # fmt: skip
        failed = outcomes and all(o.holds is False for o in outcomes)
        if not failed and view.readings[name][0].interval.low > first.full_rate:
            yield Finding(
                rule=rule, severity="note", verdict="note", claims=[name],
                against=list(first.counts),
                arithmetic=f"{first.full_arithmetic}, printed {view.readings[name][0].printed}",
                mend=f"true only if {first.share}",
            )  # fmt: skip


def _open_activity(weights: Weights, m: Meaning) -> bool:
    claims = (m.claim, *(count.claim for count in weights.counts))
    return leaves_open(claims, "active_parameters") is not None or any(
        part.read == "sparse" for part in weights.parts
    )


def _enough(limit: Limit, m: Meaning, keys: list[str]) -> str:
    """What would make a rate above the limit true, where the report leaves ``keys`` open."""
    assert limit.rate is not None
    times = -int(-m.interval.low // limit.rate)
    if "batch" in keys:
        return (
            f"true with {times} sequences or more at a time; the report leaves "
            f"{', '.join(keys)} open"
        )
    if keys == ["phase"]:
        return "true if prompt tokens are counted too: the report leaves the phase open"
    return f"true on {times} devices or more; the report leaves {', '.join(keys)} open"


def _assumption(limit: Limit, keys: list[str]) -> str:
    if limit.rate is None or not keys:
        return "every weight takes part"
    least = {"batch": "one sequence", "chips": "one device", "devices": "one device",
             "phase": "decoding"}  # fmt: skip
    return ", ".join(dict.fromkeys(least[key] for key in keys))


def _left_open(view: View, claim: Claim, rule: str) -> list[str]:
    """The conditions that the limit rests on and that the report leaves unstated."""
    keys = ["chips", "devices"]
    if rule == "memory-roofline":
        keys.append("batch")
    found = [key for key in keys if key in claim.unstated and key not in claim.conditions]
    decodes = claim.conditions.get("phase") == "decode" or claim.where.table in view.output_tables
    if rule == "memory-roofline" and not decodes:
        found.append("phase")
    return found


def _memory(view: View, weights: Weights, m: Meaning) -> Limit | None:
    batch = m.get("batch") or (1 if "batch" in m.claim.unstated else None)
    formats = weights.formats(m)
    most = ceiling(view, m.get("platform") or "", "bandwidth", "GB/s")
    whole = weights.least_size(m)
    if not batch or formats is None or most is None or not whole or m.get("phase") == "prefill":
        return None
    assert weights.parameters is not None
    every = weights.parameters.low
    tokens = batch * _tokens_a_step(m)
    if tokens == 0:
        return None
    chips = view.chips(m)
    bandwidth = most.value * chips
    head = f"{tokens} token{'s' if tokens > 1 else ''} a step × {_times(chips, most)}"
    if weights.divided:
        read = weights.least_read(m)
    elif _open_activity(weights, m):
        read = None
    else:
        read = whole * (1 - most_lookups(every) / every)
    needed = (read or 0.0) - ON_CHIP_BYTES * chips
    rate = tokens * bandwidth / needed if needed > 0 else None
    allowed = bandwidth * tokens / m.interval.low if m.interval.low > 0 else whole
    share = (
        f"at most {quantity(allowed, 'GB')} of the {quantity(whole, 'GB')} "
        f"({100 * allowed / whole:.1f} %) is read at each step"
    )
    if m.get("batch") is None:
        least = -int(-whole // (bandwidth / m.interval.low)) if m.interval.low > 0 else 1
        share += f", or {least} sequences or more run at a time"
    return Limit(
        rate,
        f"{head} / {quantity(max(needed, 0), 'GB')} that each step must read = "
        f"{number(rate or 0)} token/s at most{_why(weights)}",
        tokens * bandwidth / whole,
        f"{head} / {quantity(whole, 'GB')} of weights = "
        f"{number(tokens * bandwidth / whole)} token/s if each step reads all of them",
        share,
        tuple(dict.fromkeys(count.claim.id for count in weights.counts)),
    )


def _tokens_a_step(m: Meaning) -> int:
    """Most tokens that one step yields each sequence; 0 when that is unknown."""
    drafts = m.get("draft_model") is not None or m.get("op") == "speculate"
    if m.get("gamma"):
        return int(m.get("gamma")) + 1
    return 0 if drafts else 1


def _compute(view: View, weights: Weights, m: Meaning) -> Limit | None:
    most = ceiling(view, m.get("platform") or "", "flop_rate", "TFLOP/s")
    if most is None or weights.parameters is None:
        return None
    chips = view.chips(m)
    peak = most.value * chips
    every = weights.parameters.low
    stated = view.stated("count", "active_parameters", model=weights.model)
    active: float | None = None
    if stated:
        active = max(min(s.interval.low for s in stated) - most_lookups(every), 0.0)
    elif weights.divided:
        active = weights.least_active()
    elif not _open_activity(weights, m):
        active = every - most_lookups(every)
    rate = peak / (2 * active) if active and active > 1e3 else None
    head = _times(chips, most)
    share = peak / m.interval.low / 2 / every if m.interval.low > 0 else 1.0
    return Limit(
        rate,
        f"{head} / (2 × {quantity(active or 0, 'Gparameter')} that each token uses) = "
        f"{number(rate or 0)} token/s",
        peak / (2 * every),
        f"{head} / (2 × {quantity(every, 'Gparameter')}) = "
        f"{number(peak / (2 * every))} token/s if every weight takes part",
        f"at most {100 * share:.1f} % of the parameters are active",
        tuple(dict.fromkeys(count.claim.id for count in weights.counts)),
    )


def _why(weights: Weights) -> str:
    if not weights.divided or not weights.sizes:
        return ""
    sizes = ", ".join(dict.fromkeys(m.claim.printed or m.printed for m in weights.sizes))
    tables = ""
    if any(part.read == "gather" for part in weights.parts) and weights.parameters is not None:
        most = quantity(most_lookups(weights.parameters.high), "Gparameter")
        tables = f"; looked-up tables taken as {most} at most"
    return f" (sizes {sizes}, in GB or GiB, leave no less to always-read parts{tables})"


def _times(chips: int, most: Ceiling) -> str:
    return f"{chips} × {most.source}" if chips > 1 else most.source
