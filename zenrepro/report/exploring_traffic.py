"""The notebook ``traffic``: its figure and its tables, from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zenrepro import stats
from zenrepro.records import Record, Status
from zenrepro.report import traffic
from zenrepro.report.exploring import Drawing, Grid, _empty, _svg
from zenrepro.units import unit

_SHOWN = (Status.OK, Status.DISTURBED)


def drawing(records: Sequence[Record], title: str) -> Drawing:
    """Bytes of a call against the length: counted lines, measured points."""
    from zenrepro.report import style

    panel = traffic.panel_of(title, records)
    if not panel["counted"] and not panel["measured"]:
        return _empty()
    with style.paper():
        return Drawing(_svg(traffic.plot([panel])))


def exponents(records: Sequence[Record]) -> Grid:
    """Each series' power of N over its longest lengths, with its 95 % interval."""
    rows: list[list[Any]] = []
    for quantity in ("traffic", "memory"):
        for one in traffic.series(records, quantity):
            grown = traffic.growth(one)
            words = traffic.WORDS.get(one.metric, f"{quantity} ({one.metric})")
            if grown is None:
                rows.append([one.implementation, words, None, None, None])
                continue
            power = grown.exponent
            rows.append(
                [
                    one.implementation,
                    words,
                    f"N^{power.value:.2f}",
                    f"{power.low:.2f} to {power.high:.2f}",
                    f"{grown.lengths[0]} to {grown.lengths[-1]}",
                ]
            )
    return Grid(["implementation", "bytes", "grows as", "95 % interval", "lengths"], rows)


def hidden(records: Sequence[Record]) -> Grid:
    """What the caches hide: bytes at the multiprocessors over those of device memory, by length."""
    found = {(s.implementation, s.metric): s for s in traffic.series(records)}
    least = next((s for (_, metric), s in found.items() if metric == "least"), None)
    must = dict(zip(least.lengths, least.values, strict=True)) if least else {}
    rows = []
    for (name, metric), arrived in found.items():
        device = found.get((name, "device"))
        if metric != "multiprocessors" or device is None:
            continue
        held = dict(zip(device.lengths, device.values, strict=True))
        for length, value in zip(arrived.lengths, arrived.values, strict=True):
            if held.get(length):
                over = held[length] / must[length] if must.get(length) else None
                rows.append([name, length, value / 1e6, held[length] / 1e6,
                             value / held[length], over])  # fmt: skip
    head = ["implementation", "N", "MB at the multiprocessors", "MB of device memory",
            "ratio", "device memory over the least"]  # fmt: skip
    return Grid(head, rows)


def busy(records: Sequence[Record]) -> Grid:
    """Shares of device memory's and the tensor pipes' peak, by counters."""
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for record in records:
        if record.quantity == "utilisation" and record.status in _SHOWN:
            given = record.conditions
            length = int(given.get("seq_len", given.get("cache_len", 0)))
            key = (record.implementation, length, str(given.get("model", "")))
            found.setdefault(key, {})[record.metric] = 100 * _value(record)
    rows = [
        [name, length, model or None, shares.get("dram"), shares.get("tensor_pipe")]
        for (name, length, model), shares in found.items()
    ]
    return Grid(["implementation", "N", "model", "device memory, %", "tensor pipes, %"], rows)


def caches(records: Sequence[Record]) -> Grid:
    """Bytes a token of each model's caches, counted and allocated, over the latent's."""
    counted = {_cache(r): r for r in records if (r.quantity, r.metric) == ("size", "cache")}
    allocated = {_cache(r): r for r in records if (r.quantity, r.metric) == ("memory", "cache")}
    latent = {
        key[0]: _value(record) for key, record in counted.items() if key[1] == "mla" and not key[3]
    }
    rows = []
    for key, record in counted.items():
        model, form, _, stored = key
        held = allocated.get(key)
        a_token = None
        if held is not None and held.status in _SHOWN:
            a_token = _value(held) / (held.conditions["batch"] * held.conditions["seq_len"])
        size = _value(record)
        name = form + (f" ({stored})" if stored else "")
        rows.append([model, name, size, record.method, a_token, size / latent[model]])
    head = ["model", "cache", "bytes a token", "counted as", "allocated a token and layer",
            "times the latent"]  # fmt: skip
    return Grid(head, rows)


def _cache(record: Record) -> tuple[str, str, int, str]:
    given = record.conditions
    form = record.implementation.partition(".")[2]
    return str(given["model"]), form, int(given["kv_heads"]), str(given.get("format", ""))


def _value(record: Record) -> float:
    return stats.summarise(record.samples).value * unit(record.unit).factor


def unread(records: Sequence[Record]) -> str:
    """Why counters were not read, each reason once; nothing where all were."""
    reasons: dict[str, int] = {}
    for record in records:
        if record.quantity in ("traffic", "utilisation") and record.status not in _SHOWN:
            reason = f"{record.status}: {record.reason}"
            reasons[reason] = reasons.get(reason, 0) + 1
    return "\n".join(f"{count} records {reason}" for reason, count in reasons.items())
