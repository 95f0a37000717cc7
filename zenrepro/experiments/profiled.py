"""The program that a profiler watches: single calls of an op, each after a cold start.

    python -m zenrepro.experiments.profiled PLAN.json OUTCOMES.jsonl

Every call is judged against the reference first, which also warms it up; a wrong one is not
counted. Then the L2 is emptied, the profiler starts, the call runs in an NVTX range
``<name>.<repeat>.call``, and what it left unwritten in the L2 is driven out in a range
``<name>.<repeat>.drain``. Outcomes are written one a line, as they come.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from zenrepro import backends
from zenrepro.measure import counters
from zenrepro.ops.entry import UnsupportedError
from zenrepro.records import Status

if TYPE_CHECKING:
    from zenrepro.backends import Backend

# Emptied by so many bytes at least, and at least so many times the L2's own size.
_FLUSH_BYTES, _FLUSH_TIMES = 2**28, 4


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call; ``name`` is what its ranges and its outcome are known by. ``case``: its op's."""

    name: str
    case: dict[str, Any]
    dtype: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one implementation, each counted ``repeats`` times.

    ``op`` is the folder of ``zenrepro.ops`` whose ``table``, ``cases`` and ``problem`` are used;
    they are loaded by that name, so a record has to declare them.
    """

    op: Literal["attention", "mla"]
    implementation: str
    device: str
    seed: int
    repeats: int
    calls: list[Call]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended. ``peak_bytes``: device memory above what was held; None is unknown."""

    name: str
    status: Status = Status.OK
    reason: str | None = None
    error: float | None = None
    peak_bytes: int | None = None


def modules(op: str) -> dict[str, str]:
    """The modules of an op that a call needs."""
    return {part: f"zenrepro.ops.{op}.{part}" for part in ("table", "cases", "problem")}


def main(arguments: list[str]) -> None:
    """Run the plan; an error of one call is its outcome, and the next one runs.

    Ends with an error when a fault of the device stays, which would take the others along.
    """
    plan = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Plan)
    backend = backends.open("torch", plan.device)
    flush, drain = _caches(backend)
    with Path(arguments[1]).open("wb") as out:
        for call in plan.calls:
            outcome = _outcome(backend, plan, call, flush, drain)
            out.write(msgspec.json.encode(outcome) + b"\n")
            out.flush()
            if outcome.status is Status.FAILED and _is_broken(backend):
                sys.exit(f"the device answers no more: {outcome.reason}")
            backend.release()


def _is_broken(backend: Backend) -> bool:
    """Whether a fault stays: then no later call of this process can be right, and none is tried."""
    try:
        backend.synchronise()
    except Exception:  # noqa: BLE001  (whatever it is, it is not this call's)
        return True
    return False


def _outcome(
    backend: Backend, plan: Plan, call: Call, flush: Callable[[], None], drain: Callable[[], None]
) -> Outcome:
    import torch

    try:
        with torch.inference_mode():
            return _counted(backend, plan, call, flush, drain)
    except Exception as error:  # noqa: BLE001  (told as the call's outcome; the next one runs)
        status = Status.FAILED
        if isinstance(error, UnsupportedError):
            status = Status.UNSUPPORTED
        elif backend.is_out_of_memory(error):
            status = Status.OOM
        said = " ".join(str(error).split())[:300] or type(error).__name__
        return Outcome(name=call.name, status=status, reason=f"{plan.implementation}: {said}")


def _counted(
    backend: Backend, plan: Plan, call: Call, flush: Callable[[], None], drain: Callable[[], None]
) -> Outcome:
    of = {part: importlib.import_module(name) for part, name in modules(plan.op).items()}
    entry = next(row for row in of["table"].TABLE if row.name == plan.implementation)
    case = msgspec.convert(call.case, of["cases"].Case)
    problem = of["problem"].Problem(backend, case, call.dtype, plan.seed)
    run = problem.call(entry)
    verdict = problem.judge(run)
    if not verdict.passed:
        reason = f"{entry.name}: {verdict.reason}"
        return Outcome(name=call.name, status=Status.FAILED, reason=reason, error=verdict.error)
    peak = backend.peak_memory(run)
    backend.release()
    for repeat in range(plan.repeats):
        flush()
        with _profiled(backend):
            _ranged(backend, f"{call.name}.{repeat}.call", run)
            _ranged(backend, f"{call.name}.{repeat}.drain", drain)
    return Outcome(name=call.name, error=verdict.error, peak_bytes=peak)


class _profiled:  # noqa: N801  (used as a statement)
    """Between these two the profiler looks."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __enter__(self) -> None:
        import torch

        self.backend.synchronise()
        torch.cuda.cudart().cudaProfilerStart()

    def __exit__(self, *_: object) -> None:
        import torch

        self.backend.synchronise()
        torch.cuda.cudart().cudaProfilerStop()


def _ranged(backend: Backend, name: str, run: Callable[[], Any]) -> None:
    import torch

    torch.cuda.nvtx.range_push(counters.label(name))
    try:
        result = run()
        backend.synchronise(result)
    finally:
        torch.cuda.nvtx.range_pop()


def _caches(backend: Backend) -> tuple[Callable[[], None], Callable[[], None]]:
    """(empty the L2, drive out what is unwritten in it). Emptying writes one buffer and reads
    another, twice: no line of the call's, and none unwritten, is left. Driving out only reads.

    After one round an H200 still held up to 4.5 of 16.8 MB that a kernel had asked it to keep."""
    import torch

    properties = torch.cuda.get_device_properties(backend.index)
    size = max(_FLUSH_TIMES * int(getattr(properties, "L2_cache_size", 0) or 0), _FLUSH_BYTES)
    written = torch.empty(size // 4, dtype=torch.int32, device=backend.device)
    read = torch.ones(size // 4, dtype=torch.float32, device=backend.device)
    total = torch.empty((), dtype=torch.float32, device=backend.device)

    def drain() -> None:
        torch.sum(read, dim=0, out=total)

    def flush() -> None:
        for _ in range(2):
            written.zero_()
            drain()
        backend.synchronise()

    drain()  # compiled before it is counted
    return flush, drain


if __name__ == "__main__":
    main(sys.argv[1:])
