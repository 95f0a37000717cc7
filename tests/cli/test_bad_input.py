"""Bad usage and bad input: one line on stderr, status 2, nothing run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zenrepro.cli import main

MODULE = """
from typing import Literal
from zenrepro.experiments.session import Parameters as Base

class Parameters(Base):
    backend: Literal["torch", "jax"] = "torch"
    sizes: int = 3

def points(run):
    raise AssertionError("asked for points")
"""

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def refused(tmp_path: Path, trial: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Command:
    """Runs one command on a project; returns its status and what it said, which is one line."""
    (trial.root / "quiet_experiment.py").write_text(MODULE)
    marker = trial.root / "zenrepro.toml"
    marker.write_text(marker.read_text().replace("sums_experiment", "quiet_experiment"))
    monkeypatch.chdir(trial.root)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("ZENREPRO_MACHINE", "lab")

    def command(*arguments: str) -> tuple[int, str]:
        status = main(arguments)
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("zenrepro: ")
        assert said.err.count("\n") == 1
        assert not trial.results.is_dir()
        assert not (trial.root / "build").exists()
        return status, said.err

    return command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "COMMAND"),
        ("rnu sums", "invalid choice: 'rnu'"),
        ("run", "name experiments or say --all; this project has: sums"),
        ("run sums --all", "name experiments or say --all"),
        ("run sms", "unknown experiment 'sms'"),
        ("run sums --backend tpu", "unknown backend 'tpu'; wanted one of torch, jax, mlx"),
        ("run sums --backend mlx", "no backend 'mlx'; it has torch, jax"),
        ("run sums --scale huge", "invalid choice: 'huge'"),
        ("run sums --device warp:3", "unknown device 'warp:3'"),
        ("run sums --device cuda:97", "cuda:97"),
        ("run sums -p sizs=3", "unknown parameter 'sizs'; did you mean 'sizes'?"),
        ("run sums -p sizes=three", "-p sizes: wants a whole number, got 'three'"),
        ("run sums -p sizes", "wanted KEY=VALUE"),
        ("run sums -p seed=-1", "parameter 'seed' wants 0 or more, got -1"),
        ("run sums -p backend=jax", "say --backend jax"),
        ("run sums -p scale=full --scale smoke", "differ"),
        ("run sums --project /nowhere", "no zenrepro.toml there"),
        ("make --only sms", "unknown experiment 'sms'"),
        ("results --experiment sms", "unknown experiment 'sms'"),
        ("results --machine nobody", "no machine 'nobody'"),
        ("compare nobody none", "'nobody' is no machine"),
        ("export nobody -o x.zip", "no machine 'nobody'"),
        ("merge absent.zip", "absent.zip"),
        ("audit", "wanted one file of claims"),
        ("models", "no model"),
    ],
)
def test_bad_usage_is_one_line_and_status_two(refused: Command, arguments: str, said: str) -> None:
    status, line = refused(*arguments.split())
    assert status == 2
    assert said in line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"parameters"', '"other"', "no cell is tagged 'parameters'"),
        ('"tags": []', '"tags": ["parameters"]', "cells are tagged 'parameters'"),
        ("sizes: int = 3", "sizes: int = 'x'", "'sizes' wants a whole number, got 'x'"),
        ("sizes: int = 3", "depth: int = 3", "unknown parameter 'depth'"),
        ('"cells"', '"cels"', "not a notebook"),
    ],
)
def test_a_wrong_notebook_is_one_line_before_anything_runs(
    refused: Command, trial: Any, old: str, new: str, said: str
) -> None:
    text = trial.notebook.read_text()
    assert old in text
    trial.notebook.write_text(text.replace(old, new))
    status, line = refused("run", "sums")
    assert status == 2
    assert "sums.ipynb" in line
    assert said in line


def test_a_missing_notebook_or_module_is_one_line(refused: Command, trial: Any) -> None:
    marker = trial.root / "zenrepro.toml"
    text = marker.read_text()
    marker.write_text(text.replace("quiet_experiment", "absent_experiment"))
    assert "module 'absent_experiment' cannot be imported" in refused("run", "sums")[1]
    marker.write_text(text)
    trial.notebook.unlink()
    assert "sums.ipynb: cannot be read" in refused("run", "sums")[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("title = ", "not TOML"),
        ("title = 3", "title"),
        ('title = "T"\nnonsense = 1', "nonsense"),
    ],
)
def test_a_wrong_project_file_is_one_line(
    refused: Command, trial: Any, content: str, said: str
) -> None:
    (trial.root / "zenrepro.toml").write_text(content)
    status, line = refused("run", "sums")
    assert status == 2
    assert said in line
    assert "zenrepro.toml" in line


def test_results_that_cannot_be_written_are_told_before_anything_runs(
    refused: Command, trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    status, line = refused("run", "sums", "--backend", "torch", "--device", "cpu")
    assert (status, "is not writable; nothing was run" in line) == (2, True)
    monkeypatch.undo()
    monkeypatch.chdir(trial.root)
    trial.results.parent.mkdir()
    trial.results.write_text("")
    status, line = refused("run", "sums", "--backend", "torch", "--device", "cpu")
    assert (status, "is a file where a folder must be" in line) == (2, True)


def test_a_full_disk_is_one_line(refused: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**given: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "build/notebooks/x.ipynb")

    monkeypatch.setattr("zenrepro.paths.find", full)
    status, line = refused("run", "sums")
    assert status == 2
    assert "build/notebooks/x.ipynb: No space left on device" in line
    assert "free some space" in line


def test_where_nothing_can_run_what_there_is_is_rendered(
    trial: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("zenrepro.hardware.absent", lambda backend, device: "away")
    rendered: list[str] = []
    monkeypatch.setattr(
        "zenrepro.cli.reporting.up_to_date_report", lambda here: rendered.append(here.title) or 0
    )
    assert main(["make", "--project", str(trial.root)]) == 0
    assert rendered == ["T"]
    assert capsys.readouterr().err == (
        "left out: every experiment: none of torch, jax, mlx is installed here\n"
    )


def test_a_reader_that_goes_away_is_no_error(trial: Any) -> None:
    code = "import sys; from zenrepro.cli import main; sys.exit(main(['list', '--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(0.3); {code}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=trial.environment,
    ) as process:  # fmt: skip
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) in (0, 1)
    assert "Traceback" not in err
