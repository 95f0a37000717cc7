"""Attention at op level: time, rates and error of every implementation, prefill and decode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import msgspec

from zenrepro import counts, measure
from zenrepro.errors import InputError
from zenrepro.experiments import session
from zenrepro.experiments.point import UNITS, Point, Result
from zenrepro.formats import element_bytes
from zenrepro.ops.attention.cases import CASES, Case
from zenrepro.ops.attention.problem import Problem
from zenrepro.ops.attention.table import TABLE
from zenrepro.ops.entry import Entry, UnsupportedError
from zenrepro.ops.gate import Verdict
from zenrepro.records import Status, Work

BASELINE = "naive"
# What says that an implementation cannot run a case: the two quantities that tables ask for.
NOT_RUN = [("time", "call"), ("throughput", "rate")]
_TABLE = "zenrepro.ops.attention.table"
_CASES = "zenrepro.ops.attention.cases"


class Parameters(session.Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``implementations``: comma-separated names, with or without the backend. The sizes replace
    those of every case of the scale; ``seq_len`` is the cache's length in decode."""

    implementations: str | None = None
    phase: Literal["prefill", "decode"] | None = None
    batch: int | None = None
    seq_len: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool | None = None
    dtype: Literal["fp32", "bf16", "fp16"] | None = None


def points(run: session.Session) -> Iterator[Point]:
    """One point for each case, dtype and implementation of the session's backend.

    Raises InputError for an implementation that the table does not have, or sizes that do not fit.
    """
    kind = run.hardware.device.partition(":")[0]
    wanted = chosen(run.parameters)
    held: list[Problem] = []
    for case in cases(run.parameters):
        for dtype in dtypes(run.parameters, case, kind):
            for entry in wanted:
                conditions = case.conditions(dtype)
                unavailable = entry.status(run.hardware, conditions)
                yield Point(
                    implementation=entry.name,
                    conditions=conditions,
                    produces=NOT_RUN if unavailable else produces(case, kind),
                    measure=partial(_measure, run, entry, case, dtype, held),
                    origin=entry.origin,
                    modules=[entry.module],
                    rows=[f"{_TABLE}:{entry.name}"]
                    + ([f"{_CASES}:{case.name}"] if case.name else []),
                    unavailable=unavailable,
                    baseline=None if entry.algorithm == BASELINE else f"{entry.backend}.{BASELINE}",
                )


def chosen(parameters: Parameters) -> list[Entry]:
    """The backend's implementations that the parameters ask for, in the table's order."""
    rows = [entry for entry in TABLE if entry.backend == parameters.backend]
    if parameters.implementations is None:
        return rows
    names = [name.strip() for name in parameters.implementations.split(",") if name.strip()]
    known = {entry.algorithm for entry in rows} | {entry.name for entry in rows}
    for name in names:
        if name not in known:
            raise InputError(
                f"implementations: {parameters.backend} has no attention {name!r}; "
                f"it has {', '.join(entry.algorithm for entry in rows)}"
            )
    return [entry for entry in rows if entry.algorithm in names or entry.name in names]


def dtypes(parameters: Parameters, case: Case, kind: str) -> tuple[str, ...]:
    """The formats that a case is measured in on a kind of device, unless one is given."""
    return (parameters.dtype,) if parameters.dtype else case.dtypes(kind)


def cases(parameters: Parameters) -> list[Case]:
    """The scale's cases with the given sizes in place of their own, without repeats."""
    sizes = {
        "batch": parameters.batch, "heads": parameters.heads, "head_dim": parameters.head_dim,
        "value_dim": parameters.head_dim, "kv_heads": parameters.kv_heads or parameters.heads,
        "causal": parameters.causal,
    }  # fmt: skip
    replaced = {key: value for key, value in sizes.items() if value is not None}
    found: dict[Case, None] = {}
    for case in CASES[parameters.scale or "small"]:
        if parameters.phase not in (None, case.phase):
            continue
        change: dict[str, Any] = dict(replaced)
        if parameters.seq_len is not None:
            change["cache_len"] = parameters.seq_len
            if case.phase == "prefill":
                change["query_len"] = parameters.seq_len
        if change:
            change |= {"name": None, "model": None}
        found[_checked(msgspec.structs.replace(case, **change))] = None
    return list(found)


