"""What attention moves against the sequence length: counted as lines, read from counters as points.

Lines: what must move, and what an algorithm moves when no cache helps it. Points: device memory,
and what arrives at the multiprocessors. Both axes are logarithmic, so a slope is an exponent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zenrepro import stats
from zenrepro.records import Kind, Record, Status
from zenrepro.report.evidence import Evidence
from zenrepro.units import unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Bytes that one call of attention moves, by sequence length. Lines are counted: what must move "
    "(solid), and what the algorithm moves if no cache helps (dashed: scores stored; dotted: every "
    "tile of queries reads all keys; dash-dotted: what a model of the card's L2 leaves of that). "
    "Points are read from hardware counters, where a machine has them: filled for device memory, "
    "hollow for what arrives at the multiprocessors."
)
# Metrics of traffic, in words.
WORDS = {
    "least": "must move", "counted": "the algorithm, no cache", "expected": "model of the L2",
    "device": "device memory", "l2": "L2", "multiprocessors": "at the multiprocessors",
}  # fmt: skip
_SHOWN = (Status.OK, Status.DISTURBED)
# An exponent is of the longest lengths: lower orders still count at the shortest.
LONGEST = 4


class Series(NamedTuple):
    """One metric of one implementation by length, ascending; medians in bytes."""

    implementation: str
    metric: str
    lengths: list[int]
    values: list[float]


class Growth(NamedTuple):
    """How a series grows over its longest lengths."""

    series: Series
    exponent: stats.Summary
    lengths: list[int]


def series(records: Iterable[Record], quantity: str = "traffic") -> list[Series]:
    """Everything that was counted or measured against the length, other conditions being equal.

    A model's own shape is no step of a series. Of several sets of conditions the longest counts.
    """
    found: dict[tuple[str, str, Any], dict[int, float]] = {}
    for record in records:
        length = record.conditions.get("seq_len")
        fits = record.quantity == quantity and record.status in _SHOWN
        if not fits or not isinstance(length, int) or "model" in record.conditions:
            continue
        rest = {k: v for k, v in record.conditions.items() if k not in ("seq_len", "tokens")}
        key = (record.implementation, record.metric, tuple(sorted(rest.items())))
        value = stats.summarise(record.samples).value * unit(record.unit).factor
        found.setdefault(key, {})[length] = value
    longest: dict[tuple[str, str], dict[int, float]] = {}
    for (implementation, metric, _), values in found.items():
        if len(values) > len(longest.get((implementation, metric), {})):
            longest[implementation, metric] = values
    return [
        Series(implementation, metric, sorted(values), [values[n] for n in sorted(values)])
        for (implementation, metric), values in longest.items()
    ]


def growth(one: Series) -> Growth | None:
    """The exponent of a series; None where there are too few lengths, or zeros."""
    lengths, values = one.lengths[-LONGEST:], one.values[-LONGEST:]
    if len(lengths) < LONGEST or min(values) <= 0:
        return None
    return Growth(one, stats.exponent(lengths, values), lengths)


def collect(evidence: Evidence) -> tuple[Any, str]:
    """(data, "") or (None, why there is nothing to draw)."""
    panels: list[dict[str, Any]] = []
    for name in evidence.body:
        machine = evidence.machine(name)
        panel = panel_of(machine.title, machine.records)
        if panel["measured"] or panel["counted"]:
            panels.append(panel)
    measured = [panel for panel in panels if panel["measured"]]
    if not panels:
        return None, "Traffic against length appears here once the experiment traffic has run."
    # Counting is the same on every machine: one panel shows it until a machine has counters.
    return measured or [panels[0] | {"title": "counted"}], ""


def panel_of(title: str, records: Iterable[Record]) -> dict[str, Any]:
    """What one panel shows: counted and measured series of the op ``attention``, as plain data."""
    own = [r for r in records if r.conditions.get("op") == "attention"]
    counted = [r for r in own if r.kind in (Kind.COUNTED, Kind.PREDICTED)]
    measured = [r for r in own if r.kind is Kind.MEASURED]
    return {
        "title": title,
        "shape": _shape(own),
        "counted": [list(s) for s in series(counted)],
        "measured": [
            list(s) for s in series(measured) if s.metric in ("device", "multiprocessors")
        ],
    }


def _shape(records: Iterable[Record]) -> str:
    """What all lengths share, in words: batch, heads and width."""
    for record in records:
        has = record.conditions
        if record.quantity == "traffic" and "model" not in has and "head_dim" in has:
            causal = ", causal" if has.get("causal") else ""
            return f"{has.get('batch', 1)} × {has['heads']} heads of {has['head_dim']}{causal}"
    return ""


def plot(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Panels side by side, with one legend for all."""
    import matplotlib.pyplot as plt

    from zenrepro.report import style

    names = sorted({s[0] for panel in panels for s in panel["measured"]})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(style.TEXT_WIDTH_IN, 3.3), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, panel, names)
    axes[0][0].set_ylabel("bytes of one call")
    handles, labels = _legend(names, panels)
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _panel(axis: Axes, panel: Mapping[str, Any], names: list[str]) -> None:
    from zenrepro.report import style

    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for key, lengths, values in _lines(panel):
        axis.plot(lengths, values, linestyle=_STYLES[key], color="0.35", linewidth=0.9)
    for implementation, metric, lengths, values in map(tuple, panel["measured"]):
        place = names.index(implementation)
        colour = style.GREYS[place % len(style.GREYS)]
        axis.plot(
            lengths, values, style.MARKERS[place % len(style.MARKERS)], color=colour,
            markersize=4.5, markeredgewidth=0.8, markeredgecolor=colour,
            markerfacecolor=colour if metric == "device" else "white",
        )  # fmt: skip
    ticks = sorted({n for s in (*panel["counted"], *panel["measured"]) for n in s[2]})
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("sequence length $N$")
    axis.set_title(style.plain(f"{panel['title']}, {panel['shape']}".rstrip(", ")))


