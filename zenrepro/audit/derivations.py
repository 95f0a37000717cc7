"""Ratios, percentages, differences, shares and sums against the numbers they come from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from zenrepro import printed as printed_module
from zenrepro.audit.engine import (
    Check,
    Item,
    Meaning,
    Outcome,
    View,
    number,
    quantity,
    show,
)  # fmt: skip
from zenrepro.audit.intervals import divide, exact, hull, subtract, total
from zenrepro.audit.verdicts import Finding
from zenrepro.claims import DERIVATIONS
from zenrepro.printed import Interval

NEEDS_BASELINE = frozenset(DERIVATIONS) - {"sum"}
_MOST_COMBINATIONS = 64
# What ratios without a baseline are usually made of.
_COMPARED = ("throughput", "latency", "time", "energy_per_token", "size")


def derivation(view: View) -> Iterator[Item]:
    """A derived number follows from its operands by the equation of its metric.

    Equations: ``claims.DERIVATIONS``. Silent where the report names no operands (see
    ``baselines``). Operands enter as intervals, so rounding and truncation are allowed for.
    """
    for name, readings in view.readings.items():
        if not any(_complete(m) for m in readings) or "baseline" in readings[0].claim.unstated:
            continue
        outcomes: list[Outcome] = []
        operands: list[str] = []
        for meaning in readings:
            if not _complete(meaning):
                if meaning is readings[0] and meaning.metric in DERIVATIONS:
                    continue  # as written it names no operands; the readings do
                outcomes.append(Outcome(None, reading=meaning.text))
                continue
            names = [*meaning.of, *([meaning.baseline] if meaning.baseline else [])]
            operands += names
            for chosen in itertools.islice(view.combinations(*names), _MOST_COMBINATIONS):
                outcomes.append(_outcome(view, meaning, chosen[: len(meaning.of)], chosen))
        yield Check("derivation", (name,), tuple(dict.fromkeys(operands)), outcomes)


def compute(metric: str, a: Sequence[Meaning], b: Meaning | None) -> tuple[Interval, str] | None:
    """Value and arithmetic of a derived number; None where the operands do not fit the metric."""
    upper = [m.interval for m in a]
    left = " + ".join(m.printed for m in a)
    if len(a) > 1:
        left = f"({left})"
    if metric == "sum":
        return total(upper), left
    if b is None or not a:
        return None
    below, right = b.interval, b.printed
    if metric == "share":
        return divide(total(upper), below), f"{left} / {right}"
    if metric == "time_share":
        if a[0].unit.dimension.s < 0:
            return divide(below, upper[0]), f"{right} / {left}"
        return divide(upper[0], below), f"{left} / {right}"
    # One operand a: of several, the claim stands for any value between them.
    span = hull(upper)
    if len(a) > 1:
        left = "(" + " … ".join(m.printed for m in a) + ")"
    if metric == "difference":
        return subtract(span, below), f"{left} − {right}"
    ratio, inverse = divide(span, below), divide(below, span)
    if metric == "ratio":
        return ratio, f"{left} / {right}"
    if metric == "speedup":
        dimension = a[0].unit.dimension
        times = dimension.s > 0 or (dimension.J > 0 and dimension.s == 0)
        return (inverse, f"{right} / {left}") if times else (ratio, f"{left} / {right}")
    if metric == "increase":
        return subtract(ratio, exact(1.0)), f"{left} / {right} − 1"
    if metric == "reduction":
        return subtract(exact(1.0), ratio), f"1 − {left} / {right}"
    if metric == "reduction_factor":
        return inverse, f"{right} / {left}"
    return None


def _complete(meaning: Meaning) -> bool:
    if meaning.metric not in DERIVATIONS or not meaning.of:
        return False
    return meaning.metric == "sum" or meaning.baseline is not None


def _outcome(
    view: View, meaning: Meaning, a: tuple[Meaning, ...], chosen: tuple[Meaning, ...]
) -> Outcome:
    b = chosen[-1] if meaning.metric != "sum" else None
    found = compute(meaning.metric, a, b)
    if found is None or not meaning.has_number or not all(m.has_number for m in chosen):
        return Outcome(None, reading=meaning.text)
    value, text = found
    texts = [m.text for m in (meaning, *chosen) if m.text != "as written"]
    span = show(value, meaning.unit)
    arithmetic = f"{text} = {span}, printed {meaning.printed}"
    holds = value.meets(meaning.interval)
    mend = ""
    if not holds:
        middle = Interval(value.low, value.high)
        mend = f"{show(middle, meaning.unit)} in place of {meaning.printed}"
        other = _elsewhere(view, meaning, a, b)
        if other:
            mend += f"; it would hold for {other}"
    return Outcome(holds, arithmetic, mend, ", ".join(texts))


def _elsewhere(
    view: View, meaning: Meaning, a: tuple[Meaning, ...], b: Meaning | None
) -> str | None:
    """Another operand of the same kind that would make the claim true, as arithmetic."""
    if len(a) != 1 or b is None:
        return None
    for name in view.having(a[0].quantity, a[0].metric):
        other = view.readings[name][0]
        if other.claim.id == b.claim.id or other.unit.dimension != a[0].unit.dimension:
            continue
        if other.get("model") != a[0].get("model") or other.claim.kind != a[0].claim.kind:
            continue
        found = compute(meaning.metric, (other,), b)
        if found and found[0].meets(meaning.interval):
            return f"{found[1]} = {show(found[0], meaning.unit)}"
    return None


def product(view: View) -> Iterator[Item]:
    """A rate that equals its baseline times a rounded ratio to the last digit was calculated.

    Fires as a note when the derived number has at least two significant digits fewer than the
    number it is said to come from. Silent for ratios of one.
    """
    for name, readings in view.readings.items():
        meaning = readings[0]
        if meaning.metric not in ("speedup", "ratio") or len(meaning.of) != 1:
            continue
        if meaning.baseline is None or meaning.claim.kind != "ratio":
            continue
        a, b = (view.claims[i] for i in (meaning.of[0], meaning.baseline))
        if a.printed is None or b.printed is None or a.unit != b.unit:
            continue
        factor = printed_module.parse(str(meaning.claim.printed))[0]
        whole, base = (printed_module.parse(c.printed or "")[0] for c in (a, b))
        if factor == 1 or abs(factor * base - whole) > 1e-9 * abs(whole):
            continue
        if _digits(a.printed) < _digits(str(meaning.claim.printed)) + 2:
            continue
        yield Finding(
            rule="product", severity="note", verdict="note", claims=[a.id], against=[b.id, name],
            arithmetic=f"{number(base)} × {meaning.claim.printed} = {quantity(whole, '1')}, the "
            f"printed {a.printed} to its last digit although the ratio is rounded",
            mend="true as a number calculated from the ratio; a measured one would differ in "
            "its last digits",
        )  # fmt: skip


def _digits(printed: str) -> int:
    digits = printed.replace(",", "").replace(".", "").lstrip("+-0")
    return len(digits if "." in printed else digits.rstrip("0"))


def baseline(view: View) -> Iterator[Item]:
    """A ratio, share or difference needs what it is a ratio of.

    Fires when neither the claim nor any reading names operands, or when the report leaves the
    ``baseline`` unstated; lists pairs of published numbers that would give the printed one, or
    the nearest. With readings that all fail, the missing baseline still leaves it open.
    """
    for name, readings in view.readings.items():
        claim = readings[0].claim
        metrics = [m.metric for m in readings if m.metric in NEEDS_BASELINE]
        if claim.kind not in ("ratio", "share") or not metrics:
            continue
        if any(_complete(m) for m in readings) and "baseline" not in claim.unstated:
            continue
        pairs = list(_from_readings(view, readings))
        told = [text for _, text in pairs]
        for fits, text in _candidates(view, readings):
            if not any(other.startswith(text) for other in told):
                pairs.append((fits, text))
        hits = [text for fits, text in pairs if fits]
        mend = f"it would hold for {'; '.join(hits[:3])}" if hits else "name both numbers"
        if len(hits) > 3:
            mend += f"; and {len(hits) - 3} more"
        given = "; no two that it prints give it"
        if pairs:
            given = f"; published ones give {'; '.join(text for _, text in pairs[:4])}"
        yield Finding(
            rule="baseline", severity="note", verdict="unverifiable", claims=[name], mend=mend,
            arithmetic=f"{readings[0].printed}: the report leaves open which numbers it compares"
            + ("" if hits else given),
        )  # fmt: skip


def _from_readings(view: View, readings: Sequence[Meaning]) -> Iterator[tuple[bool, str]]:
    """What the readings that name operands give."""
    for meaning in readings:
        if not _complete(meaning):
            continue
        names = [*meaning.of, *([meaning.baseline] if meaning.baseline else [])]
        chosen = next(view.combinations(*names))
        b = chosen[-1] if meaning.baseline else None
        found = compute(meaning.metric, chosen[: len(meaning.of)], b)
        if found is not None:
            text = f"{found[1]} = {show(found[0], meaning.unit)} ({meaning.text})"
            yield found[0].meets(meaning.interval), text


def _candidates(view: View, readings: Sequence[Meaning]) -> Iterator[tuple[bool, str]]:
    """Pairs of scalar claims under the claim's conditions that might be its operands."""
    seen: set[str] = set()
    operands = [i for m in readings if _complete(m) for i in (*m.of, m.baseline) if i is not None]
    bases = {m.baseline for m in readings if _complete(m)} - {None}
    quantities = {view.claims[i].quantity for i in operands} or set(_COMPARED)
    for meaning in readings:
        if meaning.metric in ("share", "sum", "difference"):
            continue
        pool = [
            items[0]
            for items in view.readings.values()
            if items[0].claim.kind == "scalar"
            and items[0].claim.printed is not None
            and items[0].quantity in quantities
        ]
        pool = [m for m in pool if _covers(m, meaning)]
        for a, b in itertools.permutations(pool[:40], 2):
            if a.unit.dimension != b.unit.dimension or a.metric != b.metric:
                continue
            if a.interval.meets(b.interval):
                continue  # one number twice
            if bases and b.claim.id not in bases:
                continue  # the report says as much of what it is relative to
            if not _one_step(a, b, meaning):
                continue
            found = compute(meaning.metric, (a,), b)
            if found is None or (meaning.interval.low > 1 and found[0].high < 1):
                continue
            text = f"{found[1]} = {show(found[0], meaning.unit)}"
            if text not in seen and found[0].low > 0:
                seen.add(text)
                yield found[0].meets(meaning.interval), text


def _covers(pool: Meaning, wanted: Meaning) -> bool:
    """Whether the pool's claim is about the op, the model and the platform of the ratio."""
    return pool.get("op") == wanted.get("op") and all(
        wanted.get(key) in (None, pool.get(key)) for key in ("model", "platform")
    )


def _one_step(a: Meaning, b: Meaning, wanted: Meaning) -> bool:
    """Whether two claims differ in nothing but what the ratio is about or leaves unstated.

    The first has what the ratio states; the second may differ there.
    """
    for key in a.conditions.keys() | b.conditions.keys() | wanted.conditions.keys():
        x, y = a.get(key), b.get(key)
        if key in ("model", "platform", "op"):
            if x != y:
                return False
        elif key in wanted.conditions:
            if x != wanted.get(key):
                return False
        elif x != y and key not in wanted.claim.unstated:
            return False
    return True