def _checked(case: Case) -> Case:
    sizes = {
        "batch": case.batch, "heads": case.heads, "kv_heads": case.kv_heads,
        "head_dim": case.head_dim, "seq_len": case.cache_len,
    }  # fmt: skip
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name}: wants a positive whole number, got {size}")
    if case.heads % case.kv_heads:
        raise InputError(
            f"kv_heads: wants a number that divides the {case.heads} heads, got {case.kv_heads}"
        )
    if case.causal and case.query_len > case.cache_len:
        raise InputError(
            f"seq_len: wants at least the {case.query_len} queries of a step, got {case.cache_len}"
        )
    return case


def produces(case: Case, kind: str) -> list[tuple[str, str]]:
    """What a point of this case writes. A CPU does not tell what memory one call takes."""
    out = [("error", "relative"), ("time", "call"), ("flop_rate", "rate"), ("throughput", "rate")]
    if case.phase == "decode":
        out.append(("bandwidth", "rate"))
    if kind != "cpu":
        out.append(("memory", "working"))
    return out


def _measure(
    run: session.Session, entry: Entry, case: Case, dtype: str, held: list[Problem]
) -> list[Result]:
    """Gate, then samples. A wrong output has a reason and no speed."""
    names = produces(case, run.backend.kind)
    try:
        problem = _problem(run, case, dtype, held)
        call = problem.call(entry)
        verdict = problem.judge(call)
    except UnsupportedError as error:
        return _without(names, Status.UNSUPPORTED, f"{entry.name}: {error}")
    if not verdict.passed:
        return _without(names, Status.FAILED, f"{entry.name}: {verdict.reason}")
    sampled = measure.sample(run.backend, call, scale=run.scale)
    work = counts.attention_of(case.conditions(dtype))
    return [_error(problem, verdict), *_rates(case, sampled, work, names, problem)]


def _problem(run: session.Session, case: Case, dtype: str, held: list[Problem]) -> Problem:
    """The inputs, shared by the implementations that follow each other on one case."""
    if held and (held[0].case, held[0].dtype) == (case, dtype):
        return held[0]
    held.clear()  # before drawing: two large cases do not fit beside each other
    run.backend.release()
    held.append(Problem(run.backend, case, dtype, run.seed))
    return held[0]


def _error(problem: Problem, verdict: Verdict) -> Result:
    return Result(
        quantity="error",
        metric="relative",
        unit="1",
        samples=[] if verdict.error is None else [verdict.error],
        method=f"Frobenius norm, {problem.compared}; bound {verdict.bound:.2e}",
    )


def _rates(
    case: Case,
    sampled: measure.Sampled,
    work: Work,
    names: list[tuple[str, str]],
    problem: Problem,
) -> Iterator[Result]:
    """Each announced quantity but the error, from the same samples."""
    flops, moved, tokens = work.flops or 0.0, work.bytes or 0.0, case.batch * case.query_len
    of = partial(Result.of, sampled, work=work)
    yield of("time", "call", "s")
    yield of("flop_rate", "rate", "FLOP/s", lambda s: flops / s)
    yield of("throughput", "rate", "token/s", lambda s: tokens / s)
    if ("bandwidth", "rate") in names:
        yield of("bandwidth", "rate", "B/s", lambda s: moved / s)
    if ("memory", "working") in names:
        yield _memory(sampled, problem)


def _memory(sampled: measure.Sampled, problem: Problem) -> Result:
    """What the call holds at its peak beyond its inputs and its output."""
    made = Result.of(sampled, "memory", "working", "B")
    if sampled.peak_bytes is None:
        reason = made.reason or f"{problem.backend.name} does not tell this call's peak"
        status = Status.UNSUPPORTED if made.samples else made.status
        return msgspec.structs.replace(made, samples=[], status=status, reason=reason)
    case = problem.case
    out = case.batch * case.query_len * case.heads * case.value_dim
    size = out * element_bytes(problem.dtype)
    method = "peak of the allocator during one call, less what was held before and the output"
    return msgspec.structs.replace(
        made, samples=[max(0.0, sampled.peak_bytes - size)], method=method
    )


def _without(names: list[tuple[str, str]], status: Status, reason: str) -> list[Result]:
    return [
        Result(quantity=q, metric=m, unit=UNITS.get(q, "1"), status=status, reason=reason)
        for q, m in names
    ]
