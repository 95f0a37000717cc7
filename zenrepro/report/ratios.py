"""Published ratios against measured ones: a dot a machine, with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zenrepro import stats
from zenrepro.claims import Claim
from zenrepro.report.evidence import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zenrepro.audit.measurement import Measurement

CAPTION = (
    "Published ratios (bars, hatched) against measured ones (points with 95 % intervals, one "
    "marker a machine), their values at the right. The scale is logarithmic; the thin line marks "
    "no change."
)
_METRICS = frozenset(("ratio", "speedup", "reduction_factor"))
# What rows of one table may differ in and still be compared: how the work is done.
_OPTIMISATIONS = frozenset(
    ("dtype", "format", "policy", "optimisations", "overlap", "batching", "draft_model", "gamma")
)
Row = dict[str, Any]


def collect(evidence: Evidence) -> tuple[Any, str]:
    """(data, "") or (None, why there is nothing to draw)."""
    titles = {name: evidence.machine(name).title for name in evidence.body}
    found = {
        (m.claim, m.machine): m
        for m in evidence.measurements
        if m.machine in titles and m.value is not None and m.value > 0
    }
    rows = [*_stated(evidence, found, titles), *_formed(evidence, found, titles)]
    if not rows:
        return None, (
            "This comparison appears as soon as a machine has measured both sides of a published "
            "ratio."
        )
    return rows, ""


_Found = Mapping[tuple[str, str], "Measurement"]


def _stated(evidence: Evidence, found: _Found, titles: Mapping[str, str]) -> Iterator[Row]:
    """The ratios that the report states."""
    for claim in evidence.publication.claims:
        if claim.unit != "x" or claim.metric not in _METRICS:
            continue
        if not isinstance(claim.value, int | float):
            continue
        dots = [
            _dot(title, m.value, m.low, m.high)
            for name, title in titles.items()
            if (m := found.get((claim.id, name))) is not None and m.value is not None
        ]
        if dots:
            label = evidence.words.describe(claim)
            yield {"label": label, "published": float(claim.value), "dots": dots}


def _formed(evidence: Evidence, found: _Found, titles: Mapping[str, str]) -> Iterator[Row]:
    """Rates of a column against its first row, where nothing but the optimisation differs."""
    stated = {(c.of[0], c.baseline) for c in evidence.publication.claims if len(c.of) == 1}
    for rates in _columns(evidence):
        base = rates[0]
        for claim in rates[1:]:
            if not _comparable(base, claim) or (claim.id, base.id) in stated:
                continue
            dots = []
            for name, title in titles.items():
                a, b = found.get((claim.id, name)), found.get((base.id, name))
                if a is None or b is None or a.value is None or b.value is None:
                    continue
                shared = stats.ratio(_summary(a), _summary(b))
                if shared is not None:
                    dots.append(_dot(title, shared.value, shared.low, shared.high))
            if dots:
                published = float(claim.value) / float(base.value)  # type: ignore[arg-type]
                table = evidence.words.table(claim.where.table or "")
                label = f"{table}: {_row(evidence, claim)} over {_row(evidence, base)}"
                yield {"label": label, "published": published, "dots": dots}


def _columns(evidence: Evidence) -> Iterator[list[Claim]]:
    """The throughputs of each column of a table, in the order of its rows."""
    columns: dict[tuple[str, str, str], list[Claim]] = {}
    for claim in sorted(evidence.publication.claims, key=lambda c: c.where.line):
        where = claim.where
        if where.table is None or where.row is None or claim.quantity != "throughput":
            continue
        if claim.kind == "scalar" and isinstance(claim.value, int | float) and claim.value > 0:
            key = (where.table, where.column or claim.metric, claim.unit)
            columns.setdefault(key, []).append(claim)
    yield from columns.values()


def _comparable(base: Claim, claim: Claim) -> bool:
    """Whether two rows state the same work on the same hardware."""
    keys = (base.conditions.keys() | claim.conditions.keys()) - _OPTIMISATIONS
    return all(base.conditions.get(key) == claim.conditions.get(key) for key in keys)


def _row(evidence: Evidence, claim: Claim) -> str:
    return evidence.words.row(claim.where.table or "", claim.where.row or "")


def _summary(found: Measurement) -> stats.Summary:
    value = found.value or 0.0
    low, high = (value if end is None else end for end in (found.low, found.high))
    return stats.Summary(value, low, high, found.n or 1)


def _dot(machine: str, value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {
        "machine": machine,
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
    }


def plot(rows: list[dict[str, Any]]) -> Figure:
    """One row a claim, the first at the top."""
    import textwrap

    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from zenrepro.report import style

    machines = sorted({dot["machine"] for row in rows for dot in row["dots"]})
    figure, axis = plt.subplots(
        figsize=(style.TEXT_WIDTH_IN, 0.9 + 0.36 * len(rows)), layout="constrained"
    )
    for place, row in enumerate(reversed(rows)):
        published = row["published"]
        axis.barh(
            place, published - 1, left=1, height=0.62, color="0.93", edgecolor="0.45",
            hatch="////", linewidth=0.5, label="published" if place == 0 else None,
        )  # fmt: skip
        for index, machine in enumerate(machines):
            for dot in (d for d in row["dots"] if d["machine"] == machine):
                offset = (index - (len(machines) - 1) / 2) * 0.22
                axis.errorbar(
                    dot["value"], place + offset,
                    xerr=[[dot["value"] - dot["low"]], [dot["high"] - dot["value"]]],
                    fmt=style.MARKERS[index], color=style.GREYS[index], markersize=4,
                    capsize=2, elinewidth=0.8,
                )  # fmt: skip
        told = [f"{published:.3g}", *(f"{dot['value']:.3g}" for dot in row["dots"])]
        axis.annotate(
            ", ".join(told), (1, place), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axis.annotate(
        "published, measured", (1, 1), xycoords="axes fraction", ha="right", va="bottom",
        xytext=(30, 2), textcoords="offset points", fontsize=7,
    )  # fmt: skip
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.axvline(1, color="0", linewidth=0.5)
    axis.set_xscale("log")
    ends = [d[k] for row in rows for d in row["dots"] for k in ("low", "high") if d[k] > 0]
    ends += [row["published"] for row in rows]
    axis.set_xlim(min(0.7, min(ends) * 0.8), max(ends) * 1.25)
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(range(len(rows)))
    axis.set_yticklabels(
        [style.plain("\n".join(textwrap.wrap(row["label"], 46)[:2])) for row in reversed(rows)]
    )
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("ratio")
    handles = [
        Line2D([], [], linestyle="", marker=style.MARKERS[i], color=style.GREYS[i])
        for i in range(len(machines))
    ]
    bar = Rectangle((0, 0), 1, 1, facecolor="0.93", edgecolor="0.45", hatch="////")
    figure.legend(
        [bar, *handles], ["published", *map(style.plain, machines)],
        loc="outside lower center", ncols=4,
    )  # fmt: skip
    return figure
