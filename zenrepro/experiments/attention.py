"""Attention at op level: time, rates and error of every implementation, prefill and decode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import msgspec

from zenrepro import counts
from zenrepro.errors import InputError
from zenrepro.experiments import operation, session
from zenrepro.experiments.operation import Drawn, Peaks, Sizes
from zenrepro.experiments.point import Point, Prepared, Result
from zenrepro.experiments.shares import fewer_heads
from zenrepro.formats import element_bytes
from zenrepro.ops.attention.cases import CASES, Case, Layout
from zenrepro.ops.attention.problem import Problem
from zenrepro.ops.attention.table import TABLE
from zenrepro.ops.entry import Entry

BASELINE = "naive"
_TABLE = "zenrepro.ops.attention.table"
_CASES = "zenrepro.ops.attention.cases"


class Parameters(session.Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``implementations``: comma-separated names, with or without the backend. The sizes replace
    those of every case of the scale; ``seq_len`` is the cache's length in decode, and the mean
    where lengths differ."""

    implementations: str | None = None
    phase: Literal["prefill", "decode"] | None = None
    batch: int | None = None
    seq_len: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool | None = None
    dtype: Literal["fp32", "bf16", "fp16", "fp8_e4m3"] | None = None
    layout: Layout | None = None


def points(run: session.Session) -> Iterator[Point]:
    """One point for each case, dtype and implementation of the session's backend; those of one
    case and dtype are sampled in turn.

    Raises InputError for an implementation that the table does not have, or sizes that do not fit.
    """
    kind = run.hardware.device.partition(":")[0]
    wanted = chosen(run.parameters)
    drawn = Drawn(lambda: run.backend)
    for case in cases(run.parameters):
        for dtype in dtypes(run.parameters, case, kind):
            stated = operation.peaks(run, dtype)
            conditions = case.conditions(dtype)
            for entry in wanted:
                unavailable = entry.status(run.hardware, conditions)
                names = operation.produces(case.phase, kind, stated)
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
                    baseline=None if entry.algorithm == BASELINE else f"{entry.backend}.{BASELINE}",
                )


def chosen(parameters: Parameters) -> list[Entry]:
    """The backend's implementations that the parameters ask for, in the table's order."""
    return operation.chosen("attention", TABLE, parameters.backend, parameters.implementations)


def dtypes(parameters: Parameters, case: Case, kind: str) -> tuple[str, ...]:
    """The formats that a case is measured in on a kind of device, unless one is given."""
    return (parameters.dtype,) if parameters.dtype else case.dtypes(kind)


def cases(parameters: Parameters) -> list[Case]:
    """The scale's cases, with fewer heads where the backend is slow (``shares``), and with the
    given sizes in place of their own, without repeats."""
    sizes = {
        "batch": parameters.batch, "heads": parameters.heads, "head_dim": parameters.head_dim,
        "value_dim": parameters.head_dim, "kv_heads": parameters.kv_heads or parameters.heads,
        "causal": parameters.causal,
    }  # fmt: skip
    replaced = {key: value for key, value in sizes.items() if value is not None}
    found: dict[Case, Case] = {}
    for case in CASES[parameters.scale or "small"]:
        if parameters.phase not in (None, case.phase):
            continue
        if parameters.layout not in (None, case.layout):
            continue
        change: dict[str, Any] = dict(replaced)
        if parameters.seq_len is not None:
            change["cache_len"] = parameters.seq_len
            if case.phase == "prefill":
                change["query_len"] = parameters.seq_len
        if change:
            change |= {"name": None, "model": None}
        changed = _checked(msgspec.structs.replace(fewer_heads(case, parameters), **change))
        if not spreads(changed):  # sizes so small that the shortest sequence would have nothing
            changed = msgspec.structs.replace(changed, skew=0.0)
        # One shape is one case, in every format that any of its cases asks for.
        shape = msgspec.structs.replace(changed, both_formats=False, fp8=False)
        same = found.get(shape, shape)
        found[shape] = msgspec.structs.replace(
            changed,
            both_formats=changed.both_formats or same.both_formats,
            fp8=changed.fp8 or same.fp8,
        )
    return list(found.values())


def _checked(case: Case) -> Case:
    operation.positive(
        batch=case.batch, heads=case.heads, kv_heads=case.kv_heads, head_dim=case.head_dim,
        seq_len=case.cache_len,
    )  # fmt: skip
    if case.heads % case.kv_heads:
        raise InputError(
            f"kv_heads: wants a number that divides the {case.heads} heads, got {case.kv_heads}"
        )
    if case.causal and case.query_len > case.cache_len:
        raise InputError(
            f"seq_len: wants at least the {case.query_len} queries of a step, got {case.cache_len}"
        )
    return case


def spreads(case: Case) -> bool:
    """Whether the shortest sequence of the case's spread holds the queries of a step."""
    if not case.skew:
        return True
    least = case.query_len if case.phase == "decode" else 1
    try:
        return min(keys for _, keys in case.sequences) >= least
    except InputError:
        return False


def _prepare(
    run: session.Session, entry: Entry, case: Case, dtype: str, stated: Peaks, drawn: Drawn
) -> Prepared | list[Result]:
    names = operation.produces(case.phase, run.backend.kind, stated)
    return operation.prepare(
        entry,
        names,
        sizes(entry, case, dtype),
        stated,
        lambda: drawn.get((case, dtype), lambda: Problem(run.backend, case, dtype, run.seed)),
    )


def sizes(entry: Entry, case: Case, dtype: str) -> Sizes:
    """What one call does. The baseline also moves its scores: written and read twice."""
    work = counts.attention_of(case.conditions(dtype))
    moved = None
    if entry.algorithm == BASELINE:
        moved = (work.bytes or 0.0) + sum(
            counts.materialised_scores(
                batch=1, query_len=queries, cache_len=keys, heads=case.heads, dtype=dtype
            )
            for queries, keys in case.sequences
        )
    return Sizes(
        work, case.tokens, case.tokens * case.heads * case.value_dim * element_bytes(dtype), moved
    )
