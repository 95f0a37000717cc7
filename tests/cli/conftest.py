"""A small project with a notebook that papermill really runs, and the command line on it.

Its experiment measures nothing: points append to ``measured.log``, so that tests can count them,
and fail, die or take long as environment variables say. Its backend is a fake one, so that no
framework is imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zenrepro.records import Record
from zenrepro.results.store import Store

PACKAGE = Path(__file__).resolve().parents[2]

EXPERIMENT = """
import os
import signal
import time
from types import SimpleNamespace
from typing import Literal

from zenrepro import backends, hardware
from zenrepro.experiments.session import Parameters as Base, Point, Result
from zenrepro.records import DeviceClass, Environment, Origin


def probe(backend, device=None, project=None):
    return hardware.Hardware(
        backend=backend, device=device or "cpu",
        device_class=DeviceClass(platform="cpu-test", model="Test CPU"),
        environment=Environment(python="3", packages={backend: "1.0"}),
        machine="cpu-test-lab", compute_capability=None, lock_name="test-cpu",
    )


hardware.probe = probe
hidden = os.environ.get("HIDE")
hardware.absent = lambda backend, device: f"{hidden} is away" if backend == hidden else None
gone = []
backends.open = lambda name, device: SimpleNamespace(
    is_out_of_memory=lambda error: False, lost=lambda: bool(gone)
)


class Parameters(Base):
    backend: Literal["torch", "jax"] = "torch"
    sizes: int = 3


def points(run):
    for n in range(1, run.parameters.sizes + 1):
        yield Point(
            implementation=f"{run.parameters.backend}.sum", conditions={"op": "copy", "n": n},
            produces=[("time", "per_call")], origin=Origin.OURS,
            measure=lambda n=n: measure(run, n),
        )


def measure(run, n):
    with open(run.project.root / "measured.log", "a") as log:
        log.write(f"{run.parameters.backend} {n}\\n")
    if os.environ.get("DIE_AT") == str(n):
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("LOSE_AT") == str(n):
        gone.append(n)
        raise RuntimeError("an illegal memory access was encountered")
    if os.environ.get("RAISE_AT") == str(n):
        raise ValueError("no such luck")
    if os.environ.get("SLEEP_AT") == str(n):
        time.sleep(float(os.environ.get("SLEEP", "60")))
    return [Result(quantity="time", metric="per_call", unit="s", samples=[float(n)] * 5)]
"""

PARAMETERS = """backend: str = "torch"
device: str | None = None
scale: str | None = None
seed: int = 0
sizes: int = 3"""
START = """import sums_experiment
from zenrepro.experiments import session

run = session.start("sums", globals())"""
MEASURE = "records = run.measure(sums_experiment.points(run))\nrun.table()"
READ = "print(len(records), 'records')"


def cell(source: str, *tags: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def notebook(*cells: dict[str, Any]) -> str:
    text = {"cell_type": "markdown", "metadata": {}, "source": "# Sums"}
    language = {"name": "python"}
    kernel = {"name": "no-such-kernel", "display_name": "none", "language": "python"}
    return json.dumps(
        {
            "cells": [text, *cells],
            "metadata": {"kernelspec": kernel, "language_info": language},
            "nbformat": 4,
            "nbformat_minor": 4,
        }
    )


WHOLE = (cell(PARAMETERS, "parameters"), cell(START), cell(MEASURE), cell(READ))


class Trial:
    """The project, and the command line as another process."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.environment = environment
        self.notebook = root / "notebooks" / "sums.ipynb"
        self.results = root / "data" / "results"
        self.executed = root / "build" / "notebooks" / "cpu-test-lab" / "sums-torch.ipynb"

    def command(self, *arguments: str) -> list[str]:
        # The fakes are the experiment's; the command line must see the same machine.
        code = "import sys, sums_experiment; from zenrepro.cli import main; sys.exit(main())"
        return [sys.executable, "-c", code, *arguments]

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background of a shell ignore interrupts, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        with self.start(*arguments, **variables) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def measured(self) -> list[str]:
        """What was measured since this was asked the last time."""
        log = self.root / "measured.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def records(self) -> dict[str, Record]:
        found = Store(self.results).load()
        return {
            f"{record.implementation} {record.conditions.get('n', '')}".strip(): record
            for record in found
        }


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    (root / "zenrepro.toml").write_text(
        'title = "T"\n[experiments.sums]\nnotebook = "notebooks/sums.ipynb"\n'
        'module = "sums_experiment"\n'
    )
    (root / "sums_experiment.py").write_text(EXPERIMENT)
    (root / "notebooks" / "sums.ipynb").write_text(notebook(*WHOLE))
    scratch = tmp_path / "t"  # the device's lock is in the temporary folder: one of our own
    scratch.mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ZENREPRO_")},
        "PYTHONPATH": f"{root}{os.pathsep}{PACKAGE}",
        "TMPDIR": str(scratch),
        "GIT_CEILING_DIRECTORIES": str(tmp_path),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    return Trial(root, environment)
