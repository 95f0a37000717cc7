"""Published ratios against measured ones: a dot a machine, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zenrepro.report.evidence import Evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Published ratios (bars, hatched) against measured ones (points with 95 % intervals, one "
    "marker a machine). The scale is logarithmic; the thin line marks no change."
)
_METRICS = frozenset(("ratio", "speedup", "reduction_factor"))


def collect(evidence: Evidence) -> tuple[Any, str]:
    """(data, "") or (None, why there is nothing to draw)."""
    rows: dict[str, dict[str, Any]] = {}
    claims = evidence.claims
    titles = {name: evidence.machine(name).title for name in evidence.body}
    for found in evidence.measurements:
        claim = claims[found.claim]
        if claim.unit != "x" or claim.metric not in _METRICS or found.machine not in titles:
            continue
        if found.value is None or found.value <= 0 or not isinstance(claim.value, int | float):
            continue
        row = rows.setdefault(
            claim.id,
            {"label": evidence.words.describe(claim), "published": float(claim.value), "dots": []},
        )
        row["dots"].append(
            {
                "machine": titles[found.machine],
                "value": found.value,
                "low": found.value if found.low is None else found.low,
                "high": found.value if found.high is None else found.high,
            }
        )
    if not rows:
        return None, (
            "This comparison appears as soon as a machine has measured both sides of a published "
            "ratio."
        )
    return list(rows.values()), ""


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
        [style.plain(textwrap.shorten(row["label"], 62)) for row in reversed(rows)]
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
