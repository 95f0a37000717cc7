"""`zenrepro run` and `zenrepro make`: execute notebooks, resume, and render what they left."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zenrepro.cli.arguments import Commands, command, project
from zenrepro.errors import InputError

if TYPE_CHECKING:
    from zenrepro.cli.jobs import Choice, Job
    from zenrepro.cli.watch import Watch
    from zenrepro.paths import Project

SCALES = ("smoke", "small", "full")


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    run = command(commands, "run", _run, "run experiments by papermill; measures what is missing")
    run.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    run.add_argument("--all", action="store_true", help="every experiment of the project")
    _selection(run)
    run.add_argument("-p", dest="assignments", action="append", default=[], metavar="KEY=VALUE",
                     help="a parameter of the notebook; may be repeated")  # fmt: skip
    run.add_argument("--force", action="store_true", help="measure also what is fresh")
    run.add_argument("--dry-run", action="store_true", help="list what would be measured")
    make = command(commands, "make", _make, "run what is stale, then make the PDF and the HTML")
    _selection(make)
    make.add_argument("--only", action="append", default=[], metavar="EXPERIMENT",
                      help="run only this experiment; may be repeated")  # fmt: skip
    make.add_argument("--no-render", action="store_true", help="run only, make no report")


def _selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="B", help="torch, jax or mlx (default: all)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda:1, … (default: the best one)")
    parser.add_argument("--scale", choices=SCALES, help="default: full on a GPU with 80 GB, "
                        "else small")  # fmt: skip


def _run(given: argparse.Namespace) -> int:
    here = project(given)
    if given.all == bool(given.experiments):
        raise InputError(
            "name experiments or say --all; this project has: "
            f"{', '.join(here.experiments) or 'none'}"
        )
    names = list(here.experiments) if given.all else given.experiments
    jobs = _jobs(here, names, _choice(given, given.assignments))
    if given.dry_run:
        from zenrepro.cli.dryrun import dry_run

        return dry_run(here, jobs, force=given.force)
    return run_jobs(here, jobs, force=given.force)


def _make(given: argparse.Namespace) -> int:
    here = project(given)
    for name in given.only:
        here.notebook(name)
    names = given.only or list(here.experiments)
    jobs = _jobs(here, names, _choice(given)) if _any_framework() else []
    status, refused = 0, None
    try:
        status = run_jobs(here, jobs, force=False)
    except InputError as error:
        refused = error  # told at the end: what there is, is rendered all the same
    if not given.no_render:
        from zenrepro.cli.reporting import up_to_date_report

        status = max(status, up_to_date_report(here))
    if refused is not None:
        raise refused
    return status


def _any_framework() -> bool:
    """Whether experiments can run at all; where not, says so: what there is can be rendered."""
    from zenrepro import hardware

    if not all(hardware.absent(backend, "cpu") for backend in hardware.BACKENDS):
        return True
    print(
        f"left out: every experiment: none of {', '.join(hardware.BACKENDS)} is installed here",
        file=sys.stderr,
    )
    return False


def _choice(given: argparse.Namespace, assignments: Sequence[str] = ()) -> Choice:
    from zenrepro.cli.jobs import Choice

    return Choice(
        backend=given.backend, device=given.device, scale=given.scale, assignments=assignments
    )


def _jobs(here: Project, names: Sequence[str], choice: Choice) -> list[Job]:
    from zenrepro import hardware
    from zenrepro.cli.jobs import jobs

    if choice.backend is not None and choice.backend not in hardware.BACKENDS:
        raise InputError(
            f"unknown backend {choice.backend!r}; wanted one of {', '.join(hardware.BACKENDS)}"
        )
    found, left_out = jobs(here, names, choice)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return found


def run_jobs(here: Project, jobs: Sequence[Job], *, force: bool) -> int:
    """Run the jobs that have something to do, one after the other; returns the exit status.

    A job that fails is told in a line, and the next one runs. Raises InputError at the end where
    a notebook was told bad input or results could not be written.
    """
    from zenrepro.cli import stamps

    for folder in (here.results, here.build, here.local):
        _check_writable(folder)
    failed = False
    refused: list[InputError] = []
    for job in jobs:
        if not force and stamps.is_fresh(here, job):
            print(f"{job.experiment} {job.backend}: up to date", file=sys.stderr)
            continue
        try:
            failed |= not _run_job(here, job, force)
        except InputError as error:
            if len(jobs) > 1:
                print(f"{job.experiment} {job.backend}: {error}", file=sys.stderr)
            refused.append(error)
    if refused:
        raise refused[0]
    return 1 if failed else 0


def _check_writable(folder: Path) -> None:
    """Refuse before anything runs what could not be stored afterwards."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "is not writable" if existing.is_dir() else "is a file where a folder must be"
        raise InputError(f"{existing} {what}; nothing was run")


def _run_job(here: Project, job: Job, force: bool) -> bool:
    """Execute one notebook, again after each point that its kernel died in; whether all went well.

    Raises InputError where the notebook was told bad input or results could not be written.
    """
    from zenrepro.cli import execute, failures, stamps
    from zenrepro.cli.watch import Watch
    from zenrepro.experiments.progress import duration

    began, started_ns = time.monotonic(), time.time_ns()
    output = job.output(here.build)
    events = here.local / "events" / f"{job.name}.{os.getpid()}.jsonl"
    events.parent.mkdir(parents=True, exist_ok=True)
    variables = {
        "ZENREPRO_EVENTS": str(events),
        "ZENREPRO_RUN_STARTED": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "ZENREPRO_FORCE": "1" if force else "0",
    }
    problem: Exception | None = None
    died_in = ""
    with execute.scratch(output) as running:
        while True:
            with Watch(events) as watch:
                try:
                    problem = None
                    execute.execute(job.notebook, running, job.given, variables, here.root)
                except (execute.CellError, execute.KernelDied, InputError) as error:
                    problem = error
            point = watch.measuring.name if watch.measuring is not None else died_in
            if not isinstance(problem, execute.KernelDied) or point == died_in:
                break
            died_in = point
            failures.store_death(here, watch)
            print(f"  {point}: the process died; going on without it", file=sys.stderr)
        # One that refused its input says nothing: what an earlier run left stays.
        if running.exists() and not isinstance(problem, InputError):
            stamps.stamp_path(here, job).unlink(missing_ok=True)
            running.replace(_destination(here, job, watch))
    if isinstance(problem, InputError):
        raise problem
    failures.note_notebook(here, job, watch, None if problem is None else str(problem))
    took = duration(time.monotonic() - began)
    if problem is not None:
        print(f"{job.experiment} {job.backend}: FAILED, {problem}  ({took})", file=sys.stderr)
        return False
    if watch.planned is not None and watch.planned.edited is None:
        stamps.write(here, job, started_ns)
    shown = _destination(here, job, watch).relative_to(here.root)
    print(f"{job.experiment} {job.backend}: done in {took}, {shown}", file=sys.stderr)
    return watch.statuses.get("failed", 0) == 0


def _destination(here: Project, job: Job, watch: Watch) -> Path:
    """Where the executed notebook goes: with the results it made, or with the drafts."""
    edited = watch.planned is not None and watch.planned.edited is not None
    output = job.output(here.local / "drafts" if edited else here.build)
    output.parent.mkdir(parents=True, exist_ok=True)
    return output
