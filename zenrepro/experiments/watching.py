"""One implementation's calls under the profiler, all in one run of the program.

Starting the program takes longer than counting a call, so the first case that is asked for brings
all of them. Where that fails, each case is tried by itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

import zenrepro
from zenrepro.backends import Unavailable
from zenrepro.experiments import profiled
from zenrepro.experiments.point import Point, Result
from zenrepro.experiments.profiled import Call, Outcome, Plan
from zenrepro.formats import element_bytes
from zenrepro.measure import counters
from zenrepro.measure.counters import Kernel
from zenrepro.ops.entry import Entry
from zenrepro.records import Status, Work

if TYPE_CHECKING:
    from zenrepro.experiments.session import Session

# Counters that one run of the program reads, so that each kernel needs few passes.
RUNS = (counters.MEMORY, counters.MULTIPROCESSORS)
# Imports, compilers of device code and the fp64 reference take most of it.
_START_S, _CALL_S = 120.0, 20.0
_LISTED = 12  # kernels of a call that are listed one by one
REPEATS = 3  # of each call: its samples
MEASURED = [
    ("traffic", "device"), ("traffic", "l2"), ("traffic", "multiprocessors"),
    ("utilisation", "dram"), ("utilisation", "tensor_pipe"), ("memory", "working"),
]  # fmt: skip
# What says that no counter is read of an implementation.
NOT_READ = [("traffic", "device")]
_UNITS = {"traffic": "B", "memory": "B", "utilisation": "%"}


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one case: a number a repeat each, in bytes and percent, or why not."""

    status: Status = Status.OK
    reason: str | None = None
    device_bytes: list[float] = []
    l2_bytes: list[float] = []
    arrived_bytes: list[float] = []
    dram_percent: list[float] = []
    tensor_percent: list[float] = []
    peak_bytes: int | None = None
    method: str | None = None
    kernels: list[str] = []


class Watch:
    """The cases of one implementation, each in a dtype; counted when the first is asked for.

    ``refusals`` is shared by the watches of a session: what keeps one from counters keeps all.
    """

    def __init__(
        self,
        run: Session,
        op: Literal["attention", "mla"],
        entry: Entry,
        cases: Sequence[tuple[Any, str]],
        refusals: list[str],
    ) -> None:
        self.run, self.op, self.entry, self.refusals = run, op, entry, refusals
        self.waiting = [c for c in cases if self._status(*c) is None]
        self.seen: dict[tuple[Any, str], Seen] = {}

    def _status(self, case: Any, dtype: str) -> tuple[Status, str] | None:
        return self.entry.status(self.run.hardware, case.conditions(dtype))

    def point(
        self,
        case: Any,
        dtype: str,
        work: Work,
        *,
        rows: Sequence[str],
        unavailable: tuple[Status, str] | None,
        **common: Any,
    ) -> Point:
        """What counters tell of a case. ``unavailable``: why they tell nothing of any."""
        reason = unavailable or self._status(case, dtype)
        loaded = profiled.modules(self.op)
        return Point(
            produces=NOT_READ if reason else MEASURED,
            measure=partial(self._results, case, dtype, work),
            modules=[
                self.entry.module, profiled.__name__, counters.__name__, loaded["problem"],
            ],
            rows=rows,
            unavailable=reason,
            packages={} if reason else self.entry.versions(),
            **common,
        )  # fmt: skip

    def _results(self, case: Any, dtype: str, work: Work) -> list[Result]:
        return results(self.see(case, dtype), case.conditions(dtype), work)

    def see(self, case: Any, dtype: str) -> Seen:
        """What the counters tell of a case; never raises for what the profiler does."""
        wanted = (case, dtype)
        if wanted not in self.seen:
            together = self.waiting if wanted in self.waiting else [wanted]
            self.waiting = []
            try:
                if self.refusals:
                    raise Unavailable(self.refusals[0])
                self.seen |= self._watch(together)
            except Unavailable as error:
                self.refusals.append(str(error))
                gone = Seen(status=Status.UNSUPPORTED, reason=str(error))
                self.seen |= dict.fromkeys(together, gone)
            except counters.CountersError as error:
                if len(together) > 1:
                    return self.see(case, dtype)  # by itself, and the others likewise
                reason = f"{self.entry.name}: {error}"
                self.seen[wanted] = Seen(status=Status.FAILED, reason=reason)
        return self.seen[wanted]

    def _watch(self, cases: Sequence[tuple[Any, str]]) -> dict[tuple[Any, str], Seen]:
        self.run.backend.release()  # the program wants the device's memory
        plan = Plan(
            op=self.op,
            implementation=self.entry.name,
            device=self.run.hardware.device,
            seed=self.run.seed,
            repeats=REPEATS,
            calls=[
                Call(name=f"c{i}", case=msgspec.to_builtins(case), dtype=dtype)
                for i, (case, dtype) in enumerate(cases)
            ],
        )
        kernels: list[list[Kernel]] = []
        outcomes: dict[str, Outcome] = {}
        with tempfile.TemporaryDirectory(prefix="zenrepro-") as folder:
            given, said = Path(folder) / "plan.json", Path(folder) / "outcomes.jsonl"
            given.write_bytes(msgspec.json.encode(plan))
            for metrics in RUNS:
                kernels.append(
                    counters.read(
                        [sys.executable, "-m", profiled.__name__, str(given), str(said)],
                        metrics,
                        timeout_s=_START_S + _CALL_S * len(cases),
                        environment=_environment(),
                    )
                )
                for name, outcome in _outcomes(said).items():
                    if outcomes.get(name, outcome).status is Status.OK:  # a failed one stays
                        outcomes[name] = outcome
        return {
            wanted: seen_of(outcomes.get(f"c{i}"), f"c{i}", *kernels, repeats=REPEATS)
            for i, wanted in enumerate(cases)
        }


