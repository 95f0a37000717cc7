"""What the experiments on one op share: choosing rows of its table, the gate, rates from samples.

An op's ``Problem`` is one case drawn: ``call(entry)`` is an implementation on its inputs,
``judge(call)`` the gate, ``compared`` what the gate looks at, in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from zenrepro import specs
from zenrepro.backends import Backend
from zenrepro.errors import InputError
from zenrepro.experiments.point import UNITS, Prepared, Result
from zenrepro.experiments.session import Session
from zenrepro.measure import Sampled
from zenrepro.ops.entry import Entry, UnsupportedError
from zenrepro.ops.gate import Verdict
from zenrepro.records import Status, Work

# What says that an implementation cannot run a case: the two quantities that tables ask for.
NOT_RUN = [("time", "call"), ("throughput", "rate")]


class Problem(Protocol):
    """One case drawn, with its gate."""

    @property
    def compared(self) -> str: ...
    def call(self, entry: Entry) -> Callable[[], Any]: ...
    def judge(self, call: Callable[[], Any]) -> Verdict: ...


class Peaks(NamedTuple):
    """What the vendor states of the device for one format, in base units; None where it does not.

    ``data`` are the project's files that this was read from.
    """

    flop_rate: float | None = None
    bandwidth: float | None = None
    data: tuple[str, ...] = ()


class Sizes(NamedTuple):
    """What one call does: counted work, tokens, the output's bytes.

    ``moved_bytes``: what the implementation must move by count, where that is more than the least.
    """

    work: Work
    tokens: int
    out_bytes: float
    moved_bytes: float | None = None


def peaks(run: Session, dtype: str) -> Peaks:
    """The datasheet's dense matrix rate and bandwidth of the session's device."""
    platform = run.hardware.device_class.platform
    path = run.project.hardware / f"{platform}.yaml"
    if not path.is_file():
        return Peaks()
    sheet = specs.load(run.project.hardware)[platform]
    return Peaks(
        sheet.figure("flop_rate", "dense", dtype),
        sheet.figure("bandwidth", "peak"),
        (path.relative_to(run.project.root).as_posix(),),
    )


def chosen(op: str, table: Sequence[Entry], backend: str, names: str | None) -> list[Entry]:
    """The backend's rows that are asked for (comma-separated; None: all), in the table's order.

    Raises InputError for a name that the table does not have.
    """
    rows = [entry for entry in table if entry.backend == backend]
    if names is None:
        return rows
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {entry.algorithm for entry in rows} | {entry.name for entry in rows}
    for name in wanted:
        if name not in known:
            raise InputError(
                f"implementations: {backend} has no {op} {name!r}; "
                f"it has {', '.join(entry.algorithm for entry in rows)}"
            )
    return [entry for entry in rows if entry.algorithm in wanted or entry.name in wanted]


def positive(**sizes: int | None) -> None:
    """Raise InputError for a size that is given and is no positive number."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"{name}: wants a positive whole number, got {size}")


def produces(phase: str, kind: str, stated: Peaks) -> list[tuple[str, str]]:
    """What a point of this phase writes. A CPU does not tell what memory one call takes;
    utilisation wants a datasheet."""
    out = [("error", "relative"), ("time", "call"), ("flop_rate", "rate"), ("throughput", "rate")]
    if phase == "decode":
        out.append(("bandwidth", "rate"))
    if kind != "cpu":
        out.append(("memory", "working"))
    if stated.flop_rate is not None:
        out.append(("utilisation", "compute"))
    if stated.bandwidth is not None:
        out.append(("utilisation", "bandwidth"))
    return out


class Drawn:
    """One problem at a time: shared by the implementations that follow each other on one case."""

    def __init__(self, backend: Callable[[], Backend]) -> None:
        self._backend = backend
        self._key: Any = None
        self._problem: Any = None

    def get(self, key: Any, draw: Callable[[], Any]) -> Any:
        """The problem of this key, drawn if the last one was another."""
        if self._key != key or self._problem is None:
            self._problem = None  # before drawing: two large cases do not fit beside each other
            self._backend().release()
            self._problem, self._key = draw(), key
        return self._problem


def prepare(
    entry: Entry,
    names: list[tuple[str, str]],
    sizes: Sizes,
    stated: Peaks,
    draw: Callable[[], Problem],
) -> Prepared | list[Result]:
    """Draw, and gate: a wrong output has a reason and no speed."""
    try:
        problem = draw()
        call = problem.call(entry)
        verdict = problem.judge(call)
    except UnsupportedError as error:
        return without(names, Status.UNSUPPORTED, f"{entry.name}: {error}")
    if not verdict.passed:
        return without(names, Status.FAILED, f"{entry.name}: {verdict.reason}")
    error_result = Result(
        quantity="error",
        metric="relative",
        unit="1",
        samples=[] if verdict.error is None else [verdict.error],
        method=f"Frobenius norm, {problem.compared}; bound {verdict.bound:.2e}",
    )

    def finish(sampled: Sampled) -> list[Result]:
        return [error_result, *rates(sampled, names, sizes, stated)]

    return Prepared(call, finish)


def rates(
    sampled: Sampled, names: list[tuple[str, str]], sizes: Sizes, stated: Peaks
) -> Iterator[Result]:
    """Each announced quantity but the error, from the same samples."""
    work, tokens = sizes.work, sizes.tokens
    flops, least = work.flops or 0.0, work.bytes or 0.0
    of = partial(Result.of, sampled, work=work)
    yield of("time", "call", "s")
    yield of("flop_rate", "rate", "FLOP/s", lambda s: flops / s)
    yield of("throughput", "rate", "token/s", lambda s: tokens / s)
    if ("bandwidth", "rate") in names:
        yield of("bandwidth", "rate", "B/s", lambda s: least / s)
    if ("memory", "working") in names:
        yield _memory(sampled, sizes)
    if stated.flop_rate is not None:
        peak = stated.flop_rate
        made = of("utilisation", "compute", "%", lambda s: 100 * flops / s / peak)
        yield _said(made, f"useful FLOPs a second over the {peak / 1e12:g} TFLOP/s that are stated")
    if stated.bandwidth is not None:
        peak_bytes, moved = stated.bandwidth, sizes.moved_bytes or least
        made = of("utilisation", "bandwidth", "%", lambda s: 100 * moved / s / peak_bytes)
        yield _said(
            made,
            f"{moved:.6g} B that it must move by count, a second, over the "
            f"{peak_bytes / 1e12:g} TB/s that are stated",
        )


def _said(result: Result, definition: str) -> Result:
    return msgspec.structs.replace(result, method=f"{definition}; {result.method}")


def _memory(sampled: Sampled, sizes: Sizes) -> Result:
    """What the call holds at its peak beyond its inputs and its output."""
    made = Result.of(sampled, "memory", "working", "B")
    if sampled.peak_bytes is None:
        reason = made.reason or "the backend does not tell this call's peak"
        status = Status.UNSUPPORTED if made.samples else made.status
        return msgspec.structs.replace(made, samples=[], status=status, reason=reason)
    if not made.samples:
        return made
    method = "peak of the allocator during one call, less what was held before and the output"
    held = max(0.0, sampled.peak_bytes - sizes.out_bytes)
    return msgspec.structs.replace(made, samples=[held], method=method)


def without(names: list[tuple[str, str]], status: Status, reason: str) -> list[Result]:
    """Results without a number, one for each announced quantity."""
    return [
        Result(quantity=q, metric=m, unit=UNITS.get(q, "1"), status=status, reason=reason)
        for q, m in names
    ]
