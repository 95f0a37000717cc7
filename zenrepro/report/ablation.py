"""Latent attention in three forms by the number of queries: counted beside measured.

*decompressed* expands every latent row once and stores it, *absorbed* never expands one, *fused*
expands the rows of each tile inside the attention kernel. Of several implementations of a form the
fastest stands for it: a form is not held against another's kernel. A table and a figure.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from zenrepro import stats
from zenrepro.records import Record, Status
from zenrepro.report import grids
from zenrepro.report.evidence import Evidence, Machine, identity_key
from zenrepro.report.exploring import Ceilings
from zenrepro.report.grids import Cell, Grid, Line
from zenrepro.report.numbers import Missing, Number
from zenrepro.units import unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = ("decompressed", "absorbed", "fused")
CAPTION = (
    "Latent attention over one prefix in three forms, by the number of query tokens: points are "
    "medians with 95 % intervals, lines the least time that counted FLOPs and bytes take at the "
    "machine's measured ceilings."
)
_SHOWN = (Status.OK, Status.DISTURBED)
_COUNTS = {("count", "flops"): "flops", ("traffic", "counted"): "bytes", ("time", "call"): "time"}
_FASTEST = "•"


class Prefix(NamedTuple):
    """Records of one prefix: by query tokens, form and what they say."""

    backend: str
    batch: int
    cache_len: int
    heads: int
    dtype: str
    found: dict[int, dict[tuple[str, str], Record]]


def prefix(machine: Machine) -> Prefix | None:
    """The prefix that was measured or counted with the most numbers of queries; None without."""
    by: dict[tuple[Any, ...], dict[int, dict[tuple[str, str], Record]]] = {}
    timed: Counter[tuple[Any, ...]] = Counter()
    for record in machine.records:
        given = record.conditions
        kind = _COUNTS.get((record.quantity, record.metric))
        backend, _, name = record.implementation.partition(".")
        form = name.removeprefix("count_").partition("_")[0]
        if given.get("op") != "mla_prefill" or kind is None or form not in FORMS:
            continue
        if not given.get("causal"):
            continue
        length = int(given.get("cache_len", given.get("seq_len", 0)))
        queries = int(given.get("query_len", given.get("seq_len", 0)))
        key = (backend, given["batch"], length, given["heads"], given["dtype"])
        found = by.setdefault(key, {}).setdefault(queries, {})
        if kind != "time" or _sooner(record, found.get((form, kind))):
            found[form, kind] = record
        timed[key] += kind == "time" and record.status in _SHOWN
    lines = {key: found for key, found in by.items() if len(found) > 1 and timed[key]}
    if not lines:
        return None
    best = max(lines, key=lambda key: (len(lines[key]), timed[key]))
    backend, batch, cache_len, heads, dtype = best
    return Prefix(backend, batch, cache_len, heads, dtype, lines[best])


def _sooner(record: Record, other: Record | None) -> bool:
    """Whether a time is better than another, or says more than one that is missing."""
    if other is None or not other.samples:
        return True
    if not record.samples:
        return False
    return stats.summarise(record.samples).value < stats.summarise(other.samples).value


def grid(machine: Machine | None) -> Grid:
    """The table: a number of queries a line; FLOPs, bytes and time of each form."""
    title = "Latent attention in three forms"
    seen = prefix(machine) if machine else None
    if seen is None or machine is None:
        return Grid(
            "ablation", title, [], [], empty="No machine has timed the forms of latent attention."
        )
    head = ["Queries", *(["GFLOP", "MB", "ms"] * len(FORMS))]
    spans = [(form, 3) for form in FORMS]
    lines = []
    for queries, found in sorted(seen.found.items()):
        times = {form: value for form in FORMS if (value := _of(found, form, "time")) is not None}
        fastest = min(times, key=lambda form: times[form].value, default=None)
        cells: list[Cell] = []
        for form in FORMS:
            cells += [_count(found, form, "flops", 1e9), _count(found, form, "bytes", 1e6)]
            cells.append(_time(found, form, form == fastest and len(times) > 1))
        lines.append(Line(f"{queries:,}", cells))
    note = (
        f"{machine.title} ({seen.backend}, {seen.dtype}): the last query tokens of "
        f"{seen.cache_len:,}, batch {seen.batch}, {seen.heads} heads. GFLOP and MB "
        "are counted, the projection included; times are medians of each form's fastest "
        f"implementation there ({', '.join(_timed(seen))})."
    )
    marks = {_FASTEST: "fastest of the line"}
    title += f" on {machine.title}"
    return Grid("ablation", title, head, lines, note, marks=marks, spans=spans)


def _timed(seen: Prefix) -> list[str]:
    """The implementations whose times the table shows."""
    shown = [
        found[form, "time"].implementation.replace("_", " ")
        for form in FORMS
        for _, found in sorted(seen.found.items())
        if (form, "time") in found and found[form, "time"].samples
    ]
    return list(dict.fromkeys(shown))


def _of(found: dict[tuple[str, str], Record], form: str, kind: str) -> stats.Summary | None:
    record = found.get((form, kind))
    if record is None or record.status not in _SHOWN:
        return None
    value, low, high, n = stats.summarise(record.samples)
    factor = unit(record.unit).factor
    return stats.Summary(value * factor, low * factor, high * factor, n)


def _count(found: dict[tuple[str, str], Record], form: str, kind: str, scale: float) -> Cell:
    value = _of(found, form, kind)
    return grids.NONE if value is None else Cell(Number(float(f"{value.value / scale:.4g}"), "1"))


def _time(found: dict[tuple[str, str], Record], form: str, fastest: bool) -> Cell:
    record = found.get((form, "time"))
    if record is None:
        return Cell(Missing("n"))
    value = _of(found, form, "time")
    if value is None:
        return grids.missing(record)
    number = Number(float(f"{value.value * 1e3:.3g}"), "ms")
    return Cell(number, identity_key(record), _FASTEST if fastest else "")


# -- the figure --------------------------------------------------------------------------------


def collect(evidence: Evidence) -> tuple[Any, str]:
    """(data, "") or (None, why there is nothing to draw)."""
    panels = []
    for name in evidence.body:
        machine = evidence.machine(name)
        seen = prefix(machine)
        if seen is not None:
            panels.append(_panel(machine, seen))
    if not panels:
        return None, (
            "The three forms of latent attention are drawn here as soon as a machine has timed two."
        )
    return panels[:2], ""


def _panel(machine: Machine, seen: Prefix) -> dict[str, Any]:
    most = Ceilings(machine.records)
    rate, bandwidth = most.flop_rate.get(seen.dtype), most.bandwidth
    measured: dict[str, list[list[float]]] = {form: [] for form in FORMS}
    least: dict[str, list[list[float]]] = {form: [] for form in FORMS}
    for queries, found in sorted(seen.found.items()):
        for form in FORMS:
            time = _of(found, form, "time")
            if time is not None:
                measured[form].append([queries, time.value, time.low, time.high])
            flops, moved = _of(found, form, "flops"), _of(found, form, "bytes")
            if rate and bandwidth and flops is not None and moved is not None:
                seconds = max(flops.value / rate, moved.value / bandwidth)
                least[form].append([queries, seconds])
    shape = f"{seen.batch} × {seen.cache_len:,} tokens, {seen.heads} heads, {seen.dtype}"
    title = f"{machine.title}, {seen.backend}\n{shape}"
    return {"title": title, "measured": measured, "least": least}


def plot(panels: list[dict[str, Any]]) -> Figure:
    """Panels side by side, with one legend for all."""
    import matplotlib.pyplot as plt

    from zenrepro.report import style

    figure, axes = plt.subplots(
        1, len(panels), figsize=(style.TEXT_WIDTH_IN, 2.9), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        for place, form in enumerate(FORMS):
            look = {"color": style.GREYS[place], "linestyle": ("-", "--", ":")[place]}
            counted, points = panel["least"][form], panel["measured"][form]
            if counted:
                axis.plot(*zip(*((x, y * 1e3) for x, y in counted), strict=True), **look)
            else:  # the legend shows every form
                axis.plot([], [], **look)
            if points:
                axis.errorbar(
                    [p[0] for p in points], [p[1] * 1e3 for p in points],
                    yerr=[[(p[1] - p[2]) * 1e3 for p in points],
                          [(p[3] - p[1]) * 1e3 for p in points]],
                    marker=style.MARKERS[place], markersize=4.2, linestyle="",
                    color=style.GREYS[place],
                )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = sorted({p[0] for form in FORMS for p in panel["measured"][form]})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("query tokens")
        axis.set_title(style.plain(panel["title"]))
    axes[0][0].set_ylabel("ms")
    figure.legend(*_legend(), loc="outside lower center", ncols=3)
    return figure


def _legend() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    from zenrepro.report import style

    handles = [
        Line2D([], [], color=style.GREYS[i], linestyle=("-", "--", ":")[i],
               marker=style.MARKERS[i], markersize=4.2)
        for i in range(len(FORMS))
    ]  # fmt: skip
    return handles, list(FORMS)
