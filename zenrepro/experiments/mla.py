"""Latent attention at op level: decode over a paged cache, prefill, and the projection's three
forms by the number of queries.

Work is counted by the form with the fewest FLOPs, so that rates of all forms compare; the forms'
own counts are in ``zenrepro.ops.mla.forms``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import msgspec

from zenrepro import counts
from zenrepro.errors import InputError
from zenrepro.experiments import operation, session
from zenrepro.experiments.attention import sizes as attention_sizes
from zenrepro.experiments.operation import Drawn, Peaks, Sizes
from zenrepro.experiments.point import Point, Prepared, Result
from zenrepro.experiments.shares import fewer_heads
from zenrepro.formats import element_bytes
from zenrepro.ops.attention.cases import Case as AttentionCase
from zenrepro.ops.attention.problem import Problem as AttentionProblem
from zenrepro.ops.attention.table import TABLE as ATTENTION
from zenrepro.ops.entry import Entry
from zenrepro.ops.mla import forms
from zenrepro.ops.mla.cases import ABLATION, CASES, Case, misfit
from zenrepro.ops.mla.problem import Problem
from zenrepro.ops.mla.sizes import MOST_HEADS, MOST_QUERIES, QUERY, VALUE
from zenrepro.ops.mla.table import TABLE
from zenrepro.records import Kind, Origin

# What speed is told against: attention over the rows as they are in decode, over expanded keys
# and values in prefill.
BASELINE = {"decode": "absorbed", "prefill": "decompressed"}
# What the forms of the projection are told by beside their times.
COUNTED = [("count", "flops"), ("traffic", "counted")]
# What a part of the op is told by: the attention of a prefill, without the projection.
RENAMED = {
    ("time", "call"): ("time", "attention"),
    ("throughput", "rate"): ("throughput", "attention_rate"),
}
_ATTENTION = "zenrepro.ops.attention.table"
_TABLE = "zenrepro.ops.mla.table"
_CASES = "zenrepro.ops.mla.cases"


class Parameters(session.Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``implementations``: comma-separated names, with or without the backend. The sizes replace
    those of every case of the scale; ``seq_len`` is the cache's length in decode, and the mean
    where lengths differ. ``cache_format`` chooses among caches: that of the inputs, or FP8."""

    selecting: ClassVar[tuple[str, ...]] = ("implementations", "cache_format")

    implementations: str | None = None
    phase: Literal["prefill", "decode"] | None = None
    batch: int | None = None
    seq_len: int | None = None
    query_len: int | None = None
    heads: int | None = None
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    cache_format: Literal["same", "fp8_e4m3"] | None = None


def points(run: session.Session) -> Iterator[Point]:
    """One point for each case, dtype and implementation of the session's backend; those of one
    case and dtype are sampled in turn. Of prefill also what each form computes, by count.

    Raises InputError for an implementation that the table does not have, or sizes that do not fit.
    """
    kind = run.hardware.device.partition(":")[0]
    wanted = chosen(run.parameters)
    drawn = Drawn(lambda: run.backend)
    for case in cases(run.parameters):
        for dtype in dtypes(run.parameters, case, kind):
            if case.phase == "prefill":
                yield from _counts(run, case, dtype)
            stated = operation.peaks(run, dtype)
            conditions = case.conditions(dtype)
            for entry in wanted:
                if case.phase not in entry.needs.phases:
                    continue  # the other op's row: not a reason, another table
                unavailable = entry.status(run.hardware, conditions)
                names = operation.produces(case.phase, kind, stated)
                baseline = BASELINE[case.phase]
                yield Point(
                    implementation=entry.name,
                    conditions=conditions,
                    produces=operation.NOT_RUN if unavailable else names,
                    prepare=partial(_prepare, run, entry, case, dtype, stated, drawn),
                    group=f"{case} {dtype}",
                    origin=entry.origin,
                    modules=[entry.module],
                    rows=[f"{_TABLE}:{entry.name}"]
                    + ([f"{_CASES}:{case.name}"] if case.name else []),
                    data=stated.data,
                    unavailable=unavailable,
                    packages={} if unavailable else entry.versions(),
                    baseline=None if entry.algorithm == baseline else f"{entry.backend}.{baseline}",
                )
            if case.phase == "prefill" and case.model is not None:
                yield from _alone(run, case, dtype, kind, stated, drawn)


