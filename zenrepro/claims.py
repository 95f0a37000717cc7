"""Claims: every number, formula and trend that a report states, as data.

The schema of ``published/*.yaml``. Audit rules read the typed fields (quantity, metric, unit,
conditions, declared relations, readings) and never ids, labels or names.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from zenrepro import conditions as conditions_module
from zenrepro import printed as printed_module
from zenrepro.conditions import QUANTITIES
from zenrepro.documents import read_yaml
from zenrepro.errors import InputError
from zenrepro.printed import Interval
from zenrepro.units import unit

SCHEMA = 1

KindName = Literal["scalar", "interval", "ratio", "share", "formula", "trend", "categorical"]
Relation = Literal["=", "≈", "≤", "≥"]

# How a derived number (kind ratio or share) follows from `of` (a) and `baseline` (b).
DERIVATIONS: dict[str, str] = {
    "ratio": "a / b",
    "speedup": "a / b of rates, b / a of times",
    "increase": "a / b - 1",
    "reduction": "1 - a / b",
    "reduction_factor": "b / a",
    "difference": "a - b",
    "share": "sum of a / b",
    "time_share": "time of a / time of b (from rates: b / a)",
    "sum": "sum of a",
}


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The place in the report. ``line`` counts from 1 in the report's source.

    ``tokens`` are the number tokens of that line that the claim accounts for (``completeness``);
    left out, they are ``printed`` alone.
    """

    part: Literal["abstract", "text", "table", "formula", "listing", "conclusion", "title"]
    line: int
    section: str | None = None
    table: str | None = None
    row: str | None = None
    column: str | None = None
    tokens: list[str] | None = None


