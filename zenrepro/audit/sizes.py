"""Sizes of weights against parameters, bits and scales; memory in use against what it holds."""

from __future__ import annotations

from collections.abc import Iterator

from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View, leaves_open, quantity
from zenrepro.audit.platforms import Ceiling, ceiling
from zenrepro.audit.verdicts import Bound, Finding
from zenrepro.audit.weights import BITS, GIBI, Weights
from zenrepro.printed import Interval


def size(view: View) -> Iterator[Item]:
    """Stored bytes = sum over parts of parameters x (bits + scales) / 8.

    Parts have any sizes that make up the model; scales add nothing up to ``MOST_SCALE_BITS``. GB
    may mean GiB. A format without a policy may leave some weights in 16 bits (a note). Silent
    without a parameter count or a format.
    """
    for weights in view.weights.values():
        for name in dict.fromkeys(m.claim.id for m in weights.sizes):
            counts = tuple(dict.fromkeys(c.claim.id for c in weights.counts))
            outcomes = []
            for m in view.readings[name]:
                if m not in weights.sizes or weights.parameters is None:
                    outcomes.append(Outcome(None, reading=m.text))
                    continue
                outcomes += _one(weights, m)
            if outcomes:
                yield Check("size", (name,), counts, outcomes)


def _one(weights: Weights, m: Meaning) -> Iterator[Outcome]:
    assert weights.parameters is not None
    formats = weights.formats(m) or {}
    bits = [BITS[f] for f in formats.values()]
    most = max(BITS[f] + weights.scale_bits(m, f) for f in formats.values())
    allowed = weights.possible(m)
    count = quantity(weights.parameters.low, "Gparameter")
    upper = quantity(weights.parameters.high, "Gparameter")
    per = f"{min(bits)}" if min(bits) == most else f"{min(bits)} to {most:g}"
    arithmetic = f"{count} to {upper} × {per} bit = {m.shown(allowed)}, printed {m.printed}"
    yield Outcome(m.interval.meets(allowed), arithmetic, m.shown(allowed), m.text)
    yield Outcome(
        m.interval.scaled(GIBI).meets(allowed), arithmetic, "", f"{m.unit.symbol} means 2^30 bytes"
    )
    if m.get("policy") is None and max(bits) < 16:
        wide = Interval(allowed.low, weights.parameters.high * 2)
        share = (m.interval.low - allowed.high) / (wide.high - allowed.high)
        yield Outcome(
            m.interval.meets(wide), arithmetic, "",
            f"at least {share:.0%} of the weights stay in 16 bits",
        )  # fmt: skip


def sizes_together(view: View) -> Iterator[Item]:
    """All sizes of one model must come from one division into parts (a linear programme).

    Finds the smallest set of sizes that no division gives. Silent without parts, and about sizes
    that already fail alone.
    """
    for weights in view.weights.values():
        if weights.parameters is None:
            continue
        sizes = [
            m
            for m in weights.sizes
            if any(m.interval.scaled(unit).meets(weights.possible(m)) for unit in (1.0, GIBI))
        ]
        if not weights.divided or len(sizes) < 2:
            continue
        names = list(dict.fromkeys(m.claim.id for m in sizes))
        if len(names) != len(sizes):
            continue  # readings that change a size's policy: no one system
        counts = tuple(dict.fromkeys(c.claim.id for c in weights.counts))
        if weights.feasible(sizes):
            yield Check("sizes-together", tuple(names), counts, [Outcome(True)])
            continue
        core = list(sizes)
        for m in sizes:
            rest = [other for other in core if other is not m]
            if not weights.feasible(rest):
                core = rest
        listed = ", ".join(f"{m.printed} ({_formats(weights, m)})" for m in core)
        yield Finding(
            rule="sizes-together", severity="error", verdict="inconsistent",
            claims=[m.claim.id for m in core], against=list(counts),
            arithmetic=f"no division of {quantity(weights.parameters.low, 'Gparameter')} to "
            f"{quantity(weights.parameters.high, 'Gparameter')} into parts gives {listed} at once",
            mend="one of the sizes differs, or its formats are not the described ones",
        )  # fmt: skip


def _formats(weights: Weights, m: Meaning) -> str:
    return ", ".join(f"{part} {stored}" for part, stored in (weights.formats(m) or {}).items())


