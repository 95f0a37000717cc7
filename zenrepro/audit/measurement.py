"""Measurement verdicts: what each machine's records say of each claim.

docs/decisions/verdicts.md says how the cases were decided that DESIGN leaves open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from zenrepro.audit import measured as measured_values
from zenrepro.audit import measured_formulas
from zenrepro.audit.candidates import Index, Missing, Value, is_ceiling
from zenrepro.audit.measured_formulas import Found
from zenrepro.claims import Claim, Publication
from zenrepro.conditions import KEYS
from zenrepro.printed import Interval
from zenrepro.records import Record
from zenrepro.stats import Summary, intervals
from zenrepro.units import Dimension, unit

Verdict = Literal["reproduced", "exceeded", "not reproduced", "different hardware", "not run"]
# From best to worst: where several records or readings speak, the best one is printed.
ORDER: tuple[Verdict, ...] = (
    "reproduced", "exceeded", "not reproduced", "different hardware", "not run",
)  # fmt: skip

HIGHER_IS_BETTER = frozenset(
    ("throughput", "bandwidth", "flop_rate", "utilisation", "quality", "acceptance")
)
LOWER_IS_BETTER = frozenset(("time", "latency", "memory", "size", "traffic", "error", "power"))
# What any machine can settle, whatever its class.
ANY_HARDWARE = frozenset(("count", "size", "error", "quality", "acceptance"))


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One claim on one machine.

    ``value``, ``low``, ``high`` in ``unit``, the claim's; ``ratio`` is measured over printed;
    ``relaxed`` holds conditions that were let differ, as the record has them. ``record`` is what
    was compared, ``against`` the other operands of a ratio. ``across``: a ratio that was measured
    on another device class than claimed. ``reading``: the reading under which it holds, None for
    the words as they stand. ``candidates``: how many values the machine's records give.
    ``power_of``: the value is an exponent, of this symbol of the claim's formula.
    """

    claim: str
    machine: str
    verdict: Verdict
    reason: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str | None = None
    n: int | None = None
    ratio: float | None = None
    record: Record | None = None
    against: tuple[Record, ...] = ()
    relaxed: dict[str, Any] = {}
    across: bool = False
    reading: str | None = None
    candidates: int = 0
    power_of: str | None = None


def judge(publication: Publication, records: Iterable[Record]) -> list[Measurement]:
    """Verdicts of every claim on every machine that has records, by machine, in claims' order."""
    by_machine: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_machine[record.machine].append(record)
    claims = publication.by_id()
    return [
        _judge(claim, claims, index, machine)
        for machine, own in sorted(by_machine.items())
        for index in [Index(own, publication.implementations)]
        for claim in publication.claims
    ]


def _judge(claim: Claim, claims: Mapping[str, Claim], index: Index, machine: str) -> Measurement:
    nothing = _unmeasurable(claim)
    if nothing is not None:
        return Measurement(claim=claim.id, machine=machine, verdict="not run", reason=nothing)
    reasons: list[str] = []
    best: Measurement | None = None
    for variant, reading in variants(claim):
        if measured_formulas.judged(claim):
            stated = measured_formulas.values(variant, index)
            if isinstance(stated, Missing):
                reasons.append(stated.reason)
                continue
            for one in stated:
                judged = _of_formula(variant, one, machine, reading, len(stated))
                if best is None or _rank(judged) < _rank(best):
                    best = judged
            continue
        found = measured_values.values(variant, claims, index)
        if isinstance(found, Missing):
            reasons.append(found.reason)
            continue
        for value in found:
            judged = _verdict(variant, claims, value, machine, reading, len(found))
            if best is None or _rank(judged) < _rank(best):
                best = judged
    if best is not None:
        return best
    return Measurement(claim=claim.id, machine=machine, verdict="not run", reason=reasons[0])


def _unmeasurable(claim: Claim) -> str | None:
    """Why no measurement can speak of a claim, None where one can."""
    if measured_formulas.judged(claim):
        return None
    if claim.kind in ("formula", "trend", "categorical"):
        return f"states a {claim.kind}" if claim.kind != "categorical" else "states no number"
    if claim.quantity == "count" and claim.metric in KEYS:
        return "states a condition"
    return None


def variants(claim: Claim) -> Iterator[tuple[Claim, str | None]]:
    """The claim as written, then as each reading that sets something has it."""
    yield claim, None
    for reading in claim.readings:
        given = {
            name: value
            for name in (
                "quantity",
                "metric",
                "unit",
                "relation",
                "implementation",
                "of",
                "baseline",
                "formula",
            )
            if (value := getattr(reading, name)) is not None
        }
        if reading.conditions:
            given["conditions"] = {**claim.conditions, **reading.conditions}
        if given:
            yield msgspec.structs.replace(claim, **given), reading.text


