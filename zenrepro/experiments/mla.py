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
from zenrepro.experiments.operation import Drawn, Peaks, Sizes
from zenrepro.experiments.point import Point, Prepared, Result
from zenrepro.formats import element_bytes
from zenrepro.ops.entry import Entry
from zenrepro.ops.mla.cases import ABLATION, CASES, Case, misfit
from zenrepro.ops.mla.forms import Shape
from zenrepro.ops.mla.problem import Problem
from zenrepro.ops.mla.table import TABLE

# What speed is told against: attention over the rows as they are in decode, over expanded keys
# and values in prefill.
BASELINE = {"decode": "absorbed", "prefill": "decompressed"}
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
                    baseline=None if entry.algorithm == baseline else f"{entry.backend}.{baseline}",
                )


def chosen(parameters: Parameters) -> list[Entry]:
    """The backend's implementations that the parameters ask for, in the table's order."""
    return operation.chosen("mla", TABLE, parameters.backend, parameters.implementations)


def dtypes(parameters: Parameters, case: Case, kind: str) -> tuple[str, ...]:
    """The formats that a case is measured in on a kind of device, unless one is given."""
    return (parameters.dtype,) if parameters.dtype else case.dtypes(kind)


def cases(parameters: Parameters) -> list[Case]:
    """The scale's cases, those of the ablation behind them, with the given sizes in place of their
    own and without repeats."""
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
            if case.phase == "prefill" and case.query_len == case.cache_len:
                own.setdefault("query_len", parameters.seq_len)
        if own:
            own |= {"name": None, "model": None}
        found[_checked(msgspec.structs.replace(case, **own))] = None
    return list(found)


def ablation(parameters: Parameters) -> list[Shape]:
    """The shapes of the projection's ablation that take part, the fewest queries first: all of the
    same prefix, those of other cases among them."""
    every = [case for case in cases(parameters) if case.phase == "prefill" and case.causal]
    prefixes = [(case.batch, case.cache_len, case.heads) for case in every]
    if not prefixes:
        return []
    most = max(dict.fromkeys(prefixes), key=prefixes.count)
    found = {
        Shape(case.batch, case.query_len, case.cache_len, case.heads)
        for case, prefix in zip(every, prefixes, strict=True)
        if prefix == most
    }
    return sorted(found)


def _checked(case: Case) -> Case:
    operation.positive(
        batch=case.batch, heads=case.heads, query_len=case.query_len, seq_len=case.cache_len
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
