"""Formulas against their dimensions, their sentences, their numbers and a numerical experiment."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator

from zenrepro.audit import expressions, trials
from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View, number
from zenrepro.audit.intervals import exact
from zenrepro.audit.verdicts import Finding
from zenrepro.claims import Formula
from zenrepro.errors import InputError
from zenrepro.units import UNITS

# Where the sign of a slope is looked at: positive values of every symbol, far apart.
_POINTS = (1.5, 3.0, 17.0, 130.0)


def formula(view: View) -> Iterator[Item]:
    """A formula's two sides share a dimension; its value is the printed one; its slope is what the
    sentence says; and it holds in the numerical experiment that the claim names.

    Silent for an order of growth about dimensions, for empty sides, and for symbols without
    values. A printed value with unknown symbols is unverifiable. A slope is compared only where
    it has one sign; a bound (<=, >=) may be loose, so that its slope alone is a note.
    """
    for name, readings in view.readings.items():
        claim = readings[0].claim
        if claim.kind not in ("formula", "trend") or claim.formula is None:
            continue
        place = f"claim {name!r}, formula"
        pairs = list(zip(readings, _formulas(readings[0]), strict=True))
        yield from _dimensions(name, pairs, place)
        yield from _number(name, pairs, place)
        yield from _slope(view, name, claim.formula, place)
        if claim.method is not None:
            yield from _trial(view, name, pairs, place)


def _formulas(first: Meaning) -> list[Formula]:
    claim = first.claim
    assert claim.formula is not None
    return [claim.formula, *(r.formula or claim.formula for r in claim.readings)]


def _sides(given: Formula, place: str) -> tuple[ast.expr, ast.expr] | None:
    if not given.left or not given.right:
        return None
    sides = expressions.parse(given.left, place), expressions.parse(given.right, place)
    for side in sides:
        unknown = expressions.symbols(side) - given.symbols.keys()
        if unknown:
            raise InputError(f"{place}: symbol {sorted(unknown)[0]!r} is not under `symbols`")
    return sides


def _dimensions(name: str, pairs: list[tuple[Meaning, Formula]], place: str) -> Iterator[Item]:
    outcomes = []
    for meaning, given in pairs:
        sides = _sides(given, place)
        if sides is None or given.relation == "order":
            outcomes.append(Outcome(None, reading=meaning.text))
            continue
        units = {symbol: UNITS[s.unit].dimension for symbol, s in given.symbols.items()}
        left, right = (expressions.dimension(side, units) for side in sides)
        holds = left is not None and left == right
        told = "terms of different dimensions are added" if None in (left, right) else "they differ"
        left_side, right_side = (expressions.shown(side) for side in (given.left, given.right))
        arithmetic = f"dimensions of {left_side} and {right_side}: {told}"
        outcomes.append(Outcome(holds, arithmetic, "sides of one dimension", meaning.text))
    yield Check("formula-dimension", (name,), (), outcomes)


def _number(name: str, pairs: list[tuple[Meaning, Formula]], place: str) -> Iterator[Item]:
    """The printed number against the right side, where all of its symbols have values."""
    meaning, given = pairs[0]
    if meaning.claim.printed is None or not given.right:
        return
    outcomes = []
    missing: set[str] = set()
    for m, f in pairs:
        tree = expressions.parse(f.right, place)
        values = {s: x.value for s, x in f.symbols.items() if x.value is not None}
        wanted = expressions.symbols(tree) - values.keys()
        if wanted:
            missing |= wanted
            outcomes.append(Outcome(None, reading=m.text))
            continue
        value = expressions.evaluate(tree, values) * m.unit.factor
        holds = math.isfinite(value) and m.interval.meets(exact(value))
        arithmetic = (
            f"{expressions.shown(f.right)} = {number(value / m.unit.factor)}, printed {m.printed}"
        )
        outcomes.append(Outcome(holds, arithmetic, number(value / m.unit.factor), m.text))
    if missing:
        rights = " or ".join(dict.fromkeys(expressions.shown(f.right) for _, f in pairs))
        yield Finding(
            rule="formula-value", severity="note", verdict="unverifiable", claims=[name],
            arithmetic=f"{meaning.printed} = {rights}: {', '.join(sorted(missing))} "
            f"{'is' if len(missing) == 1 else 'are'} not stated",
            mend="state the symbols' values" + (", and which of the readings is meant"
            if len({f.right for _, f in pairs}) > 1 else ""),
        )  # fmt: skip
        return
    yield Check("formula-value", (name,), (), outcomes)


def slope(given: Formula, symbol: str, place: str) -> int | None:
    """+1 or -1 where the right side moves one way with the symbol at all tried points."""
    sides = _sides(given, place)
    if sides is None or symbol not in expressions.symbols(sides[1]):
        return None
    signs = set()
    for base in _POINTS:
        values = {s: (x.value if x.value is not None else base) for s, x in given.symbols.items()}
        for at in _POINTS:
            low = expressions.evaluate(sides[1], {**values, symbol: at})
            high = expressions.evaluate(sides[1], {**values, symbol: at * 1.1})
            if not (math.isfinite(low) and math.isfinite(high)) or low == high:
                return None
            signs.add(1 if high > low else -1)
    return signs.pop() if len(signs) == 1 else None


def _slope(view: View, name: str, given: Formula, place: str) -> Iterator[Item]:
    said = {**dict.fromkeys(given.increases_with, 1), **dict.fromkeys(given.decreases_with, -1)}
    for symbol, sign in said.items():
        found = slope(given, symbol, place)
        if found is None:
            continue
        words = {1: "rises", -1: "falls"}
        arithmetic = (
            f"{expressions.shown(given.right)} {words[found]} with {symbol}; the sentence says "
            f"that {given.left} {words[sign]} with {symbol}"
        )
        demote = None
        if given.relation in ("<=", ">="):
            demote = "true if the bound is loose, so that it need not move as what it bounds"
        against = tuple(i for i in view.claims[name].of if i != name)
        mend = f"{symbol} on the other side of the fraction, or the opposite sentence"
        yield Check(
            "formula-slope", (name,), against, [Outcome(found == sign, arithmetic, mend)],
            demote=demote,
        )  # fmt: skip


def _trial(
    view: View, name: str, pairs: list[tuple[Meaning, Formula]], place: str
) -> Iterator[Item]:
    claim = view.claims[name]
    experiment = trials.find(claim.method or "", place)
    if claim.kind == "trend" and experiment is trials.group_quantisation:
        given = pairs[0][1]
        said = {**dict.fromkeys(given.increases_with, 1), **dict.fromkeys(given.decreases_with, -1)}
        measured = trials.group_trend(said)
        if measured is not None:
            yield Check("formula-trial", (name,), (), [measured])
        return
    outcomes: list[Outcome] = []
    tried: set[tuple[str, str, str]] = set()
    for meaning, given in pairs:
        key = (given.right, meaning.quantity, meaning.metric)
        if key in tried:
            continue  # a reading in words alone: the experiment tries them itself
        tried.add(key)
        for outcome in experiment(given, meaning.quantity, meaning.metric):
            reading = outcome.reading or meaning.text
            outcomes.append(outcome._replace(reading=reading))
    yield Check("formula-trial", (name,), (), outcomes)
