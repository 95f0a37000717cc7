"""The Makefile: what its variables become, PYTHON= as it is, clean that never takes results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def make(*arguments: str, at: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """make without what an outer make left in the environment (its flags, its PYTHON=)."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home())}
    return subprocess.run(
        ["make", *arguments], cwd=at, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose command line prints what it was given."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    shutil.copytree(REPOSITORY / "zenrepro/setup", tmp_path / "zenrepro/setup")
    (tmp_path / "zenrepro/__init__.py").touch()
    (tmp_path / "zenrepro/cli.py").write_text(
        "import sys\ndef main():\n    print('zenrepro', *sys.argv[1:])\n    return 0\n"
    )
    return tmp_path


def test_help_is_the_default() -> None:
    assert "make report" in make().stdout


def test_variables_reach_the_command_line(checkout: Path) -> None:
    given = ["BACKEND=torch", "DEVICE=cuda:1", "SCALE=small", "ONLY=attention"]
    done = make("report", f"PYTHON={sys.executable}", *given, at=checkout)
    expected = "zenrepro make --backend torch --device cuda:1 --scale small --only attention"
    assert done.stdout.split() == expected.split(), done.stderr


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("report", "zenrepro make"),
        ("run", "zenrepro make --no-render"),
        ("pdf", "zenrepro report"),
        ("audit", "zenrepro audit"),
    ],
)
def test_a_prepared_python_makes_no_venv(checkout: Path, target: str, expected: str) -> None:
    done = make(target, f"PYTHON={sys.executable}", at=checkout)
    assert done.stdout.split() == expected.split(), done.stderr
    assert not (checkout / ".venv").exists()


def test_a_prepared_python_that_lacks_packages_is_told(checkout: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    done = make("report", f"PYTHON={bare}", at=checkout)
    assert done.returncode == 2
    line = done.stderr.splitlines()[0]
    assert line.startswith("setup: PYTHON=")
    assert "lacks bleach, filelock, jinja2, matplotlib, msgspec" in line


def test_clean_never_takes_results(checkout: Path) -> None:
    for kept in ("data/results/here/attention.json", ".zenrepro/machine", ".venv/pyvenv.cfg"):
        (checkout / kept).parent.mkdir(parents=True, exist_ok=True)
        (checkout / kept).write_text("kept")
    (checkout / "build/html").mkdir(parents=True)
    (checkout / "latex/generated").mkdir(parents=True)
    assert make("clean", at=checkout).returncode == 0
    assert not (checkout / "build").exists()
    assert not (checkout / "latex/generated").exists()
    assert (checkout / "data/results/here/attention.json").read_text() == "kept"
    assert (checkout / ".zenrepro/machine").read_text() == "kept"
    assert (checkout / ".venv/pyvenv.cfg").exists()
