"""What a report states of hardware against what its vendor states."""

from __future__ import annotations

import re
from collections.abc import Iterator

from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View, quantity
from zenrepro.audit.intervals import exact
from zenrepro.audit.platforms import sheets
from zenrepro.audit.verdicts import Bound, Finding
from zenrepro.audit.weights import GIBI
from zenrepro.specs import Datasheet, Figure
from zenrepro.units import UNITS

# (quantity, metric) that datasheets may state of a platform.
FIGURES = (
    ("flop_rate", "dense"), ("flop_rate", "sparse"), ("bandwidth", "peak"), ("memory", "capacity"),
    ("power", "tdp"), ("count", "cores"),
)  # fmt: skip
_WORDS = {
    ("flop_rate", "dense"): "dense matrix rate",
    ("flop_rate", "sparse"): "sparse matrix rate",
    ("bandwidth", "peak"): "memory bandwidth",
    ("memory", "capacity"): "memory capacity",
    ("power", "tdp"): "design power",
    ("count", "cores"): "number of cores",
}
TEXTS = ("form_factor", "memory_type")


def datasheet(view: View) -> Iterator[Item]:
    """A stated figure of hardware is the vendor's, as far as it is printed.

    A FLOP rate may be the dense or the sparse one of its format; of a memory, GB may mean GiB. A
    platform that no vendor sells is an error of the claim that names it, and leaves its other
    figures unverifiable, as does a figure that the vendor does not state. The vendor's figure is
    the claim's bound. Silent about platforms without a datasheet and about numbers of a model's
    run.
    """
    for pair in FIGURES:
        for name in view.having(*pair):
            readings = view.readings[name]
            first = readings[0]
            sheet = view.datasheets.get(first.get("platform") or "")
            if sheet is None or first.get("model") or (first.quantity, first.metric) != pair:
                continue
            if not sheet.exists:
                yield _of_no_product(view, first, sheet)
                continue
            figures = _figures(sheet, first)
            if not figures:
                yield Finding(
                    rule="datasheet", severity="note", verdict="unverifiable", claims=[name],
                    arithmetic=f"{sheet.vendor} states no {_what(first)} of {sheet.name}; "
                    f"printed {first.printed}",
                    mend="name the source",
                )  # fmt: skip
                continue
            yield Check("datasheet", (name,), (), list(_outcomes(sheet, figures, readings)))
            most = figures[0].value * UNITS[figures[0].unit].factor
            yield Bound(
                claim=name, value=most / first.unit.factor, unit=first.unit.symbol, relation="≤",
                arithmetic=f"{sheet.vendor} states {quantity(most, first.unit.symbol)}",
                rule="datasheet",
            )  # fmt: skip
    for metric in TEXTS:
        for name in view.having("spec", metric):
            first = view.readings[name][0]
            sheet = view.datasheets.get(first.get("platform") or "")
            stated = getattr(sheet, metric, None) if sheet is not None and sheet.exists else None
            if stated is None or not isinstance(first.claim.value, str) or sheet is None:
                continue
            holds = _plain(first.claim.value) == _plain(stated)
            printed = first.claim.value
            arithmetic = f"{sheet.name}: {sheet.vendor} states {stated}, printed {printed}"
            yield Check(
                "datasheet",
                (name,),
                (),
                [Outcome(holds, arithmetic, f"{stated} in place of {printed}")],
            )
    for name in view.having("spec", "existence"):
        sheet = view.datasheets.get(view.readings[name][0].get("platform") or "")
        if sheet is not None:
            near = " or ".join(s.name for s in sheets(view, sheet.platform) if s.exists)
            arithmetic = f"{sheet.vendor} sells no {sheet.name}"
            mend = f"name a product that exists: {near} may be meant" if near else "name a product"
            yield Check("datasheet", (name,), (), [Outcome(sheet.exists, arithmetic, mend)])


def _figures(sheet: Datasheet, m: Meaning) -> list[Figure]:
    """Figures of the claim's quantity, those of its own metric first."""
    dtype = m.get("dtype") or m.get("format")
    same = [f for f in sheet.figures if f.quantity == m.quantity]
    if m.quantity == "flop_rate":
        same = [f for f in same if dtype is None or f.dtype == dtype]
        return sorted(same, key=lambda f: f.metric != m.metric)
    return [f for f in same if f.metric == m.metric]


def _outcomes(
    sheet: Datasheet, figures: list[Figure], readings: list[Meaning]
) -> Iterator[Outcome]:
    for figure in figures:
        value = figure.value * UNITS[figure.unit].factor
        first = readings[0]
        what = " ".join(x for x in (figure.dtype, figure.metric) if x)
        arithmetic = (
            f"{sheet.name}: {sheet.vendor} states {quantity(value, first.unit.symbol)} ({what}), "
            f"printed {first.printed}"
        )
        mend = f"{quantity(value, first.unit.symbol)} in place of {first.printed}"
        how = "" if figure.metric == first.metric else f"the {figure.metric} rate is meant"
        yield Outcome(first.interval.meets(exact(value)), arithmetic, mend, how)
        if figure.quantity == "memory":
            holds = first.interval.meets(exact(value * GIBI))
            holds = holds or first.interval.meets(exact(value / GIBI))
            yield Outcome(holds, arithmetic, mend, "GB and GiB are told apart")


def _of_no_product(view: View, m: Meaning, sheet: Datasheet) -> Finding:
    stated = [
        f"{other.name} {quantity(f.value * UNITS[f.unit].factor, m.unit.symbol)}"
        for other in sheets(view, sheet.platform)
        for f in _figures(other, m)[:1]
    ]
    near = f"; {', '.join(stated)}" if stated else ""
    return Finding(
        rule="datasheet", severity="note", verdict="unverifiable", claims=[m.claim.id],
        arithmetic=f"{sheet.vendor} sells no {sheet.name}, so nobody states its {_what(m)}{near}",
        mend="name the product that was used",
    )  # fmt: skip


def _what(m: Meaning) -> str:
    return _WORDS.get((m.quantity, m.metric), f"{m.metric} {m.quantity.replace('_', ' ')}")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