def blind(run: Session) -> tuple[Status, str] | None:
    """Why no counters are read of any call here, as far as is known before trying."""
    reason = counters.absent(run.hardware.device)
    if reason is None and run.parameters.backend != "torch":
        reason = f"hardware counters are read of torch's calls, not of {run.parameters.backend}'s"
    return None if reason is None else (Status.UNSUPPORTED, reason)


def results(seen: Seen, conditions: Mapping[str, Any], work: Work) -> list[Result]:
    """``MEASURED`` of what was seen under these conditions, each repeat a sample."""
    each = f"{seen.method}; kernels of the first call: {'; '.join(seen.kernels)}"
    columns = {
        ("traffic", "device"): (seen.device_bytes, each),
        ("traffic", "l2"): (seen.l2_bytes, seen.method),
        ("traffic", "multiprocessors"): (seen.arrived_bytes, seen.method),
        ("utilisation", "dram"): (seen.dram_percent, seen.method),
        ("utilisation", "tensor_pipe"): (seen.tensor_percent, seen.method),
    }
    made = []
    for quantity, metric in MEASURED:
        result = Result(quantity=quantity, metric=metric, unit=_UNITS[quantity], work=work)
        if seen.status is not Status.OK:
            result = Result(
                quantity=quantity, metric=metric, unit=_UNITS[quantity], status=seen.status,
                reason=seen.reason,
            )  # fmt: skip
        elif (quantity, metric) in columns:
            result.samples, result.method = columns[quantity, metric]
            if not result.samples:
                result.status, result.reason = Status.FAILED, "the counter gave no number"
        elif seen.peak_bytes is None:
            result.status, result.reason = Status.UNSUPPORTED, "the allocator tells no peak"
        else:
            result.samples = [max(0.0, seen.peak_bytes - _output_bytes(conditions))]
            result.method = (
                "peak of the allocator during one call, less what was held before and the output"
            )
        made.append(result)
    return made


def _output_bytes(conditions: Mapping[str, Any]) -> float:
    queries = conditions.get("query_len", conditions.get("seq_len", 1))
    width = conditions.get("value_dim", conditions["head_dim"])
    numbers = conditions["batch"] * queries * conditions["heads"] * width
    return float(numbers * element_bytes(conditions["dtype"]))


