"""An experiment's module that is not as it must be: one line, whatever it does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zenrepro.cli import main

GOOD = """from typing import Literal
from zenrepro.experiments.session import Parameters as Base, Point, Result

class Parameters(Base, frozen=True):
    backend: Literal["torch", "jax"] = "torch"
    sizes: int = 3

def points(run):
    return ()
"""


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(
    trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Iterator[Command]:
    """Runs one command on the project with this module for its experiment."""
    monkeypatch.chdir(trial.root)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("ZENREPRO_MACHINE", "lab")

    def run(module: str, *arguments: str) -> tuple[int, str]:
        (trial.root / "mine.py").write_text(module)
        marker = trial.root / "zenrepro.toml"
        marker.write_text(marker.read_text().replace('"sums_experiment"', '"mine"'))
        importlib.invalidate_caches()
        status = main(arguments)
        return status, capsys.readouterr().err

    yield run
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("def points(run):\n  syntax error", "SyntaxError: invalid syntax (mine.py, line 2)"),
        ("x = 1\nraise ValueError('at\\nimport')", "mine.py, line 2: ValueError: at import"),
        ("import sys; sys.exit(3)", "mine.py, line 1: SystemExit: 3"),
        ("x = 1", "has no `Parameters` that derives from"),
        ("class Parameters: pass", "has no `Parameters` that derives from"),
        (GOOD.replace("points", "plan"), "has no function `points`"),
        (GOOD.replace("sizes: int = 3", "sizes: set = set()"), "can't be of type"),
        (GOOD.replace("()\n", "3\n"), "fails (TypeError"),
        (GOOD.replace("()\n", "[3]\n"), "gives a int; wanted a Point"),
        (GOOD.replace("return ()", "1 / 0"), "mine.py, line 9: ZeroDivisionError"),
    ],
)
def test_a_wrong_module_is_one_line(command: Command, module: str, said: str) -> None:
    status, err = command(module, "run", "sums", "--backend", "torch", "--dry-run")
    assert status == 2
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("module", ["1 / 0", GOOD.replace("return ()", "1 / 0")])
def test_a_wrong_module_is_one_line_in_the_list(command: Command, module: str) -> None:
    status, err = command(module, "list")
    assert (status, err.count("\n")) == (2, 1)
    assert "ZeroDivisionError" in err


def test_two_points_of_one_identity_are_one_line(command: Command) -> None:
    twice = """[Point(implementation="torch.sum", conditions={"n": 1}, measure=list,
        produces=[("time", "call")], origin=Origin.OURS) for _ in "ab"]"""
    module = "from zenrepro.records import Origin\n" + GOOD.replace("()\n", twice + "\n")
    status, err = command(module, "run", "sums", "--backend", "torch", "--dry-run")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("zenrepro: experiment sums: two points write time/call")


def test_the_project_may_stand_before_or_after_the_command(
    trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    root = str(trial.root)
    assert main(["results"]) == 2
    assert main(["--project", root, "results"]) == 0
    assert main(["results", "--project", root]) == 0
    assert main(["--project", "/nowhere", "results", "--project", root]) == 0
    assert main(["--project", "/nowhere", "results"]) == 2
    assert "/nowhere" in capsys.readouterr().err
