"""What a run writes down when a notebook or its kernel fails: records that say so."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import msgspec

from zenrepro.cli.jobs import Job
from zenrepro.cli.watch import Watch
from zenrepro.errors import InputError
from zenrepro.experiments import drafts, provenance
from zenrepro.paths import Project
from zenrepro.records import Kind, Origin, Record, Status
from zenrepro.results.store import Store

# The notebook itself as a record: how many of its cells failed. Written when one fails, and
# replaced once none does.
QUANTITY, METRIC = "count", "failed_cells"


def store_death(project: Project, watch: Watch) -> None:
    """Store the records of the point in which the kernel died; one that knows why keeps that."""
    if watch.measuring is None:
        return
    reason = f"the process died while measuring {watch.measuring.name}"
    _store(project, watch).put(
        [msgspec.structs.replace(r, reason=r.reason or reason) for r in watch.measuring.if_it_dies]
    )


def note_notebook(project: Project, job: Job, watch: Watch, problem: str | None) -> None:
    """Store that the notebook failed and where, or that it no longer does."""
    store = _store(project, watch)
    reason = None if problem is None else provenance.without_places(problem)
    record = _record(project, job, reason)
    if problem is None:
        earlier = [r for r in _of(store, job) if r.identity() == record.identity()]
        if not earlier or earlier[0].status is Status.OK:
            return
    try:
        store.put([record])
    except InputError as error:
        print(f"{job.experiment} {job.backend}: {error}", file=sys.stderr)


def _store(project: Project, watch: Watch) -> Store:
    edited = watch.planned.edited if watch.planned is not None else None
    return drafts.stores(project, edited)[-1]


def _of(store: Store, job: Job) -> list[Record]:
    if job.hardware.machine not in store.machines():
        return []
    return store.load(job.hardware.machine, job.experiment)


def _record(project: Project, job: Job, problem: str | None) -> Record:
    commit, dirty = provenance.commit(project)
    return Record(
        experiment=job.experiment,
        quantity=QUANTITY,
        metric=METRIC,
        implementation=f"{job.backend}.notebook",
        conditions={},
        unit="count",
        status=Status.OK if problem is None else Status.FAILED,
        samples=[0.0] if problem is None else [],
        reason=problem,
        kind=Kind.COUNTED,
        origin=Origin.OURS,
        machine=job.hardware.machine,
        device_class=job.hardware.device_class,
        environment=job.hardware.environment,
        parameters=job.given,
        commit=commit,
        dirty=dirty,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
