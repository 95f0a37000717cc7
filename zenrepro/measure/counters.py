"""Hardware counters of an NVIDIA GPU, read by Nsight Compute while another program runs.

The program marks what is counted: between ``cudaProfilerStart`` and ``cudaProfilerStop``, inside
NVTX ranges named by ``label``. Every kernel that it launches there becomes a ``Kernel``. Nothing
that the profiler prints is trusted: what does not parse raises, what is not a number is left out.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from zenrepro.backends import Unavailable

# Sectors, the unit in which the L2 counts, are 32 bytes.
SECTOR_BYTES = 32
SECONDS = "gpu__time_duration.sum"
DRAM_READ, DRAM_WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
L2_READ = "lts__t_sectors_srcunit_tex_op_read.sum"
L2_WRITTEN = "lts__t_sectors_srcunit_tex_op_write.sum"
ARRIVED, LEFT = "l1tex__m_xbar2l1tex_read_bytes.sum", "l1tex__m_l1tex2xbar_write_bytes.sum"
DRAM_SHARE = "dram__bytes.sum.pct_of_peak_sustained_elapsed"
TENSOR_PIPE = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
# What depends on the caches: device memory, and what the L2 hands to the multiprocessors and takes
# from them. On sm_90 one pass over a kernel reads them, so none runs twice and caches stay as the
# program left them.
MEMORY = (DRAM_READ, DRAM_WRITTEN, DRAM_SHARE, L2_READ, L2_WRITTEN, SECONDS)
# What does not: bytes as they arrive at the multiprocessors and leave them (neighbours share a
# request to the L2, which is why it hands over less), and how long the tensor pipes work.
MULTIPROCESSORS = (ARRIVED, LEFT, TENSOR_PIPE, SECONDS)

# What base units mean here; a table in other units is refused, not guessed at.
_UNITS = {"byte": 1.0, "sector": 1.0, "ns": 1e-9, "nsecond": 1e-9, "%": 1.0, "": 1.0,
          "inst": 1.0, "cycle": 1.0}  # fmt: skip
_LABEL = "zenrepro."
_LABELLED = re.compile(re.escape(_LABEL) + r"([A-Za-z0-9_.-]+)")
_PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")
_PASSES = "profiler__replayer_passes"
# How the profiler says that this machine's counters are out of reach, and what that means.
_REFUSALS = {
    "ERR_NVGPUCTRPERM": "the driver lets only administrators read hardware counters "
    "(ERR_NVGPUCTRPERM)",
    "LibraryNotLoaded": "Nsight Compute finds no profiler library of the driver (a sandboxed "
    "kernel such as gVisor hides it)",
    "Failed to initialize the profiler": "Nsight Compute cannot start its profiler on this driver",
    "Failed to find metric": "Nsight Compute knows no such counter on this GPU",
    "driver resource was unavailable": "another profiler holds the GPU's counters",
    "Profiling is not supported": "Nsight Compute does not support this GPU",
    "not supported on this device": "Nsight Compute does not support this GPU",
}


class CountersError(Exception):
    """The counters were there but were not read; the message is the reason, in one line."""


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """One launch. ``label`` is the NVTX range it ran in, "" outside of any.

    ``values`` by metric, in bytes, sectors, seconds or percent; a metric without a number is not
    there. ``passes``: how often the profiler ran the kernel to read them, None where it is untold.
    """

    name: str
    label: str
    values: dict[str, float]
    passes: int | None = None


def label(name: str) -> str:
    """What an NVTX range is called so that its kernels get the label ``name``."""
    return _LABEL + name


def executable() -> str | None:
    """The profiler's path, None where there is none."""
    found = shutil.which("ncu")
    return found or next((place for place in _PLACES if os.access(place, os.X_OK)), None)


def absent(device: str) -> str | None:
    """Why counters cannot be read of this device, as far as looking tells; None: try it."""
    if device.partition(":")[0] not in ("cuda", "gpu"):
        return f"no hardware counters are read on {device}: only NVIDIA GPUs, by Nsight Compute"
    if executable() is None:
        return "no hardware counters: Nsight Compute (ncu) is not installed"
    return None