def _environment() -> dict[str, str]:
    """This process's, with the package where the program finds it."""
    root = str(Path(zenrepro.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _outcomes(path: Path) -> dict[str, Outcome]:
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines()
    found = [msgspec.json.decode(line, type=Outcome) for line in lines if line.endswith(b"}")]
    return {outcome.name: outcome for outcome in found}


def seen_of(
    outcome: Outcome | None,
    name: str,
    memory: Sequence[Kernel],
    multiprocessors: Sequence[Kernel],
    *,
    repeats: int,
) -> Seen:
    """One case's numbers from the kernels of its ranges, in either run of the program.

    Device bytes are what its kernels read and wrote, and what they left unwritten in the L2; shares
    are means over its kernels by their time. A kernel without a number leaves none for its call.
    """
    if outcome is None:
        return Seen(status=Status.FAILED, reason="the program ended before this call")
    if outcome.status is not Status.OK:
        return Seen(status=outcome.status, reason=outcome.reason)
    out = Seen(peak_bytes=outcome.peak_bytes, method=_method(memory, multiprocessors))
    for repeat in range(repeats):
        own, near = (_labelled(k, f"{name}.{repeat}.call") for k in (memory, multiprocessors))
        drained = _labelled(memory, f"{name}.{repeat}.drain")
        if not own or not near or not drained:
            reason = f"the profiler saw no kernel of repeat {repeat}"
            return Seen(status=Status.FAILED, reason=reason)
        moved = [_total(own, metric) for metric in (counters.DRAM_READ, counters.DRAM_WRITTEN)]
        _add(out.device_bytes, *moved, _total(drained, counters.DRAM_WRITTEN))
        sectors = [_total(own, metric) for metric in (counters.L2_READ, counters.L2_WRITTEN)]
        _add(out.l2_bytes, *sectors, factor=counters.SECTOR_BYTES)
        _add(out.arrived_bytes, *(_total(near, m) for m in (counters.ARRIVED, counters.LEFT)))
        _add(out.dram_percent, _mean(own, counters.DRAM_SHARE))
        _add(out.tensor_percent, _mean(near, counters.TENSOR_PIPE))
        if not repeat:
            out.kernels.extend(_table(own))
    return out


def _labelled(kernels: Sequence[Kernel], label: str) -> list[Kernel]:
    return [kernel for kernel in kernels if kernel.label == label]


def _total(kernels: Sequence[Kernel], metric: str) -> float | None:
    values = [kernel.values.get(metric) for kernel in kernels]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _mean(kernels: Sequence[Kernel], metric: str) -> float | None:
    """Mean of a share over kernels, each by its time."""
    total, seconds = 0.0, 0.0
    for kernel in kernels:
        share, took = kernel.values.get(metric), kernel.values.get(counters.SECONDS)
        if share is None or not took:
            return None
        total, seconds = total + share * took, seconds + took
    return total / seconds if seconds else None


def _add(column: list[float], *terms: float | None, factor: float = 1.0) -> None:
    known = [term for term in terms if term is not None]
    if len(known) == len(terms):
        column.append(factor * sum(known))


def _method(memory: Sequence[Kernel], multiprocessors: Sequence[Kernel]) -> str:
    passes = [
        max(kernel.passes or 0 for kernel in kernels) for kernels in (memory, multiprocessors)
    ]
    again = "" if passes[0] == 1 else ", so its caches were not as in one run"
    return (
        f"Nsight Compute, clocks as they are; passes a kernel: {passes[0]} for memory{again}, "
        f"{passes[1]} for the multiprocessors; L2 emptied before the call, and what the call left "
        "unwritten in it driven out and counted"
    )


def _table(kernels: Sequence[Kernel]) -> list[str]:
    """The kernels of one call, a line each."""
    lines = []
    for kernel in kernels[:_LISTED]:
        read, written, seconds = (
            kernel.values.get(metric)
            for metric in (counters.DRAM_READ, counters.DRAM_WRITTEN, counters.SECONDS)
        )
        lines.append(
            f"{_short(kernel.name)} {_mb(read)} read, {_mb(written)} written"
            + (f", {seconds * 1e6:.1f} µs" if seconds is not None else "")
        )
    if len(kernels) > _LISTED:
        lines.append(f"and {len(kernels) - _LISTED} more kernels")
    return lines


def _mb(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:.3g} MB"


def _short(name: str) -> str:
    """A kernel's name without its template and call arguments."""
    bare = name.removeprefix("void ").partition("<")[0] if not name.startswith("void <") else name
    return bare.partition("(")[0].strip()[:80] or name[:80]
