"""`zenrepro run --dry-run`: which points would be measured, why, and how long that may take."""

from __future__ import annotations

import os
from collections.abc import Sequence

from zenrepro.cli import modules
from zenrepro.cli.jobs import Job
from zenrepro.errors import InputError
from zenrepro.experiments import events, session
from zenrepro.experiments.progress import duration
from zenrepro.paths import Project


def dry_run(project: Project, jobs: Sequence[Job], *, force: bool) -> int:
    """Print one line a point that is missing or stale, and the totals; measures nothing."""
    os.environ[events.VARIABLE] = os.devnull
    os.environ["ZENREPRO_FORCE"] = "1" if force else "0"
    total_s, unknown = 0.0, 0
    for job in jobs:
        opened = session.start(job.experiment, job.given, project)
        try:
            plan = opened.plan(modules.points(opened))
        except ValueError as error:  # two points of one identity
            raise InputError(f"experiment {job.experiment}: {error}") from error
        todo = [(point, why) for point, why in plan if why is not None]
        print(f"{job.experiment} {job.backend}: {len(todo)} of {len(plan)} points")
        for point, why in todo:
            seconds = opened.estimate(point)
            if seconds is None:
                unknown += 1
            else:
                total_s += seconds
            shown = "time unknown" if seconds is None else duration(seconds)
            name = events.name(point.implementation, point.conditions)
            print(f"  {name}  {shown}  ({why})")
    more = f", and {unknown} points never measured here" if unknown else ""
    print(f"total: about {duration(total_s)}{more}")
    return 0