def read(
    program: Sequence[str],
    metrics: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> list[Kernel]:
    """Run ``program`` under the profiler; the kernels that it marked, in launch order.

    Clocks are left as they are and caches as the program leaves them. Raises Unavailable where this
    machine's counters are out of reach, CountersError for a program that fails, takes longer than
    ``timeout_s`` or marks no kernel, and for output that is no table of these metrics.
    """
    ncu = executable()
    if ncu is None:
        raise Unavailable("no hardware counters: Nsight Compute (ncu) is not installed")
    with tempfile.TemporaryDirectory(prefix="zenrepro-") as folder:
        log = Path(folder) / "counters.csv"
        command = [
            ncu, "--csv", "--page", "raw", "--print-units", "base", "--nvtx",
            "--target-processes", "application-only", "--profile-from-start", "off",
            "--clock-control", "none", "--cache-control", "none",
            "--metrics", ",".join(metrics), "--log-file", str(log), *program,
        ]  # fmt: skip
        code, said = _run(command, timeout_s, environment)
        text = log.read_text(errors="replace") if log.is_file() else ""
    for line in (text + "\n" + said).splitlines():
        for words, reason in _REFUSALS.items():
            if words in line and line.startswith("==ERROR=="):
                raise Unavailable(f"no hardware counters: {reason}")
    if code != 0:
        raise CountersError(f"the profiled program ended with {code}: {_last_line(said or text)}")
    if not _tables(text) and _tables(said):
        text = said  # a profiler that prints its table whatever file it is given
    kernels = parse(text, metrics)
    if not kernels:
        raise CountersError(f"the profiler saw no kernel: {_last_line(text)}")
    return kernels


def _run(
    command: list[str], timeout_s: float, environment: Mapping[str, str] | None
) -> tuple[int, str]:
    """Exit status and what was said; the whole process group ends with its time."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment) if environment is not None else None,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CountersError(
                    f"reading counters took longer than {timeout_s:.0f} s"
                ) from None
            raise
    return process.returncode, said


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def parse(text: str, metrics: Sequence[str]) -> list[Kernel]:
    """The kernels of a raw page in CSV, among whatever else was printed.

    Raises CountersError for a table that lacks a metric, is in other than base units, or whose
    rows have another length than its head.
    """
    lines, starts = text.splitlines(), _tables(text)
    if not starts:
        if any(line.startswith("==ERROR==") for line in lines):
            wrong = next(line for line in lines if line.startswith("==ERROR=="))
            raise CountersError(wrong.removeprefix("==ERROR==").strip()[:200])
        return []
    table = [line for line in lines[starts[0] :] if line.startswith('"')]
    try:
        head, units, *rows = csv.reader(table, strict=True)
    except (csv.Error, ValueError) as error:
        raise CountersError(f"the profiler's table does not parse: {error}") from None
    places = _places(head, units, metrics)
    kernels = []
    for row in rows:
        if row in (head, units):  # a second process's table
            continue
        if len(row) != len(head):
            raise CountersError(f"a row of {len(row)} cells in a table of {len(head)} columns")
        kernels.append(_kernel(row, places, metrics))
    return kernels


def _tables(text: str) -> list[int]:
    """The lines on which a table begins."""
    return [i for i, line in enumerate(text.splitlines()) if line.startswith('"ID",')]


class _Places(msgspec.Struct, frozen=True):
    """Where in a row the cells are that are read, and what turns them into base units."""

    name: int
    labels: list[int]
    metrics: list[tuple[int, float]]
    passes: int | None


def _places(head: list[str], units: list[str], metrics: Sequence[str]) -> _Places:
    if len(units) != len(head):
        raise CountersError("the profiler's table has no row of units")
    for wanted in ("Kernel Name", *metrics):
        if head.count(wanted) != 1:
            raise CountersError(f"the profiler's table has {head.count(wanted)} columns {wanted!r}")
    found = []
    for metric in metrics:
        place = head.index(metric)
        if units[place] not in _UNITS:
            raise CountersError(f"{metric} is in {units[place]!r}; wanted a base unit")
        found.append((place, _UNITS[units[place]]))
    return _Places(
        name=head.index("Kernel Name"),
        labels=[i for i, column in enumerate(head) if "Push/Pop_Range" in column],
        metrics=found,
        passes=head.index(_PASSES) if _PASSES in head else None,
    )


def _kernel(row: list[str], places: _Places, metrics: Sequence[str]) -> Kernel:
    values = {}
    for metric, (place, factor) in zip(metrics, places.metrics, strict=True):
        value = _number(row[place])
        if value is not None:
            values[metric] = value * factor
    labels = [m.group(1) for i in places.labels for m in _LABELLED.finditer(row[i])]
    passes = _number(row[places.passes]) if places.passes is not None else None
    return Kernel(
        name=row[places.name],
        label=labels[-1] if labels else "",
        values=values,
        passes=int(passes) if passes is not None else None,
    )


def _number(cell: str) -> float | None:
    """A count as the profiler prints it: digits with commas; None for "n/a", "nan" and others."""
    try:
        value = float(cell.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
