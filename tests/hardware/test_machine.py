"""The machine's label: given, or random and kept; agreed on by processes that start at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from zenrepro import paths
from zenrepro.errors import InputError
from zenrepro.hardware import machine


@pytest.fixture(autouse=True)
def no_given_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZENREPRO_MACHINE", raising=False)


def test_a_label_is_kept(project: paths.Project) -> None:
    first = machine.label(project)
    assert re.fullmatch(r"[0-9a-f]{6}", first)
    assert machine.label(project) == first
    assert [path.name for path in project.local.iterdir()] == ["machine"]


def test_the_variable_wins_and_is_not_kept(
    project: paths.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENREPRO_MACHINE", "lab-2")
    assert machine.label(project) == "lab-2"
    assert not (project.local / "machine").exists()


@pytest.mark.parametrize("bad", ["Lab", "a b", "-a", "a-", "../x", "a" * 33, "ä"])
def test_a_malformed_label_names_its_place(
    project: paths.Project, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setenv("ZENREPRO_MACHINE", bad)
    with pytest.raises(InputError, match="environment variable ZENREPRO_MACHINE"):
        machine.label(project)


def test_a_damaged_file_names_itself(project: paths.Project) -> None:
    project.local.mkdir()
    (project.local / "machine").write_text("no label!\n")
    with pytest.raises(InputError, match=r"machine: 'no label!' is no machine label"):
        machine.label(project)


def test_a_file_of_bytes_names_itself(project: paths.Project) -> None:
    project.local.mkdir(exist_ok=True)
    (project.local / "machine").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"machine: holds no text"):
        machine.label(project)


def test_a_folder_that_cannot_be_written_names_the_mend(project: paths.Project) -> None:
    project.local.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="set ZENREPRO_MACHINE"):
        machine.label(project)


def test_without_a_project_nothing_is_kept() -> None:
    assert machine.label(None) == "unnamed"


def test_the_first_of_two_wins(project: paths.Project) -> None:
    path = project.local / "machine"
    assert machine._create(path, "aaaaaa") == "aaaaaa"
    assert machine._create(path, "bbbbbb") == "aaaaaa"


def test_processes_that_start_at_once_agree(project: paths.Project) -> None:
    code = (
        "import sys; from pathlib import Path; from zenrepro import paths;"
        "from zenrepro.hardware import machine; project = paths.load(Path(sys.argv[1]));"
        "print('ready', flush=True); sys.stdin.readline(); print(machine.label(project))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(project.root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    labels = set()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=30)
        labels.add(out.strip())
    assert len(labels) == 1
    assert labels == {Path(project.local / "machine").read_text().strip()}
