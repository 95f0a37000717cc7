"""Claims under their readings, and how tests over all readings become findings.

A rule looks at claims through a ``View`` and yields ``Check``s. A test lists one ``Outcome`` for
every combination of readings and every completion of what the report leaves unstated. Only when
all of them fail is it an error; when some hold, it is a note that says which.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from zenrepro import claims as claims_module
from zenrepro import specs
from zenrepro.audit.intervals import EVERYTHING
from zenrepro.audit.verdicts import Bound, Finding
from zenrepro.conditions import canonical
from zenrepro.errors import InputError
from zenrepro.printed import Interval
from zenrepro.units import UNITS, Unit

if TYPE_CHECKING:
    from zenrepro.audit.weights import Weights

# "≈" is read as within this share of the printed number.
APPROXIMATE = 0.1


class Meaning(NamedTuple):
    """A claim as one of its readings has it. ``interval`` is in coherent base units."""

    claim: claims_module.Claim
    text: str
    quantity: str
    metric: str
    unit: Unit
    relation: str
    of: tuple[str, ...]
    baseline: str | None
    conditions: dict[str, Any]
    implementation: str | None
    interval: Interval

    def get(self, key: str) -> Any:
        """The condition with this name, or None where it is not stated."""
        return self.conditions.get(key)

    @property
    def printed(self) -> str:
        """The number as the report prints it, with its unit."""
        sign = "" if self.relation == "=" else self.relation
        if self.claim.printed is None:
            return self.shown()
        return f"{sign}{self.claim.printed}{_spaced(self.unit.symbol)}"

    @property
    def has_number(self) -> bool:
        """Whether the report prints a number for it."""
        return self.interval != EVERYTHING

    def shown(self, interval: Interval | None = None) -> str:
        """An interval (its own when none is given) in its unit."""
        return show(interval or self.interval, self.unit)


class Outcome(NamedTuple):
    """What one combination of readings gives: True holds, False fails, None does not apply."""

    holds: bool | None
    arithmetic: str = ""
    mend: str = ""
    reading: str = ""


class Check(NamedTuple):
    """One relation between claims, tried under every combination; the first is as written."""

    rule: str
    subjects: tuple[str, ...]
    against: tuple[str, ...]
    outcomes: Sequence[Outcome]
    error: str = "inconsistent"
    demote: str | None = None  # a reason why failing everywhere is still no error


Item = Check | Finding | Bound
Rule = Callable[["View"], Iterator[Item]]


class View:
    """Everything that rules may look at."""

    def __init__(
        self, publication: claims_module.Publication, datasheets: dict[str, specs.Datasheet]
    ) -> None:
        self.publication = publication
        self.datasheets = datasheets
        self.claims = publication.by_id()
        self.readings = {c.id: meanings(c) for c in publication.claims}
        self.policies = {p.name: p for p in publication.policies}

    @cached_property
    def _index(self) -> dict[tuple[str, str], list[str]]:
        index: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, items in self.readings.items():
            for key in dict.fromkeys((m.quantity, m.metric) for m in items):
                index[key].append(name)
        return index

    @cached_property
    def weights(self) -> dict[str, Weights]:
        """What the published sizes say of each model's parts, by model."""
        from zenrepro.audit.weights import of_models

        return of_models(self)

    @cached_property
    def output_tables(self) -> set[str]:
        """Tables whose throughputs count output tokens alone, as their latencies tell."""
        from zenrepro.audit.latency import output_tables

        return output_tables(self)

    def having(self, quantity: str, metric: str) -> list[str]:
        """Ids of the claims that state this under at least one reading."""
        return self._index.get((quantity, metric), [])

    def chips(self, m: Meaning) -> int:
        """Devices that the meaning's run uses; where it does not say, the most that another claim
        about the model on the platform does."""
        stated = m.get("chips")
        if stated is None:
            stated = self._most_chips.get((m.get("model"), m.get("platform")), 1)
        return int(stated)

    @cached_property
    def _most_chips(self) -> dict[tuple[Any, Any], int]:
        most: dict[tuple[Any, Any], int] = {}
        for items in self.readings.values():
            for m in items:
                key = (m.get("model"), m.get("platform"))
                most[key] = max(most.get(key, 1), m.get("chips") or 1)
        return most

    def stated(self, quantity: str, metric: str, **wanted: Any) -> list[Meaning]:
        """Meanings of this quantity whose conditions include ``wanted`` exactly."""
        return [
            m
            for name in self.having(quantity, metric)
            for m in self.readings[name]
            if (m.quantity, m.metric) == (quantity, metric)
            and all(m.get(key) == value for key, value in wanted.items())
        ]

    def partners(
        self, subject: str, quantity: str, metric: str, ignore: frozenset[str] = frozenset()
    ) -> tuple[list[str], list[str]]:
        """Claims of that quantity under the subject's conditions: (equal ones, compatible ones).

        Compatible: conditions that only one side states, no contradiction, under some reading.
        """
        equal, loose = [], []
        for name in self.having(quantity, metric):
            if name == subject:
                continue
            best = max(
                (
                    agreement(a, b, ignore, DEFINING - ignore)
                    for a in self.readings[subject]
                    for b in self.readings[name]
                    if (b.quantity, b.metric) == (quantity, metric)
                ),
                default=0,
            )
            if best == 2:
                equal.append(name)
            elif best == 1:
                loose.append(name)
        return equal, loose

    def combinations(self, *names: str) -> Iterator[tuple[Meaning, ...]]:
        """Every combination of the readings of these claims; the first is as written."""
        return itertools.product(*(self.readings[name] for name in names))


