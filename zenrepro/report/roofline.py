"""Roofline: measured kernels under the ceilings of their machine, one panel a machine.

Across: FLOPs for each byte that must cross the memory bus (both counted from the shapes). Up:
FLOPs a second reached. Ceilings: measured (solid) and from the datasheet (dashed).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from zenrepro import stats
from zenrepro.records import Record, Status
from zenrepro.report.evidence import Evidence, Machine
from zenrepro.report.wording import FORMAT_NAMES
from zenrepro.units import unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# How far apart two labels of ceilings stand at least, as a share of the axis' height.
_LABEL_SHARE = 0.07

CAPTION = (
    "Roofline of each machine. Points are medians of measured kernels, hollow in decode; solid "
    "lines are ceilings measured by a copy and by matrix products, dashed ones the vendor's."
)


def collect(evidence: Evidence) -> tuple[Any, str]:
    """(data, "") or (None, why there is nothing to draw)."""
    panels = []
    for name in evidence.body:
        machine = evidence.machine(name)
        points = [p for r in machine.records if (p := _point(r)) is not None]
        if points:
            panels.append(
                {
                    "title": machine.title,
                    "points": points,
                    "bandwidth": _measured(machine, "bandwidth", ("copy", "read")),
                    "rates": _rates(machine, {p["dtype"] for p in points}),
                    "stated": _stated(evidence, machine, {p["dtype"] for p in points}),
                }
            )
    if not panels:
        return None, "A roofline appears here as soon as a machine has timed a kernel."
    return panels, ""


def _point(record: Record) -> dict[str, Any] | None:
    work = record.work
    if record.quantity != "time" or record.status is not Status.OK or work is None:
        return None
    if not work.flops or not work.bytes:
        return None
    return {
        "implementation": record.implementation,
        "phase": str(record.conditions.get("phase", "")),
        "dtype": str(record.conditions.get("dtype", "")),
        "intensity": work.flops / work.bytes,
        "rate": work.flops / (stats.summarise(record.samples).value * unit(record.unit).factor),
    }


def _measured(
    machine: Machine, quantity: str, ops: tuple[str, ...], dtype: str | None = None
) -> float | None:
    """The most that any measured ceiling of this kind reached, in base units."""
    found = [
        stats.summarise(r.samples).value * unit(r.unit).factor
        for r in machine.records
        if r.quantity == quantity
        and r.conditions.get("op") in ops
        and r.status is Status.OK
        and (dtype is None or r.conditions.get("dtype") == dtype)
    ]
    return max(found, default=None)


def _rates(machine: Machine, dtypes: set[str]) -> dict[str, float]:
    found = {d: _measured(machine, "flop_rate", ("matmul",), d) for d in sorted(dtypes)}
    return {dtype: rate for dtype, rate in found.items() if rate}


def _stated(evidence: Evidence, machine: Machine, dtypes: set[str]) -> dict[str, Any]:
    sheet = evidence.datasheets.get(machine.device_class.platform)
    if sheet is None:
        return {"bandwidth": None, "rates": {}}
    found = {d: sheet.figure("flop_rate", "dense", d) for d in sorted(dtypes)}
    return {
        "bandwidth": sheet.figure("bandwidth", "peak"),
        "rates": {dtype: rate for dtype, rate in found.items() if rate},
    }


def plot(panels: list[dict[str, Any]]) -> Figure:
    """Panels side by side, with one legend for all."""
    import matplotlib.pyplot as plt

    from zenrepro.report import style

    names = sorted({p["implementation"] for panel in panels for p in panel["points"]})
    height = 2.9 + 0.17 * math.ceil(len(names) / 4)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(style.TEXT_WIDTH_IN, height), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, panel, names)
    axes[0][0].set_ylabel("TFLOP/s")
    handles, labels = _legend(names)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _panel(axis: Axes, panel: dict[str, Any], names: list[str]) -> None:
    from zenrepro.report import style

    points = panel["points"]
    axis.set_xscale("log")
    axis.set_yscale("log")
    left = min(p["intensity"] for p in points) / 3
    right = max(p["intensity"] for p in points) * 4
    levels = [p["rate"] for p in points]
    for source, line in ((panel, "-"), (panel["stated"], "--")):
        bandwidth, rates = source["bandwidth"], source["rates"]
        if bandwidth:
            knee = max(rates.values(), default=right * bandwidth) / bandwidth
            end = min(knee, right)
            axis.plot(
                [left, end], [left * bandwidth / 1e12, end * bandwidth / 1e12], line, color="0.35"
            )
        for rate in rates.values():
            start = max(left, rate / bandwidth) if bandwidth else left
            axis.plot([min(start, right), right], [rate / 1e12] * 2, line, color="0.35")
            levels.append(rate)
    shown = {**panel["stated"]["rates"], **panel["rates"]}
    lowest, highest = min(levels) / 1e12 / 2.5, max(levels) / 1e12 * 2.5
    apart = (highest / lowest) ** _LABEL_SHARE
    below = math.inf
    for names_of, rate in reversed(_merged(shown)):
        below = min(rate / 1e12, below / apart)  # beside the axis, where no point lies
        axis.annotate(
            names_of, (1, below), xycoords=("axes fraction", "data"), fontsize=7, ha="left",
            va="center", xytext=(3, 0), textcoords="offset points",
        )  # fmt: skip
    for p in points:
        place = names.index(p["implementation"])
        colour = style.GREYS[place % len(style.GREYS)]
        axis.plot(
            p["intensity"], p["rate"] / 1e12, style.MARKERS[place % len(style.MARKERS)],
            color=colour, markersize=4.2, markeredgewidth=0.8, markeredgecolor=colour,
            markerfacecolor="white" if p["phase"] == "decode" else colour,
        )  # fmt: skip
    axis.set_xlim(left, right)
    axis.set_ylim(lowest, highest)
    axis.set_xlabel("FLOP/byte")
    axis.set_title(style.plain(panel["title"]))


def _merged(rates: dict[str, float]) -> list[tuple[str, float]]:
    """Formats whose ceilings lie within a fifth of each other share a label at the lowest."""
    out: list[tuple[list[str], float]] = []
    for dtype, rate in sorted(rates.items(), key=lambda item: item[1]):
        if out and rate < 1.2 * out[-1][1]:
            out[-1][0].append(FORMAT_NAMES.get(dtype, dtype))
        else:
            out.append(([FORMAT_NAMES.get(dtype, dtype)], rate))
    return [(", ".join(names), rate) for names, rate in out]


def _legend(names: list[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    from zenrepro.report import style

    handles = [
        Line2D([], [], linestyle="", marker=style.MARKERS[i % len(style.MARKERS)], markersize=4.2,
               color=style.GREYS[i % len(style.GREYS)])
        for i in range(len(names))
    ]  # fmt: skip
    return handles, [style.plain(name.replace("_", " ")) for name in names]