class Symbol(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A symbol of a formula: what it is, its unit, and its value where the report fixes it."""

    meaning: str
    unit: str = "1"
    value: float | None = None
    low: float | None = None
    high: float | None = None


class Formula(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``left relation right`` over ``symbols``, as arithmetic with + - * / **, log2, sqrt, min
    and max.

    ``increases_with`` and ``decreases_with`` hold what the sentence around the formula says of
    ``left``. Empty sides mean a formula that is only tried by the numerical experiment that the
    claim's ``method`` names.
    """

    left: str
    relation: Literal["=", "<=", ">=", "order"]
    right: str
    symbols: dict[str, Symbol]
    increases_with: list[str] = []
    decreases_with: list[str] = []


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One more thing that the words may mean, besides the claim as it is written: the fields that
    it sets replace the claim's own. ``conditions`` are merged over the claim's.

    A derived number that names its operands only in its readings means one of those. A reading
    that names none stands for numbers that the report does not print: it can't be checked, so it
    keeps the claim from being an error.
    """

    text: str
    quantity: str | None = None
    metric: str | None = None
    unit: str | None = None
    relation: Relation | None = None
    implementation: str | None = None
    of: list[str] | None = None
    baseline: str | None = None
    conditions: dict[str, Any] = {}
    formula: Formula | None = None


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One published cell, sentence or formula.

    ``printed`` is the number as the report prints it (without unit); ``value`` repeats it as a
    number, and must agree. ``unstated`` names conditions that the report leaves out: condition
    keys, or ``active_parameters``, ``baseline``, ``devices``.
    """

    id: str
    where: Where
    kind: KindName
    quantity: str
    metric: str
    printed: str | None = None
    value: float | list[float] | str | bool | None = None
    unit: str = "1"
    relation: Relation = "="
    implementation: str | None = None
    conditions: dict[str, Any] = {}
    of: list[str] = []
    baseline: str | None = None
    readings: list[Reading] = []
    unstated: list[str] = []
    match: list[str] = []
    relax: list[str] = []
    tolerance: float = 0.1
    method: str | None = None
    formula: Formula | None = None
    note: str | None = None

    def interval(self) -> Interval:
        """All values, in ``unit``, that the printed number may stand for.

        Raises InputError for a claim that prints no number.
        """
        if self.kind == "interval" and isinstance(self.value, list):
            return Interval(float(self.value[0]), float(self.value[1]))
        if self.printed is None:
            raise InputError(f"claim {self.id}: prints no number")
        return printed_module.interval(self.printed)


class NotAClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A number of the report's source that states nothing by itself.

    ``condition``: what it says is in the typed conditions of the claims around it. ``wording``: it
    counts nothing that was measured or chosen ("three limits", "all operations").
    """

    line: int
    token: str
    reason: Literal[
        "layout", "citation", "identifier", "date", "code", "math", "condition", "wording"
    ]
    count: int = 1


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which report the claims are pinned to."""

    title: str
    version: str
    sha256: str | None = None
    url: str | None = None
    authors: str | None = None


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One part of a model's weights, as the report divides them. The parts are disjoint and make up
    the whole model.

    ``read``: what of it one step must read. ``always``: all of it, whatever the tokens.
    ``sparse``: what the tokens are routed to, so any share above zero. ``gather``: rows that are
    looked up, one a token. ``model``: the one model that has it, None for all.
    """

    name: str
    read: Literal["always", "sparse", "gather"]
    model: str | None = None
    note: str | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which format stores which part. Claims name it in the condition ``policy``.

    ``parts`` maps part names to formats (``conditions.FORMATS``); ``group_size`` is the number of
    weights that share a scale in the formats that have scales (None: unstated).
    """

    name: str
    parts: dict[str, str]
    group_size: int | None = None
    note: str | None = None


class Publication(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The content of one file of claims.

    ``implementations`` maps what the report calls an implementation to the names under which
    records have it, ``<backend>.<algorithm>``; one that is not listed stands for the algorithm of
    that name on any backend.
    """

    schema: int
    report: Report
    claims: list[Claim]
    not_claims: list[NotAClaim] = []
    parts: list[Part] = []
    policies: list[Policy] = []
    implementations: dict[str, list[str]] = {}

    def by_id(self) -> dict[str, Claim]:
        """Claims by their id."""
        return {claim.id: claim for claim in self.claims}


def load(path: Path) -> Publication:
    """Load and validate one file of claims. Raises InputError naming the file, claim and field."""
    return parse(read_yaml(path), str(path))


def parse(raw: Any, place: str) -> Publication:
    """Validate the decoded content of a file of claims. Raises InputError naming ``place``."""
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else None
        raise InputError(f"{place}: schema version is {found!r}, this zenrepro reads {SCHEMA}")
    try:
        publication = msgspec.convert(raw, Publication)
    except msgspec.ValidationError as error:
        raise InputError(f"{place}: {error}{_named(raw, str(error))}") from None
    _check_policies(publication, place)
    seen: set[str] = set()
    for claim in publication.claims:
        if claim.id in seen:
            raise InputError(f"{place}: claim id {claim.id!r} is used twice; ids are unique")
        seen.add(claim.id)
    publication.claims = [_checked(claim, seen, place) for claim in publication.claims]
    return publication


def _check_policies(publication: Publication, place: str) -> None:
    parts = [part.name for part in publication.parts]
    names = [policy.name for policy in publication.policies]
    for kind, given in (("part", parts), ("policy", names)):
        for name in given:
            if given.count(name) > 1:
                raise InputError(f"{place}: {kind} {name!r} is described twice")
    for policy in publication.policies:
        for part, stored in policy.parts.items():
            if part not in parts:
                raise InputError(
                    f"{place}: policy {policy.name!r} stores part {part!r}, which `parts` lacks"
                )
            if stored not in conditions_module.FORMATS:
                raise InputError(
                    f"{place}: policy {policy.name!r} stores {part!r} in unknown format "
                    f"{stored!r}; known: {', '.join(conditions_module.FORMATS)}"
                )
    for claim in publication.claims if names else ():
        for stated in (claim.conditions, *(reading.conditions for reading in claim.readings)):
            if "policy" in stated and stated["policy"] not in names:
                raise InputError(
                    f"{place}: claim {claim.id!r} names policy {stated['policy']!r}, which "
                    f"`policies` lacks; described: {', '.join(names)}"
                )


def _named(raw: dict[str, Any], message: str) -> str:
    """The id of the claim that a validation message points at by its index, where it has one."""
    if "$.claims[" not in message:
        return ""
    index = message.split("$.claims[")[1].split("]")[0]
    if not index.isdigit():
        return ""
    entry = raw["claims"][int(index)]
    return f" (claim {entry['id']!r})" if isinstance(entry, dict) and "id" in entry else ""


def _checked(claim: Claim, ids: set[str], place: str) -> Claim:
    where = f"{place}: claim {claim.id!r}"
    for quantity in (claim.quantity, *(r.quantity for r in claim.readings if r.quantity)):
        if quantity not in QUANTITIES:
            raise InputError(
                f"{where}: unknown quantity {quantity!r}; known: {', '.join(QUANTITIES)}"
            )
    _check_numbers(claim, where)
    if claim.kind == "formula" and claim.formula is None:
        raise InputError(f"{where}: kind formula needs `formula`")
    if claim.kind in ("ratio", "share"):
        for metric in (claim.metric, *(r.metric for r in claim.readings if r.metric)):
            if metric not in DERIVATIONS:
                raise InputError(
                    f"{where}: metric of a {claim.kind} is one of "
                    f"{', '.join(DERIVATIONS)}, got {metric!r}"
                )
    links = [*claim.of, claim.baseline]
    for reading in claim.readings:
        links += [*(reading.of or ()), reading.baseline]
    for link in links:
        if link is not None and link not in ids:
            raise InputError(f"{where}: refers to claim {link!r}, which does not exist")
    canonical = conditions_module.canonical(claim.conditions, f"{where}, conditions")
    for index, reading in enumerate(claim.readings):
        merged = {**canonical, **reading.conditions}
        conditions_module.canonical(merged, f"{where}, readings[{index}]")
    return msgspec.structs.replace(claim, conditions=canonical)


def _check_numbers(claim: Claim, where: str) -> None:
    try:
        unit(claim.unit)
        for reading in claim.readings:
            unit(reading.unit or claim.unit)
        for formula in (claim.formula, *(reading.formula for reading in claim.readings)):
            for symbol in formula.symbols.values() if formula else ():
                unit(symbol.unit)
        value = printed_module.parse(claim.printed)[0] if claim.printed is not None else None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if claim.where.line < 1:
        raise InputError(f"{where}: where.line counts from 1, got {claim.where.line}")
    if not 0 <= claim.tolerance < math.inf:
        raise InputError(f"{where}: tolerance is a share like 0.1, got {claim.tolerance}")
    if claim.kind == "interval":
        ends = claim.value
        if not isinstance(ends, list) or len(ends) != 2 or not -math.inf < ends[0] <= ends[1]:
            raise InputError(f"{where}: kind interval needs `value: [low, high]`, got {ends!r}")
    elif value is not None and (isinstance(claim.value, bool) or claim.value != value):
        raise InputError(f"{where}: value is {claim.value!r}, but {claim.printed!r} is printed")
    if claim.kind in ("scalar", "ratio", "share") and claim.printed is None:
        raise InputError(f"{where}: kind {claim.kind} needs `printed`")
