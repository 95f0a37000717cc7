"""What a token keeps in the cache: the project's models, counted from their configurations.

With ordinary heads, with heads that share keys, and with one latent for all heads; and what each
reading of "so many times smaller" gives. Where a machine has allocated such caches, how far they
are from the count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zenrepro import architecture, counts, stats
from zenrepro.architecture import Architecture
from zenrepro.records import Record, Status
from zenrepro.report.evidence import Evidence
from zenrepro.report.numbers import Missing, Number
from zenrepro.units import unit

DTYPE = "bf16"
_NONE = Missing("x", "its heads are not a multiple")


@dataclass(frozen=True)
class Row:
    """One model. Sizes are of one token in all layers; ``readings`` are the table's, in order."""

    model: str
    heads: int
    layers: int
    ordinary: Number
    shared: Number | Missing
    latent: Number
    latent_fp8: Number | Missing
    readings: list[Number | Missing]


@dataclass(frozen=True)
class Table:
    """All models; ``readings`` in words; ``allocated`` says what machines found, "" for none."""

    rows: list[Row]
    readings: list[str]
    shared_heads: int
    allocated: str


def build(evidence: Evidence) -> Table:
    """The table; without rows where the project has no models. Raises InputError for a bad one."""
    folder = evidence.project.models
    models = architecture.load(folder) if folder.is_dir() else {}
    ordered = sorted(models.values(), key=architecture.parameters)
    readings = {model.name: architecture.cache_readings(model) for model in ordered}
    words = list(dict.fromkeys(text for found in readings.values() for text in found))
    rows = [
        Row(
            model=evidence.words.value("model", model.name),
            heads=model.num_heads,
            layers=model.num_layers,
            ordinary=_size(architecture.cache_bytes(model, DTYPE, "mha")),
            shared=_shared(model),
            latent=_size(architecture.cache_bytes(model, DTYPE)),
            latent_fp8=_fp8(model),
            readings=[_times(readings[model.name].get(text)) for text in words],
        )
        for model in ordered
    ]
    return Table(rows, words, architecture.GROUPED_HEADS, _allocated(evidence, models))


def _size(size_bytes: float) -> Number:
    return Number(size_bytes / unit("kB/token").factor, "kB/token")


def _shared(model: Architecture) -> Number | Missing:
    if not any(cache.form == "gqa" for cache in architecture.caches(model)):
        return _NONE
    return _size(architecture.cache_bytes(model, DTYPE, "gqa"))


def _fp8(model: Architecture) -> Number | Missing:
    """The latent in FP8 with a scale for every 128 numbers, the rotary part in bf16."""
    if model.kv_lora_rank % 128:
        return _NONE
    row = counts.latent_row_bytes(
        latent=model.kv_lora_rank, rotary=model.qk_rope_head_dim, dtype=DTYPE,
        cache_format="fp8_e4m3",
    )  # fmt: skip
    return _size(model.num_layers * row)


def _times(value: float | None) -> Number | Missing:
    return _NONE if value is None else Number(value, "x")


def _allocated(evidence: Evidence, models: dict[str, Architecture]) -> str:
    """One sentence over all machines: how many caches were allocated, and how far off they were."""
    parts = []
    for machine in evidence.machines:
        off = list(deviations(machine.records, models))
        if off:
            most = max(off, key=abs)
            how = "to the byte" if most == 0 else f"to within {max(abs(most), 0.01):.2g} %"
            parts.append(f"{len(off)} on {machine.title}, as counted {how}")
    return "; ".join(parts)


def deviations(records: Iterable[Record], models: dict[str, Architecture]) -> Iterable[float]:
    """How much larger, in percent, each allocated cache of one layer is than it was counted."""
    own = [r for r in records if r.metric == "cache" and r.status is Status.OK]
    counted = {_key(r): r for r in own if r.quantity == "size"}
    for record in own:
        size, given = counted.get(_key(record)), record.conditions
        model = models.get(str(given.get("model")))
        if record.quantity != "memory" or size is None or model is None:
            continue
        a_layer = _value(size) / model.num_layers
        wanted = a_layer * int(given["batch"]) * int(given["seq_len"])
        yield 100.0 * (_value(record) / wanted - 1.0)


def _key(record: Record) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Implementation and sizes, without those of the allocated batch."""
    given = {k: str(v) for k, v in record.conditions.items() if k not in ("batch", "seq_len")}
    return record.implementation, tuple(sorted(given.items()))


def _value(record: Record) -> float:
    return stats.summarise(record.samples).value * unit(record.unit).factor
