"""Figures and tables of a session's records, for notebooks: shown as SVG and HTML.

They take records and nothing else, so that they draw other machines' results as well.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from zenrepro import stats
from zenrepro.paths import Project
from zenrepro.records import Record, Status
from zenrepro.results.store import Store
from zenrepro.units import unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = (Status.OK, Status.DISTURBED)


class Drawing:
    """A figure as SVG: a notebook's cell shows it, whatever matplotlib's backend is."""

    def __init__(self, svg: bytes) -> None:
        self.svg = svg.decode()

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<figure, {len(self.svg)} characters of SVG>"


class Grid:
    """A small table: text in a terminal, HTML in a notebook. None is shown as a dash."""

    def __init__(self, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.head = list(head)
        self.rows = [[_cell(value) for value in row] for row in rows]

    def __repr__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inside}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f"<table><thead>{line(self.head, 'th')}</thead><tbody>{body}</tbody></table>"


class Ceilings:
    """The most that a machine was measured to do: FLOP/s by format, and B/s, None where unknown."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.flop_rate: dict[str, float] = {}
        self.bandwidth: float | None = None
        for record in records:
            if record.status not in _SHOWN:
                continue
            value = _median(record)
            if record.quantity == "bandwidth" and record.conditions.get("op") in ("copy", "read"):
                self.bandwidth = max(value, self.bandwidth or 0.0)
            elif record.quantity == "flop_rate" and record.conditions.get("op") == "matmul":
                dtype = str(record.conditions["dtype"])
                self.flop_rate[dtype] = max(value, self.flop_rate.get(dtype, 0.0))


def ceilings(project: Project, machine: str) -> Ceilings:
    """Measured ceilings of a machine, from its stored results of the experiment ``hardware``."""
    store = Store(project.results)
    if machine not in store.machines() or "hardware" not in store.experiments(machine):
        return Ceilings([])
    return Ceilings(store.load(machine, "hardware"))


def where(project: Project, records: Sequence[Record]) -> str:
    """Where the records of a session are, relative to the project's folder."""
    if not records:
        return "no records"
    folder = project.results.relative_to(project.root)
    name = f"{folder}/{records[0].machine}/{records[0].experiment}.json"
    return f"{len(records)} records, in {name} (an edited notebook's are under drafts/)"


def rates(records: Sequence[Record], quantity: str = "flop_rate") -> Drawing:
    """Prefill, causal: a rate against the length, one line an implementation, one panel a dtype.

    Of several head widths, numbers of shared heads and layouts, those with the most lengths.
    """
    chosen = [
        r
        for r in _of(records, quantity)
        if r.conditions.get("phase") == "prefill"
        and r.conditions.get("causal")
        and "seq_len" in r.conditions
        and "model" not in r.conditions  # a model's own shape is no step of the series
    ]
    lengths: dict[tuple[Any, ...], set[int]] = {}
    for r in chosen:
        lengths.setdefault(_heads(r), set()).add(int(r.conditions["seq_len"]))
    if lengths:
        longest = max(lengths, key=lambda key: len(lengths[key]))
        chosen = [r for r in chosen if _heads(r) == longest]
    return _panels(
        chosen, lambda r: int(r.conditions["seq_len"]), "sequence length", _label(quantity), "-"
    )


def _heads(record: Record) -> tuple[Any, ...]:
    """What of a shape stays the same along a series of lengths."""
    keys = ("op", "heads", "kv_heads", "head_dim", "value_dim", "layout", "skew")
    return tuple(record.conditions.get(key) for key in keys)


def decode(records: Sequence[Record], read: float | None = None) -> Drawing:
    """Decode: bytes a second against the cache's size. ``read`` (B/s) is drawn as the ceiling."""
    chosen = [r for r in _of(records, "bandwidth") if r.conditions.get("phase") == "decode"]
    return _panels(
        chosen,
        lambda r: (r.work.bytes or 0.0) / 1e6 if r.work else 0.0,
        "bytes that one step must read and write (MB)",
        _label("bandwidth"),
        "",  # shapes of different kinds: no line joins them
        read,
    )


def roofline(records: Sequence[Record], found: Ceilings, title: str) -> Drawing:
    """Every timed call under the machine's measured ceilings."""
    from zenrepro.report import roofline as paper_roofline
    from zenrepro.report import style

    points = [
        {
            "implementation": r.implementation,
            "phase": str(r.conditions.get("phase", "")),
            "dtype": str(r.conditions.get("dtype", "")),
            "intensity": r.work.flops / r.work.bytes,
            "rate": r.work.flops / _median(r),
        }
        for r in _of(records, "time")
        if r.work is not None and r.work.flops and r.work.bytes
    ]
    if not points:
        return _empty()
    used = {point["dtype"] for point in points}
    panel: dict[str, Any] = {
        "title": title,
        "points": points,
        "bandwidth": found.bandwidth,
        "rates": {dtype: rate for dtype, rate in found.flop_rate.items() if dtype in used},
        "stated": {"bandwidth": None, "rates": {}},
    }
    with style.paper():
        return Drawing(_svg(paper_roofline.plot([panel])))


def against_baseline(records: Sequence[Record]) -> Grid:
    """Speed of each implementation over its baseline under the same conditions, with the ratio's
    95 % interval."""
    times = {(r.implementation, _key(r)): r for r in _of(records, "time")}
    rows = []
    for (name, key), record in times.items():
        base = times.get((record.baseline or "", key))
        if base is None:
            continue
        seen = stats.ratio(stats.summarise(base.samples), stats.summarise(record.samples))
        if seen is None:
            continue
        interval = f"{seen.low:.2f} to {seen.high:.2f}"
        rows.append([name, _described(record), f"{seen.value:.2f} ×", interval])
    return Grid(["implementation", "conditions", "speed over the baseline", "95 % interval"], rows)


