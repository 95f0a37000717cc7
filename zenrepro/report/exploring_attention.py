"""The notebooks ``attention`` and ``mla``: figures and tables of their own, from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zenrepro import stats
from zenrepro.architecture import Architecture, cache_bytes, caches
from zenrepro.records import Record, Status
from zenrepro.report import kernels
from zenrepro.report.exploring import Ceilings, Drawing, Grid, _empty, _svg
from zenrepro.units import unit

_SHOWN = (Status.OK, Status.DISTURBED)
_FORMS = {"mha": "a key a head", "gqa": "eight shared keys", "mla": "one latent"}


def cache_by_length(models: Mapping[str, Architecture], name: str, longest: int = 2**17) -> Drawing:
    """Bytes of one sequence's cache in all layers against its length, by form; counted."""
    from zenrepro.report import style

    model = models.get(name)
    if model is None:  # a project of its own may have other models
        return _empty()
    lengths = [2**n for n in range(10, longest.bit_length())]
    with style.paper():
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(style.TEXT_WIDTH_IN / 2, 2.6), layout="constrained")
        for place, cache in enumerate(caches(model)):
            each = cache_bytes(model, form=cache.form)
            axis.plot(
                lengths, [n * each / 1e9 for n in lengths], color="0", linewidth=0.9,
                linestyle=("-", "--", ":")[place % 3], label=_FORMS.get(cache.form, cache.form),
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("tokens of a sequence")
        axis.set_ylabel("GB a sequence")
        axis.set_title(style.plain(model.name))
        axis.legend()
        return Drawing(_svg(figure))


def cache_table(models: Mapping[str, Architecture], batch: int = 32, seq_len: int = 4096) -> Grid:
    """Bytes a token and a batch in all layers, by form, and over the latent's; counted."""
    rows: list[list[Any]] = []
    for name, model in models.items():
        latent = cache_bytes(model, form="mla")
        for cache in caches(model):
            each = cache_bytes(model, form=cache.form)
            whole = each * batch * seq_len / 1e9
            form = _FORMS.get(cache.form, cache.form)
            rows.append([name, form, each / 1e3, whole, each / latent])
    held = f"GB for {batch} × {seq_len} tokens"
    return Grid(["model", "cache", "kB a token", held, "times the latent"], rows)


def not_run(records: Sequence[Record]) -> Grid:
    """Implementations without a number, and why: each reason once, with how many cases have it."""
    found: dict[tuple[str, str, str], int] = {}
    for record in records:
        if record.quantity == "time" and not record.samples:
            key = (record.implementation, str(record.status), record.reason or "")
            found[key] = found.get(key, 0) + 1
    rows = [[name, status, count, reason] for (name, status, reason), count in found.items()]
    return Grid(["implementation", "status", "cases", "reason"], rows)


def by_batch(records: Sequence[Record], phase: str = "decode") -> Drawing:
    """Time of a call against the batch, other sizes being equal: those with the most batches."""
    chosen = [r for r in _times(records) if r.conditions.get("phase") == phase]
    return _series(chosen, "batch", "sequences in a batch", {})


def by_queries(
    records: Sequence[Record], predicted: Mapping[str, Mapping[int, float]] | None = None
) -> Drawing:
    """Time of a prefill against its query tokens over the same prefix, the one with the most.

    ``predicted``: seconds by form and query tokens, drawn as thin lines.
    """
    chosen = [r for r in _times(records) if r.conditions.get("op") == "mla_prefill"]
    chosen = [r for r in chosen if r.metric == "call"]
    return _series(chosen, "query_len", "query tokens over the same prefix", predicted or {})


def against_peers(records: Sequence[Record], found: Ceilings, op: str) -> Grid:
    """A case a row: the least time, our fastest, the fastest peer, and how ours compares."""
    every = kernels.rows(records, (op,), found)
    varied = {
        key
        for row in every
        for key in row.conditions
        if len({str(other.conditions.get(key)) for other in every}) > 1
    } - {"tokens"}
    rows: list[list[Any]] = []
    for row in every:
        ours, peer, speed = row.ours, row.peer, row.speed
        rows.append(
            [
                _case(row.conditions, varied),
                None if row.least_s is None else row.least_s * 1e3,
                row.bound,
                *_cells(ours, row),
                *_cells(peer, row)[:2],
                None if speed is None else f"{speed.value:.2f} ×",
                {True: "yes", False: "no", None: None}[row.reached],
            ]
        )
    head = ["case", "least, ms", "set by", "ours", "ms", "of the least", "peer", "ms",
            "ours over peer", "at the bar"]  # fmt: skip
    return Grid(head, rows)


def _cells(one: kernels.Timed | None, row: kernels.Row) -> list[Any]:
    if one is None:
        return [None, None, None]
    share = row.share_of_least(one)
    return [
        one.implementation,
        one.summary.value * 1e3,
        None if share is None else f"{share:.0%}",
    ]


def _times(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.quantity == "time" and r.status in _SHOWN]


def _case(given: Mapping[str, Any], varied: set[str]) -> str:
    """What tells a case from the others of its table."""
    return " ".join(f"{key}={value}" for key, value in sorted(given.items()) if key in varied)


def _series(
    records: list[Record],
    across: str,
    label: str,
    predicted: Mapping[str, Mapping[int, float]],
) -> Drawing:
    """Medians with their intervals, a line an implementation, all other sizes being equal."""
    from zenrepro.report import style

    found: dict[tuple[tuple[str, Any], ...], dict[str, dict[int, Record]]] = {}
    for record in records:
        given = _sized(record.conditions)
        if across in given:
            rest = {k: v for k, v in given.items() if k not in (across, "tokens", "seq_len")}
            lines = found.setdefault(tuple(sorted(rest.items())), {})
            lines.setdefault(record.implementation, {})[int(given[across])] = record
    rest_of, series = max(
        found.items(), key=lambda item: len({x for p in item[1].values() for x in p}),
        default=((), {}),
    )  # fmt: skip
    ticks = sorted({x for points in series.values() for x in points})
    if len(ticks) < 2:
        return _empty()
    with style.paper():
        import matplotlib.pyplot as plt

        height = 2.6 + 0.17 * -(-len(series) // 4)
        figure, axis = plt.subplots(figsize=(style.TEXT_WIDTH_IN, height), layout="constrained")
        for place, (name, points) in enumerate(series.items()):
            xs = sorted(points)
            seen = [stats.summarise(points[x].samples) for x in xs]
            scale = unit(points[xs[0]].unit).factor * 1e3
            axis.errorbar(
                xs, [s.value * scale for s in seen],
                yerr=[[(s.value - s.low) * scale for s in seen],
                      [(s.high - s.value) * scale for s in seen]],
                marker=style.MARKERS[place % len(style.MARKERS)], markersize=4, linewidth=0.8,
                color=style.GREYS[place % len(style.GREYS)],
                linestyle=("-", "--", ":", "-.")[place % 4],
                label=style.plain(name.replace("_", " ")),
            )  # fmt: skip
        for name, values in predicted.items():
            xs = sorted(values)
            if xs:
                axis.plot(xs, [values[x] * 1e3 for x in xs], color="0.75", linewidth=0.7)
                axis.annotate(name, (xs[-1], values[xs[-1]] * 1e3), fontsize=7, color="0.45")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(ticks, [str(x) for x in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.set_ylabel("ms a call")
        axis.set_title(style.plain(_title(dict(rest_of))))
        figure.legend(loc="outside lower center", ncols=4)
        return Drawing(_svg(figure))


def _title(given: Mapping[str, Any]) -> str:
    """The sizes that all points of a figure share."""
    words = {
        "batch": "batch {}", "query_len": "{} query", "cache_len": "{} tokens", "heads": "{} heads",
        "kv_heads": "{} KV heads", "head_dim": "{} wide", "format": "{} cache", "dtype": "{}",
    }  # fmt: skip
    return ", ".join(form.format(given[key]) for key, form in words.items() if key in given)


def _sized(given: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions with both lengths, also where one length says both."""
    length = given.get("seq_len")
    return {"query_len": length, "cache_len": length, **given} if length else dict(given)