def _alone(
    run: session.Session, case: Case, dtype: str, kind: str, stated: Peaks, drawn: Drawn
) -> Iterator[Point]:
    """Of a model's own prefill: the attention over keys and values that are expanded already, by
    each implementation of the op ``attention``. The other reading of "attention with MLA"."""
    inner = AttentionCase(
        name=None,
        phase="prefill",
        batch=case.batch,
        query_len=case.query_len,
        cache_len=case.cache_len,
        heads=case.heads,
        kv_heads=case.heads,
        head_dim=QUERY,
        value_dim=VALUE,
        causal=case.causal,
    )
    names = [RENAMED.get(name, name) for name in operation.produces("prefill", kind, stated)]
    for entry in ATTENTION:
        if entry.backend != run.parameters.backend or not _wanted(run.parameters, entry):
            continue
        unavailable = entry.status(run.hardware, inner.conditions(dtype))
        yield Point(
            implementation=entry.name,
            conditions=case.conditions(dtype),
            produces=[RENAMED[name] for name in operation.NOT_RUN] if unavailable else names,
            prepare=partial(_prepare_alone, run, entry, case, inner, dtype, stated, drawn),
            group=f"{case} {dtype}",
            origin=entry.origin,
            modules=[entry.module],
            rows=[f"{_ATTENTION}:{entry.name}"] + ([f"{_CASES}:{case.name}"] if case.name else []),
            data=stated.data,
            unavailable=unavailable,
            packages={} if unavailable else entry.versions(),
        )


def _wanted(parameters: Parameters, entry: Entry) -> bool:
    if parameters.implementations is None:
        return True
    names = [name.strip() for name in parameters.implementations.split(",")]
    return entry.algorithm in names or entry.name in names


def _prepare_alone(
    run: session.Session,
    entry: Entry,
    case: Case,
    inner: AttentionCase,
    dtype: str,
    stated: Peaks,
    drawn: Drawn,
) -> Prepared | list[Result]:
    done = operation.prepare(
        entry,
        operation.produces("prefill", run.backend.kind, stated),
        attention_sizes(entry, inner, dtype),
        stated,
        lambda: drawn.get(
            (case, dtype, "alone"), lambda: AttentionProblem(run.backend, inner, dtype, run.seed)
        ),
    )
    if isinstance(done, list):
        return [_renamed(result) for result in done]
    return Prepared(done.call, lambda sampled: [_renamed(r) for r in done.finish(sampled)])


def _renamed(result: Result) -> Result:
    """The same under the metric that says that it is of the attention alone."""
    quantity, metric = RENAMED.get(
        (result.quantity, result.metric), (result.quantity, result.metric)
    )
    return msgspec.structs.replace(result, quantity=quantity, metric=metric)


def _counts(run: session.Session, case: Case, dtype: str) -> Iterator[Point]:
    """What each form of the projection computes and moves, by count: a point a form."""
    for form in forms.FORMS:
        yield Point(
            implementation=f"{run.parameters.backend}.count_{form}",
            conditions=case.conditions(dtype),
            produces=COUNTED,
            measure=partial(_counted, form, case, dtype),
            origin=Origin.OURS,
            rows=[f"{_CASES}:{case.name}"] if case.name else [],
        )


def _counted(form: forms.Form, case: Case, dtype: str) -> list[Result]:
    work = forms.work(form, _shape(case), dtype=dtype)
    method = f"{forms.TILE_ROWS} queries a tile" if form == "fused" else None
    return [
        Result(
            quantity=quantity,
            metric=metric,
            unit=unit,
            samples=[float(value or 0.0)],
            kind=Kind.COUNTED,
            method=method,
        )
        for (quantity, metric), unit, value in zip(
            COUNTED, ("FLOP", "B"), (work.flops, work.bytes), strict=True
        )
    ]


