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
from zenrepro.experiments.profiled import Call, Outcome, Plan
from zenrepro.measure import counters
from zenrepro.measure.counters import Kernel
from zenrepro.ops.attention.cases import Case
from zenrepro.ops.entry import Entry
from zenrepro.records import Status

if TYPE_CHECKING:
    from zenrepro.experiments.session import Session

METRICS = tuple(dict.fromkeys((*counters.TRAFFIC, *counters.UTILISATION)))
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
    flags: list[str] = []


class Watch:
    """The cases of one implementation; counted when the first of them is asked for."""

    def __init__(
        self, run: Session, entry: Entry, cases: Sequence[Case], dtype: str, repeats: int
    ) -> None:
        self.run, self.entry, self.dtype, self.repeats = run, entry, dtype, repeats
        self.waiting = list(cases)
        self.seen: dict[Case, Seen] = {}

    def see(self, case: Case) -> Seen:
        """What the counters tell of a case; never raises for what the profiler does."""
        if case not in self.seen:
            together = self.waiting if case in self.waiting else [case]
            self.waiting = []
            try:
                self.seen |= self._watch(together)
            except Unavailable as error:
                gone = Seen(status=Status.UNSUPPORTED, reason=str(error))
                self.seen |= dict.fromkeys(together, gone)
            except counters.CountersError as error:
                if len(together) > 1:
                    return self.see(case)  # by itself, and the others likewise
                reason = f"{self.entry.name}: {error}"
                self.seen[case] = Seen(status=Status.FAILED, reason=reason)
        return self.seen[case]

    def _watch(self, cases: Sequence[Case]) -> dict[Case, Seen]:
        self.run.backend.release()  # the program wants the device's memory
        plan = Plan(
            implementation=self.entry.name,
            device=self.run.hardware.device,
            seed=self.run.seed,
            repeats=self.repeats,
            calls=[Call(name=f"c{i}", case=case, dtype=self.dtype) for i, case in enumerate(cases)],
        )
        with tempfile.TemporaryDirectory(prefix="zenrepro-") as folder:
            given, said = Path(folder) / "plan.json", Path(folder) / "outcomes.jsonl"
            given.write_bytes(msgspec.json.encode(plan))
            kernels = counters.read(
                [sys.executable, "-m", "zenrepro.experiments.profiled", str(given), str(said)],
                METRICS,
                timeout_s=_START_S + _CALL_S * len(cases),
                environment=_environment(),
            )
            outcomes = _outcomes(said)
        return {
            case: seen_of(outcomes.get(f"c{i}"), f"c{i}", kernels, self.repeats)
            for i, case in enumerate(cases)
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


def seen_of(outcome: Outcome | None, name: str, kernels: Sequence[Kernel], repeats: int) -> Seen:
    """One case's numbers from the kernels of its ranges.

    Device bytes are what its kernels read and wrote, and what they left unwritten in the L2; shares
    are means over its kernels by their time. A kernel without a number leaves none for its call.
    """
    if outcome is None:
        return Seen(status=Status.FAILED, reason="the program ended before this call")
    if outcome.status is not Status.OK:
        return Seen(status=outcome.status, reason=outcome.reason)
    columns: dict[str, list[float]] = {
        "device": [],
        "l2": [],
        "arrived": [],
        "dram": [],
        "pipe": [],
    }
    first: list[Kernel] = []
    for repeat in range(repeats):
        own = [k for k in kernels if k.label == f"{name}.{repeat}.call"]
        drained = [k for k in kernels if k.label == f"{name}.{repeat}.drain"]
        if not own or not drained:
            return Seen(
                status=Status.FAILED, reason=f"the profiler saw no kernel of repeat {repeat}"
            )
        first = first or own
        read, written, from_l2, to_l2, arrived, left, _ = (_total(own, m) for m in counters.TRAFFIC)
        rest = _total(drained, "dram__bytes_write.sum")
        _add(columns["device"], read, written, rest)
        _add(columns["l2"], from_l2, to_l2, factor=counters.SECTOR_BYTES)
        _add(columns["arrived"], arrived, left)
        _add(columns["dram"], _mean(own, counters.DRAM_SHARE))
        _add(columns["pipe"], _mean(own, counters.TENSOR_PIPE))
    return Seen(
        device_bytes=columns["device"],
        l2_bytes=columns["l2"],
        arrived_bytes=columns["arrived"],
        dram_percent=columns["dram"],
        tensor_percent=columns["pipe"],
        peak_bytes=outcome.peak_bytes,
        method=_method(kernels),
        flags=_table(first),
    )


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


def _method(kernels: Sequence[Kernel]) -> str:
    passes = max([kernel.passes or 0 for kernel in kernels], default=0)
    how = "one pass a kernel" if passes == 1 else f"up to {passes} passes a kernel"
    return (
        f"Nsight Compute, {how}, clocks as they are; L2 emptied before the call, and what the call "
        "left unwritten in it driven out and counted"
    )


def _table(kernels: Sequence[Kernel]) -> list[str]:
    """The kernels of one call, a line each."""
    lines = []
    for kernel in kernels[:_LISTED]:
        get = kernel.values.get
        read, written = get("dram__bytes_read.sum"), get("dram__bytes_write.sum")
        arrived, seconds = get("l1tex__m_xbar2l1tex_read_bytes.sum"), get(counters.SECONDS)
        lines.append(
            f"kernel {_short(kernel.name)}: {_mb(read)} read, {_mb(written)} written, "
            f"{_mb(arrived)} into multiprocessors"
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