def memory(view: View) -> Iterator[Item]:
    """Memory in use holds at least the weights, and those of the draft model where one runs.

    The number is of all chips or of each. Silent where the format of the weights is unstated.
    """
    for name in view.having("memory", "peak"):
        outcomes: list[Outcome] = []
        for m in view.readings[name]:
            weights = view.weights.get(m.get("model") or "")
            least = weights.least_size(m) if weights else None
            if weights is None or least is None or m.metric != "peak":
                outcomes.append(Outcome(None, reading=m.text))
                continue
            text = f"{quantity(least, m.unit.symbol)} of weights at least"
            draft = view.weights.get(m.get("draft_model") or "")
            if draft is not None and draft.parameters is not None:
                extra = draft.parameters.low * min(BITS.values()) / 8
                least += extra
                text += f" + {quantity(extra, m.unit.symbol)} of the draft model's"
            chips = view.chips(m)
            arithmetic = f"{text}, printed {m.printed}"
            ways = {"": 1.0, f"{m.unit.symbol} means 2^30 bytes": GIBI}
            if chips > 1:
                ways["it is the memory of each chip"] = float(chips)
            for how, factor in ways.items():
                holds = m.interval.high * factor >= least * (1 - 1e-9)
                mend = f"{quantity(least, m.unit.symbol)} or more"
                outcomes.append(Outcome(holds, arithmetic, mend, how or m.text))
        key = leaves_open([view.claims[name]], "format", "policy", "dtype")
        demote = f"true if {key} differs: the report leaves it unstated" if key else None
        yield Check("memory", (name,), (), outcomes, demote=demote)


def capacity(view: View) -> Iterator[Item]:
    """Memory in use fits in chips x capacity of the platform; so do weights at the published size.

    The capacity is the largest that the report or a vendor states, in GiB. An error only for
    memory in use on a stated number of chips: weights may also be kept outside.
    """
    for name in (*view.having("memory", "peak"), *view.having("throughput", "rate")):
        outcomes: list[Outcome] = []
        bound: Bound | None = None
        demote: str | None = None
        for m in view.readings[name]:
            most = ceiling(view, m.get("platform") or "", "memory", "GB")
            needed = _needed(view, m)
            if most is not None and needed is None and _may_be_any_format(view, m):
                outcomes += _formats_that_fit(view, m, most)
                continue
            if most is None or needed is None or m.get("op") not in (None, *_WHOLE):
                outcomes.append(Outcome(None, reading=m.text))
                continue
            chips = view.chips(m)
            limit = most.value * GIBI * chips
            count = f"{chips} × " if chips > 1 else ""
            arithmetic = f"{quantity(needed, 'GB')} to hold, {count}{most.source} to hold it"
            holds = needed <= limit
            devices = -int(-needed // (most.value * GIBI))
            mend = f"{devices} devices or more"
            outcomes.append(Outcome(holds, arithmetic, mend, m.text))
            is_memory = m.quantity == "memory"
            if leaves_open([m.claim], "chips", "devices") and m.get("chips") is None:
                demote = f"true on {devices} devices or more: the report leaves their number open"
            elif not is_memory:
                demote = f"true on {devices} devices or more, or with weights kept outside"
            elif bound is None:
                bound = Bound(
                    claim=name, value=most.value * chips / m.unit.factor, unit=m.unit.symbol,
                    relation="≤", arithmetic=f"{count}{most.source}", rule="capacity",
                )  # fmt: skip
        if outcomes:
            yield Check("capacity", (name,), (), outcomes, error="impossible", demote=demote)
        if bound is not None:
            yield bound


_WHOLE = ("decode_step", "prefill", "serve", "speculate")


def _may_be_any_format(view: View, m: Meaning) -> bool:
    weights = view.weights.get(m.get("model") or "")
    return (
        weights is not None
        and m.quantity == "throughput"
        and m.get("op") in (None, *_WHOLE)
        and leaves_open([m.claim], "policy", "format") is not None
        and m.get("chips") is not None
        and weights.formats(m) is None
    )


def _formats_that_fit(view: View, m: Meaning, most: Ceiling) -> Iterator[Outcome]:
    """One outcome a width of the weights, the 16 bits that models are published in first."""
    parameters = view.weights[m.get("model")].parameters
    assert parameters is not None
    for bits in (16, 8, 4):
        needed = parameters.low * bits / 8
        count = f"{m.get('chips')} × " if m.get("chips") > 1 else ""
        arithmetic = f"{quantity(needed, 'GB')} of {bits}-bit weights in {count}{most.source}"
        holds = needed <= most.value * GIBI * m.get("chips")
        how = f"the weights are stored in {bits} bits"
        yield Outcome(holds, arithmetic, "narrower weights or more chips", how)


def _needed(view: View, m: Meaning) -> float | None:
    if m.quantity == "memory":
        return m.interval.low if m.metric == "peak" else None
    weights = view.weights.get(m.get("model") or "")
    return weights.least_size(m) if weights and m.quantity == "throughput" else None