def _shape(case: Case) -> forms.Shape:
    return forms.Shape(case.batch, case.query_len, case.cache_len, case.heads, case.causal)


def chosen(parameters: Parameters) -> list[Entry]:
    """The backend's implementations that the parameters ask for, in the table's order. Names of
    the op ``attention`` are known too: they stand for the attention alone."""
    every = (*TABLE, *(entry for entry in ATTENTION if entry.name not in {e.name for e in TABLE}))
    found = operation.chosen("mla", every, parameters.backend, parameters.implementations)
    return [entry for entry in found if entry in TABLE]


def dtypes(parameters: Parameters, case: Case, kind: str) -> tuple[str, ...]:
    """The formats that a case is measured in on a kind of device, unless one is given."""
    return (parameters.dtype,) if parameters.dtype else case.dtypes(kind)


def cases(parameters: Parameters) -> list[Case]:
    """The scale's cases, those of the ablation behind them, with fewer heads where the backend is
    slow (``shares``), with the given sizes in place of their own and without repeats."""
    scale = parameters.scale or "small"
    replaced = {
        "batch": parameters.batch, "heads": parameters.heads, "query_len": parameters.query_len,
    }  # fmt: skip
    change: dict[str, Any] = {key: size for key, size in replaced.items() if size is not None}
    found: dict[Case, None] = {}
    for case in (*CASES[scale], *ABLATION[scale]):
        if parameters.phase not in (None, case.phase):
            continue
        if parameters.cache_format is not None and parameters.cache_format != (
            case.format or "same"
        ):
            continue
        own = dict(change)
        if parameters.seq_len is not None:
            own["cache_len"] = parameters.seq_len
            if case.phase == "prefill":  # the whole stays the whole, a part no more than it
                whole = case.query_len == case.cache_len
                most = parameters.seq_len if whole else min(case.query_len, parameters.seq_len)
                own.setdefault("query_len", most)
        if own:
            own |= {"name": None, "model": None}
        found[_checked(msgspec.structs.replace(fewer_heads(case, parameters), **own))] = None
    return list(found)


def ablation(parameters: Parameters) -> list[forms.Shape]:
    """The shapes of the projection's ablation that take part, the fewest queries first: all of the
    same prefix, those of other cases among them."""
    every = [case for case in cases(parameters) if case.phase == "prefill" and case.causal]
    prefixes = [(case.batch, case.cache_len, case.heads) for case in every]
    if not prefixes:
        return []
    most = max(dict.fromkeys(prefixes), key=prefixes.count)
    found = {_shape(case) for case, prefix in zip(every, prefixes, strict=True) if prefix == most}
    return sorted(found)


def _checked(case: Case) -> Case:
    operation.positive(
        batch=case.batch, heads=case.heads, query_len=case.query_len, seq_len=case.cache_len
    )
    if case.heads > MOST_HEADS:
        raise InputError(f"heads: wants 1 to {MOST_HEADS}, got {case.heads}")
    if case.phase == "decode" and case.query_len > MOST_QUERIES:
        raise InputError(
            f"query_len: a decode step has 1 to {MOST_QUERIES} query tokens, got {case.query_len}; "
            "phase=prefill takes more"
        )
    wrong = misfit(case)
    if wrong is not None:
        raise InputError(f"seq_len: {wrong}")
    return case


def _prepare(
    run: session.Session, entry: Entry, case: Case, dtype: str, stated: Peaks, drawn: Drawn
) -> Prepared | list[Result]:
    names = operation.produces(case.phase, run.backend.kind, stated)
    return operation.prepare(
        entry,
        names,
        sizes(case, dtype),
        stated,
        lambda: drawn.get((case, dtype), lambda: Problem(run.backend, case, dtype, run.seed)),
    )


def sizes(case: Case, dtype: str) -> Sizes:
    """What one call does: work by the form with the fewest FLOPs."""
    conditions = case.conditions(dtype)
    tokens = case.batch * case.query_len
    out_bytes = tokens * case.heads * conditions["value_dim"] * element_bytes(dtype)
    return Sizes(counts.mla_of(conditions), tokens, out_bytes)