def meanings(claim: claims_module.Claim) -> list[Meaning]:
    """The claim as written, then as each of its readings has it."""
    result = [
        _meaning(
            claim, "as written", claim.quantity, claim.metric, claim.unit, claim.relation,
            claim.of, claim.baseline, claim.conditions, claim.implementation,
        )
    ]  # fmt: skip
    for reading in claim.readings:
        merged = canonical({**claim.conditions, **reading.conditions}, f"claim {claim.id}")
        result.append(
            _meaning(
                claim,
                reading.text,
                reading.quantity or claim.quantity,
                reading.metric or claim.metric,
                reading.unit or claim.unit,
                reading.relation or claim.relation,
                claim.of if reading.of is None else reading.of,
                reading.baseline or claim.baseline,
                merged,
                reading.implementation or claim.implementation,
            )
        )
    return result


def _meaning(
    claim: claims_module.Claim, text: str, quantity: str, metric: str, unit: str, relation: str,
    of: Sequence[str], baseline: str | None, conditions: dict[str, Any],
    implementation: str | None,
) -> Meaning:  # fmt: skip
    symbol = UNITS[unit]
    try:
        interval = claim.interval().scaled(symbol.factor)
    except InputError:  # a formula, a trend or a category: no number
        interval = EVERYTHING
    if relation == "≈":
        slack = APPROXIMATE * max(abs(interval.low), abs(interval.high))
        interval = Interval(interval.low - slack, interval.high + slack)
    elif relation == "≤":
        interval = Interval(EVERYTHING.low, interval.high)
    elif relation == "≥":
        interval = Interval(interval.low, EVERYTHING.high)
    return Meaning(
        claim, text, quantity, metric, symbol, relation, tuple(of), baseline, conditions,
        implementation, interval,
    )  # fmt: skip


# Conditions that say what the thing is: where only one side states one, the two are different
# things, not one thing described in more and in fewer words.
DEFINING = frozenset({"op", "draft_model", "optimisations", "overlap", "task", "weights"})


def agreement(
    a: Meaning,
    b: Meaning,
    ignore: frozenset[str] = frozenset(),
    defining: frozenset[str] = frozenset(),
) -> int:
    """2: same conditions and implementation; 1: only one side states some; 0: they contradict.

    A condition in ``defining`` that only one side states is a contradiction too.
    """
    result = 2
    for key in a.conditions.keys() | b.conditions.keys():
        if key in ignore:
            continue
        x, y = a.conditions.get(key), b.conditions.get(key)
        if x is None or y is None:
            if key in defining:
                return 0
            result = 1
        elif x != y:
            return 0
    if "implementation" not in ignore and a.implementation != b.implementation:
        if a.implementation is not None and b.implementation is not None:
            return 0
        result = 1
    return result


