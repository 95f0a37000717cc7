"""A part of a model against the whole, and the utilisation of one piece of work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View, agreement, number, quantity
from zenrepro.audit.intervals import divide
from zenrepro.audit.platforms import ceiling
from zenrepro.audit.verdicts import Finding

# Ops that are one part of what a model does for a token; None stands for all of it.
PARTS = (
    "attention", "mla_prefill", "mla_decode", "moe_route", "moe_dispatch", "moe_combine",
    "moe_layer",
)  # fmt: skip
# A part within a part.
WITHIN = {"moe_route": "moe_layer", "moe_dispatch": "moe_layer", "moe_combine": "moe_layer"}
WHOLE = (None, "decode_step", "prefill")
_OP = frozenset({"op"})
# A model of this kind has at least so many layers, each with the part in it.
FEWEST_LAYERS = 8


def part(view: View) -> Iterator[Item]:
    """A part of the work is at least as fast as the whole under the same conditions.

    Both are tokens a second. An error only for equal conditions and implementation; where they
    differ (batch, formats) a slower part is a note, and so is a layer that leaves the whole model
    fewer than ``FEWEST_LAYERS`` of its kind. Silent across models, platforms and chips.
    """
    for name in view.having("throughput", "rate"):
        m = view.readings[name][0]
        if m.get("op") not in PARTS or m.get("model") is None:
            continue
        above = WITHIN.get(m.get("op"))
        if above is not None:
            yield from _within(view, name, above)
            continue
        wholes = [
            w
            for w in view.stated("throughput", "rate", model=m.get("model"))
            if w.get("op") in WHOLE
            and w.get("platform") == m.get("platform")
            and (w.get("chips") or 1) == (m.get("chips") or 1)
            and not w.get("draft_model")
            and (w.get("phase") or m.get("phase")) == (m.get("phase") or w.get("phase"))
        ]
        if not wholes:
            continue
        same = [w for w in wholes if agreement(m, w, _OP) == 2]
        for w in same:
            outcomes = [Outcome(*_slower(m, w, "the whole model")) for m in view.readings[name]]
            yield Check("part", (name, w.claim.id), (), outcomes)
        if same:
            continue
        fastest = max(wholes, key=lambda w: w.interval.low)
        layers = divide(m.interval, fastest.interval)
        if layers.high < FEWEST_LAYERS:
            differing = [
                key
                for key in sorted(m.conditions.keys() | fastest.conditions.keys() - _OP)
                if m.get(key) != fastest.get(key) and key != "op"
            ]
            slower = layers.high < 1
            room = "a part slower than its whole"
            if not slower:
                room = f"room for {number(layers.high)} such layers"
            together = "" if slower else "it is the rate of all layers together, and "
            yield Finding(
                rule="part", severity="note", verdict="note", claims=[name],
                against=[fastest.claim.id],
                arithmetic=f"{m.get('op')} alone {m.printed}, the whole model {fastest.printed} "
                f"on the same platform: {room}",
                mend=f"true if {together}the conditions differ ({', '.join(differing)})",
            )  # fmt: skip


def _within(view: View, name: str, above: str) -> Iterator[Item]:
    for other in view.having("throughput", "rate"):
        whole = view.readings[other][0]
        m = view.readings[name][0]
        if whole.get("op") != above or agreement(m, whole, _OP) != 2:
            continue
        outcomes = [Outcome(*_slower(a, b, above)) for a, b in view.combinations(name, other)]
        yield Check("part", (name, other), (), outcomes)


def _slower(m: Meaning, whole: Meaning, of: str) -> tuple[bool, str, str, str]:
    holds = m.interval.high >= whole.interval.low * (1 - 1e-9)
    arithmetic = f"{m.get('op')} alone {m.printed} is slower than {of} {whole.printed}"
    return holds, arithmetic, f"a part of at least {whole.printed}", m.text


def work_per_token(view: View) -> Iterator[Item]:
    """Utilisation x peak rate / throughput is the arithmetic of a token: the same for all
    implementations of one piece of work.

    A note, never an error: a utilisation may count arithmetic that is executed but not needed.
    Silent for bandwidth, whose traffic differs between implementations.
    """
    pairs: list[tuple[Meaning, Meaning]] = []
    for name in view.having("utilisation", "compute"):
        for other in view.partners(name, "throughput", "rate")[0]:
            pairs.append((view.readings[name][0], view.readings[other][0]))
    ignore = frozenset({"implementation", "dtype", "format"})
    groups: list[list[tuple[Meaning, Meaning]]] = []
    for pair in pairs:
        for group in groups:
            if agreement(group[0][0], pair[0], ignore) == 2:
                group.append(pair)
                break
        else:
            groups.append([pair])
    for group in groups:
        works = [(divide(u.interval, r.interval), u, r) for u, r in group]
        apart = [(a, b) for a, b in itertools.combinations(works, 2) if not a[0].meets(b[0])]
        if not apart:
            continue
        (low, u0, r0), (high, u1, r1) = min(works), max(works)
        most = ceiling(view, u0.get("platform") or "", "flop_rate", "TFLOP/s")
        peak = _stated_peak(view, u0) or (most.value if most else None)
        if peak is None:
            continue
        middle = [quantity((i.low + i.high) / 2 * peak, "GFLOP") for i in (high, low)]
        yield Finding(
            rule="work-per-token", severity="note", verdict="note",
            claims=[u.claim.id for _, u, _ in works], against=[r.claim.id for _, _, r in works],
            arithmetic=f"at a peak of {quantity(peak, 'TFLOP/s')}: {u1.printed} / {r1.printed} = "
            f"{middle[0]} a token, {u0.printed} / {r0.printed} = {middle[1]} a token, for the "
            "same work",
            mend="true if the utilisation counts arithmetic that the result does not need, or is "
            "a share of another peak in each row",
        )  # fmt: skip


def _stated_peak(view: View, m: Meaning) -> float | None:
    stated = view.stated("flop_rate", "dense", platform=m.get("platform"))
    values = {s.claim.value for s in stated if isinstance(s.claim.value, int | float)}
    if len(values) != 1:
        return None
    return float(values.pop()) * stated[0].unit.factor