def _rank(measurement: Measurement) -> tuple[Any, ...]:
    """Sorts values of one claim: the best verdict, then the fewest liberties taken."""
    return (
        ORDER.index(measurement.verdict),
        len(measurement.relaxed),
        measurement.reading is not None,
        measurement.across,
        abs((measurement.ratio if measurement.ratio is not None else 0.0) - 1.0),
    )


def _verdict(
    claim: Claim,
    claims: Mapping[str, Claim],
    value: Value,
    machine: str,
    reading: str | None,
    candidates: int,
) -> Measurement:
    own = unit(claim.unit)
    measured = intervals.scaled(value.summary, 1.0 / own.factor)
    printed = claim.interval()
    middle = claim.value if isinstance(claim.value, int | float) else sum(printed) / 2
    ratio = measured.value / middle if middle else None
    is_derived = claim.kind in ("ratio", "share")
    ceiling = is_ceiling(claim)
    verdict: Verdict
    reason: str | None = None
    if claim.quantity == "utilisation" and len(value.records) > 1:
        reason = "of the ceiling measured on this machine"
    if not is_derived and not value.same_class and claim.quantity not in ANY_HARDWARE:
        verdict = "different hardware"
        if claim.conditions.get("platform") is None:
            reason = "the report names no hardware for it"
    elif ceiling:
        verdict, reason = _against_ceiling(measured, printed, claim.tolerance, ratio)
    else:
        verdict = _against(measured, printed, claim, better(claim, claims))
    return Measurement(
        claim=claim.id,
        machine=machine,
        verdict=verdict,
        reason=reason,
        value=measured.value,
        low=measured.low,
        high=measured.high,
        unit=claim.unit,
        n=measured.n,
        ratio=ratio,
        record=value.records[0],
        against=value.records[1:],
        relaxed=value.relaxed,
        across=is_derived and not value.same_class,
        reading=reading,
        candidates=candidates,
    )


def _of_formula(
    claim: Claim, found: Found, machine: str, reading: str | None, candidates: int
) -> Measurement:
    """A growth, a cache or an exactness: the same on every class of device."""
    measured, stated = found.summary, found.stated
    symbol = claim.formula.symbols.get(claim.formula.left) if claim.formula else None
    direction = _of_quantity(
        claim.quantity, claim.metric, unit(symbol.unit if symbol else "1").dimension
    )
    verdict: Verdict = "reproduced"
    ratio = None
    if stated is not None:
        verdict = _against(measured, stated, claim, direction)
        middle = sum(stated) / 2
        ratio = measured.value / middle if middle else None
    return Measurement(
        claim=claim.id,
        machine=machine,
        verdict=verdict,
        reason=found.reason,
        value=measured.value,
        low=measured.low,
        high=measured.high,
        unit=found.unit,
        n=measured.n,
        ratio=ratio,
        record=found.records[0],
        against=found.records[1:],
        reading=reading,
        candidates=candidates,
        power_of=found.power_of,
    )


def widened(measured: Summary, tolerance: float) -> Interval:
    """The 95 % interval, wider by the tolerance at each end."""
    return Interval(
        measured.low - tolerance * abs(measured.low), measured.high + tolerance * abs(measured.high)
    )


def _against(measured: Summary, printed: Interval, claim: Claim, direction: int) -> Verdict:
    wide = widened(measured, claim.tolerance)
    if claim.relation == "≥":
        holds = wide.high >= printed.low
    elif claim.relation == "≤":
        holds = wide.low <= printed.high
    else:
        holds = wide.meets(printed)
    if holds:
        return "reproduced"
    above = wide.low > printed.high
    if (above and direction > 0) or (not above and direction < 0):
        return "exceeded"
    return "not reproduced"


def _against_ceiling(
    measured: Summary, printed: Interval, tolerance: float, ratio: float | None
) -> tuple[Verdict, str | None]:
    """A stated peak is an upper limit: what stays below it agrees with it."""
    reached = None if ratio is None else f"reaches {ratio:.0%} of the stated limit"
    if measured.low > printed.high * (1 + tolerance):
        return "exceeded", reached
    return "reproduced", reached


def better(claim: Claim, claims: Mapping[str, Claim], above: frozenset[str] = frozenset()) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither can be said."""
    if claim.kind not in ("ratio", "share"):
        return _of_quantity(claim.quantity, claim.metric, unit(claim.unit).dimension)
    if claim.metric == "speedup":
        return 1
    above |= {claim.id}
    inner = {better(claims[name], claims, above) for name in claim.of if name not in above}
    direction = inner.pop() if len(inner) == 1 else 0
    if claim.metric in ("reduction", "reduction_factor"):
        return -direction if claim.of else 1
    if claim.metric in ("ratio", "increase", "difference", "sum"):
        return direction
    return 0


def _of_quantity(quantity: str, metric: str, dimension: Dimension) -> int:
    if quantity == "energy_per_token":
        return 1 if dimension.J < 0 else -1
    if (quantity, metric) == ("memory", "capacity"):
        return 1
    if quantity in HIGHER_IS_BETTER:
        return 1
    return -1 if quantity in LOWER_IS_BETTER else 0
