"""One implementation's calls of attention under the profiler, all in one run of the program.

Starting the program takes longer than counting a call, so the first case that is asked for brings
all of them. Where that fails, each case is tried by itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import zenrepro
from zenrepro.backends import Unavailable
from zenrepro.experiments import profiled
from zenrepro.experiments.profiled import Call, Outcome, Plan
from zenrepro.measure import counters
from zenrepro.measure.counters import Kernel
from zenrepro.ops.attention.cases import Case
from zenrepro.ops.entry import Entry
from zenrepro.records import Status

if TYPE_CHECKING:
    from zenrepro.experiments.session import Session

# Counters that one run of the program reads, so that each kernel needs few passes.
RUNS = (counters.MEMORY, counters.MULTIPROCESSORS)
# Imports, compilers of device code and the fp64 reference take most of it.
_START_S, _CALL_S = 120.0, 20.0
_LISTED = 12  # kernels of a call that are listed one by one


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
        entry: Entry,
        cases: Sequence[tuple[Case, str]],
        repeats: int,
        refusals: list[str],
    ) -> None:
        self.run, self.entry, self.repeats, self.refusals = run, entry, repeats, refusals
        self.waiting = list(cases)
        self.seen: dict[tuple[Case, str], Seen] = {}

    def see(self, case: Case, dtype: str) -> Seen:
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

    def _watch(self, cases: Sequence[tuple[Case, str]]) -> dict[tuple[Case, str], Seen]:
        self.run.backend.release()  # the program wants the device's memory
        plan = Plan(
            implementation=self.entry.name,
            device=self.run.hardware.device,
            seed=self.run.seed,
            repeats=self.repeats,
            calls=[
                Call(name=f"c{i}", case=case, dtype=dtype) for i, (case, dtype) in enumerate(cases)
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
            wanted: seen_of(outcomes.get(f"c{i}"), f"c{i}", *kernels, repeats=self.repeats)
            for i, wanted in enumerate(cases)
        }


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