def leaves_open(claims: Iterable[claims_module.Claim], *keys: str) -> str | None:
    """The first of ``keys`` that one of the claims says the report leaves unstated."""
    for claim in claims:
        for key in keys:
            if key in claim.unstated:
                return key
    return None


def decide(test: Check) -> Finding | None:
    """The finding that a test gives; None when the claim holds as written or nothing applies."""
    outcomes = test.outcomes
    if not outcomes or outcomes[0].holds or all(o.holds is None for o in outcomes):
        return None
    failed = [o for o in outcomes if o.holds is False]
    if not failed:
        return None
    if len(failed) == len(outcomes):
        first = failed[0]
        arithmetic = first.arithmetic
        others = [o for o in failed[1:] if o.arithmetic != arithmetic]
        distinct = list(dict.fromkeys(o.arithmetic for o in others))
        if distinct:
            arithmetic += "; read otherwise: " + "; ".join(distinct[:3])
        if test.demote:
            return _finding(test, "note", "note", arithmetic, test.demote)
        return _finding(test, "error", test.error, arithmetic, first.mend)
    if outcomes[0].holds is None and not any(o.holds for o in outcomes):
        return None
    saving = next((o for o in outcomes if o.holds), None) or next(
        o for o in outcomes if o.holds is None
    )
    mend = f"true in this reading: {saving.reading}" if saving.reading else failed[0].mend
    if saving.holds and saving.arithmetic and saving.reading:
        mend += f" ({saving.arithmetic})"
    arithmetic = "; ".join(list(dict.fromkeys(o.arithmetic for o in failed))[:3])
    return _finding(test, "note", "note", arithmetic, mend)


def held(test: Check) -> bool:
    """Whether the test found its relation to hold under some reading."""
    return any(outcome.holds for outcome in test.outcomes)


def _finding(test: Check, severity: str, verdict: str, arithmetic: str, mend: str) -> Finding:
    return Finding(
        rule=test.rule, severity=severity, verdict=verdict, claims=list(test.subjects),  # type: ignore[arg-type]
        against=[name for name in test.against if name not in test.subjects],
        arithmetic=arithmetic, mend=mend,
    )  # fmt: skip


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float) -> str:
    """A number with four significant digits, thousands separated, as plain text.

    The very small and the very large are a mantissa and a power of ten.
    """
    if value != value or value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if abs(value) >= 1e15 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa}×10{str(int(exponent)).translate(_RAISED)}"
    if abs(value) >= 1000:
        return f"{float(f'{value:.4g}'):,.0f}"
    return f"{value:.4g}"


def show(interval: Interval, unit: Unit) -> str:
    """An interval of base units, in ``unit``."""
    low, high = (number(end / unit.factor) for end in interval)
    places = max(len(text.partition(".")[2]) for text in (low, high))
    low, high = (_padded(text, places) for text in (low, high))
    span = low if low == high else f"{low} to {high}"
    return span + _spaced(unit.symbol)


def _padded(text: str, places: int) -> str:
    """A number with at least this many decimal places, so that both ends of a span look alike."""
    whole, _, fraction = text.partition(".")
    if not text.replace(".", "").lstrip("-").isdigit():  # a power of ten, thousands, infinity
        return text
    return f"{whole}.{fraction.ljust(places, '0')}"


def quantity(value: float, symbol: str) -> str:
    """A value of base units, in the unit with this symbol."""
    return number(value / UNITS[symbol].factor) + _spaced(symbol)


def _spaced(symbol: str) -> str:
    if symbol in ("1", "count"):
        return ""
    named = {"x": "×", "%": " %", "Gparameter": " billion parameters"}
    return named.get(symbol, f" {symbol}")
