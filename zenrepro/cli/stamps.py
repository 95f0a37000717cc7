"""Which jobs have nothing to do: told from files, without running the notebook.

Beside each executed notebook lies a stamp of what it was run with and from. A file whose size and
time are as stamped was not changed; any other is fingerprinted as freshness does it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from zenrepro.cli.jobs import Job
from zenrepro.errors import InputError
from zenrepro.paths import Project
from zenrepro.records import Inputs, Record, Status
from zenrepro.results.store import Store, write_atomically
from zenrepro.sources import changed
from zenrepro.sources.files import Files

Look = tuple[int, int] | None
"""A file's time and size; None for one that is not there."""


class Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an executed notebook was run with and from."""

    given: dict[str, Any]
    missing: str | None
    device_class: Any
    environment: dict[str, Any]
    records: str
    inputs: Inputs
    looks: dict[str, Look]


def is_fresh(project: Project, job: Job) -> bool:
    """Whether the job's executed notebook and records are what running it now would leave."""
    path = stamp_path(project, job)
    if not job.output(project.build).is_file():
        return False
    try:
        stamp = msgspec.json.decode(path.read_bytes(), type=Stamp)
    except (OSError, msgspec.DecodeError):  # none yet, or of another version: run it
        return False
    records = _records(project, job)
    now = _now(job)
    if (stamp.given, stamp.missing, stamp.device_class, stamp.environment) != now:
        return False
    if stamp.records != _digest(records):
        return False
    files = Files(project)
    touched = {name for name, look in stamp.looks.items() if _look(files, name) != look}
    suspect = Inputs(
        sources={name: h for name, h in stamp.inputs.sources.items() if name in touched},
        data={name: h for name, h in stamp.inputs.data.items() if name in touched},
    )
    return not changed(project, suspect, files)


def write(project: Project, job: Job, started_ns: int) -> None:
    """Stamp a job that just ended; one with failed records, or none, gets no stamp.

    Nor does one of whose files some were written since ``started_ns``: what ran was the old text.
    """
    path = stamp_path(project, job)
    records = _records(project, job)
    if not records or any(record.status is Status.FAILED for record in records):
        path.unlink(missing_ok=True)
        return
    files = Files(project)
    inputs = Inputs(
        sources={n: h for record in records for n, h in record.inputs.sources.items()},
        data={n: h for record in records for n, h in record.inputs.data.items()},
    )
    looks = {name: _look(files, name) for name in (*inputs.sources, *inputs.data)}
    if any(look is None or look[0] >= started_ns for look in looks.values()):
        path.unlink(missing_ok=True)
        return
    given, missing, device_class, environment = _now(job)
    stamp = Stamp(
        given=given,
        missing=missing,
        device_class=device_class,
        environment=environment,
        records=_digest(records),
        inputs=inputs,
        looks=looks,
    )
    write_atomically(path, msgspec.json.format(msgspec.json.encode(stamp), indent=1))


def stamp_path(project: Project, job: Job) -> Path:
    """Where a job's stamp lies: with its executed notebook, so that both go by `make clean`."""
    return job.output(project.build).with_name(f".{job.name}.stamp.json")


def _now(job: Job) -> tuple[Any, ...]:
    environment = msgspec.to_builtins(job.hardware.environment.stable())
    return job.given, job.missing, msgspec.to_builtins(job.hardware.device_class), environment


def _records(project: Project, job: Job) -> list[Record]:
    """The records that this job's notebook wrote to the project's results."""
    store = Store(project.results)
    try:
        found = store.load(job.hardware.machine, job.experiment)
    except InputError:
        return []  # the session that runs then names the broken file
    return [record for record in found if record.parameters.get("backend") == job.backend]


def _digest(records: Iterable[Record]) -> str:
    return hashlib.sha256(msgspec.json.encode(list(records))).hexdigest()


def _look(files: Files, name: str) -> Look:
    path = files.path(name)
    if path is None:
        return None
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