def _key(record: Record) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(record.conditions.items()))


def _described(record: Record) -> str:
    hidden = ("op", "tokens")
    given = {k: v for k, v in record.conditions.items() if k not in hidden}
    return " ".join(f"{key}={value}" for key, value in sorted(given.items()))


def reached(records: Sequence[Record], stated: dict[tuple[str, str | None], float]) -> Drawing:
    """Ceilings as bars: measured, and as the vendor states them (an open mark) where known.

    ``stated``: base units by (quantity, dtype); bandwidth has no dtype.
    """
    from zenrepro.report import style

    rows = [r for q in ("bandwidth", "flop_rate") for r in _of(records, q)]
    with style.paper():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(style.TEXT_WIDTH_IN, 2.4), layout="constrained")
        for axis, quantity in zip(axes, ("bandwidth", "flop_rate"), strict=True):
            chosen = [r for r in rows if r.quantity == quantity]
            names = [_ceiling_name(r) for r in chosen]
            values = [_median(r) / _scale(quantity) for r in chosen]
            axis.barh(range(len(names)), values, color="0.6", height=0.6)
            axis.set_yticks(range(len(names)), names)
            for place, record in enumerate(chosen):
                dtype = str(record.conditions["dtype"]) if quantity == "flop_rate" else None
                value = stated.get((quantity, dtype))
                if value is not None:
                    axis.plot(value / _scale(quantity), place, "D", color="0", mfc="white")
            axis.set_xlabel(_label(quantity))
            axis.invert_yaxis()
        return Drawing(_svg(figure))


def _ceiling_name(record: Record) -> str:
    given = record.conditions
    shape = f" {given['m']}" if "m" in given else ""
    return f"{record.implementation} {given.get('dtype', '')}{shape}".replace("_", " ")


def _of(records: Iterable[Record], quantity: str) -> list[Record]:
    return [r for r in records if r.quantity == quantity and r.status in _SHOWN]


def _median(record: Record) -> float:
    return stats.summarise(record.samples).value * unit(record.unit).factor


def _scale(quantity: str) -> float:
    return {"flop_rate": 1e12, "bandwidth": 1e9}.get(quantity, 1.0)


def _label(quantity: str) -> str:
    return {"flop_rate": "TFLOP/s", "bandwidth": "GB/s", "time": "s"}.get(quantity, "tokens/s")


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _panels(
    records: list[Record],
    across: Callable[[Record], float],
    across_label: str,
    up_label: str,
    line: str,
    ceiling: float | None = None,
) -> Drawing:
    """One panel a dtype; medians with their 95 % intervals, by implementation."""
    from zenrepro.report import style

    if not records:
        return _empty()
    dtypes = sorted({str(r.conditions["dtype"]) for r in records})
    names = sorted({r.implementation for r in records})
    with style.paper():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            1, len(dtypes), figsize=(style.TEXT_WIDTH_IN, 2.6), squeeze=False, layout="constrained"
        )
        for axis, dtype in zip(axes[0], dtypes, strict=True):
            for place, name in enumerate(names):
                chosen = [r for r in records if r.implementation == name]
                _line(
                    axis,
                    [r for r in chosen if r.conditions["dtype"] == dtype],
                    across,
                    place,
                    line and ("-", "--", ":", "-.")[place % 4],
                )
            if ceiling is not None:
                axis.axhline(ceiling / _scale("bandwidth"), color="0.35", linestyle="--")
            axis.set_xscale("log")
            ticks = sorted({across(r) for r in records if r.conditions["dtype"] == dtype})
            axis.set_xticks(ticks, [f"{tick:.3g}" if tick % 1 else f"{tick:.0f}" for tick in ticks])
            axis.minorticks_off()
            axis.set_ylim(bottom=0)
            axis.set_xlabel(across_label)
            axis.set_title(dtype)
        axes[0][0].set_ylabel(up_label)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        return Drawing(_svg(figure))


def _line(
    axis: Axes, records: list[Record], across: Callable[[Record], float], place: int, line: str
) -> None:
    from zenrepro.report import style

    if not records:
        return
    records = sorted(records, key=across)
    found = [stats.summarise(r.samples) for r in records]
    factor = unit(records[0].unit).factor / _scale(records[0].quantity)
    middle = [s.value * factor for s in found]
    below = [max(0.0, s.value - s.low) * factor for s in found]
    above = [max(0.0, s.high - s.value) * factor for s in found]
    axis.errorbar(
        [across(r) for r in records],
        middle,
        yerr=[below, above],
        marker=style.MARKERS[place % len(style.MARKERS)],
        color=style.GREYS[place % len(style.GREYS)],
        markersize=4,
        linewidth=0.8,
        linestyle=line,
        label=style.plain(records[0].implementation.replace("_", " ")),
    )


def _svg(figure: Figure) -> bytes:
    """As ``style.saved``, without the PDF, which a notebook has no use for."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return buffer.getvalue()


def _empty() -> Drawing:
    text = "nothing was measured that this figure shows"
    return Drawing(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="360" height="24">'
        f'<text x="4" y="16" font-size="12">{text}</text></svg>'.encode()
    )