_STYLES: dict[str, Any] = {
    "least": "-", "stored": "--", "tiled": ":", "expected": "-.", "counted": (0, (5, 1)),
}  # fmt: skip
_LINES = {
    "least": "must move", "stored": "scores stored, no cache", "tiled": "tiles, no cache",
    "expected": "tiles, model of the L2", "counted": "the algorithm, no cache",
}  # fmt: skip
# How an implementation is called of which something was counted and nothing run: by what tiles or
# stores. Older records have an implementation's own name, and do not tell which it is.
_COUNT = "count_"


def _lines(panel: Mapping[str, Any]) -> list[tuple[str, list[int], list[float]]]:
    """The distinct counted curves."""
    least = [s for s in panel["counted"] if s[1] == "least"]
    out = [("least", least[0][2], least[0][3])] if least else []
    out += [("expected", s[2], s[3]) for s in panel["counted"] if s[1] == "expected"][:1]
    moved: dict[tuple[float, ...], tuple[str, list[int], list[float]]] = {}
    for implementation, metric, lengths, values in map(tuple, panel["counted"]):
        form = implementation.partition(".")[2].removeprefix(_COUNT)
        key = form if form in _LINES else "counted"
        if metric == "counted" and (key != "counted" or tuple(values) not in moved):
            moved[tuple(values)] = (key, lengths, values)
    return out + sorted(moved.values(), key=lambda line: line[2][-1])


def _legend(names: list[str], panels: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    from zenrepro.report import style

    drawn = {key for panel in panels for key, _, _ in _lines(panel)}
    handles: list[Any] = []
    labels: list[str] = []
    for key, words in _LINES.items():
        if key in drawn:
            handles.append(Line2D([], [], linestyle=_STYLES[key], color="0.35", linewidth=0.9))
            labels.append(words)
    for place, name in enumerate(names):
        colour = style.GREYS[place % len(style.GREYS)]
        marker = style.MARKERS[place % len(style.MARKERS)]
        handles.append(Line2D([], [], linestyle="", marker=marker, markersize=4.5, color=colour))
        labels.append(style.plain(name.replace("_", " ")))
    return handles, labels
