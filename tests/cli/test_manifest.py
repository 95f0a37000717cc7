"""When the report is made again: one file changed is enough, and none changed is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zenrepro import paths, report
from zenrepro.cli import manifest, reporting
from zenrepro.errors import InputError
from zenrepro.paths import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for name in (
        "data/results/m/e.json", "data/published/p.yaml", "data/hardware/h.yaml",
        "latex/report.tex", "latex/generated/report.tex", "build/notebooks/m/e-torch.ipynb",
        "notebooks/e.ipynb",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "zenrepro.toml").write_text('title = "T"\n')
    return paths.load(tmp_path)


@pytest.fixture
def made(project: Project, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the report is made; each time leaves the PDF and the HTML."""
    calls: list[int] = []

    def build(here: Project) -> int:
        calls.append(1)
        (here.build / "html").mkdir(exist_ok=True)
        (here.build / "report.pdf").write_text("pdf")
        (here.build / "html" / "index.html").write_text("html")
        return 0

    monkeypatch.setattr(report, "build", build)
    assert reporting.up_to_date_report(project) == 0
    return calls


def edit(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text("edited")


def add(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text("new")


@pytest.mark.parametrize(
    "change",
    [
        edit("data/results/m/e.json"), edit("data/published/p.yaml"), edit("latex/report.tex"),
        edit("build/notebooks/m/e-torch.ipynb"), edit("build/report.pdf"),
        add("data/results/m/f.json"), add("data/hardware/i.yaml"),
        lambda root: (root / "zenrepro.toml").write_text('title = "U"\n'),
        lambda root: (root / "build/report.pdf").unlink(),
        lambda root: (root / "build/html/index.html").unlink(),
        lambda root: (root / "data/results/m/e.json").unlink(),
    ],
)  # fmt: skip
def test_a_change_makes_it_again_once(
    project: Project, made: list[int], change: Callable[[Path], object]
) -> None:
    assert reporting.up_to_date_report(project) == 0
    assert len(made) == 1
    change(project.root)
    assert reporting.up_to_date_report(project) == 0
    assert len(made) == 2
    assert reporting.up_to_date_report(project) == 0
    assert len(made) == 2


@pytest.mark.parametrize("name", ["latex/generated/report.tex", "notebooks/e.ipynb"])
def test_what_is_not_read_makes_nothing_again(project: Project, made: list[int], name: str) -> None:
    edit(name)(project.root)
    reporting.up_to_date_report(project)
    assert len(made) == 1


def test_a_file_that_was_only_touched_makes_nothing_again(
    project: Project, made: list[int]
) -> None:
    os.utime(project.root / "data/results/m/e.json", (1, 1))
    reporting.up_to_date_report(project)
    assert len(made) == 1


def test_what_changes_while_it_is_made_shows_afterwards(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(here: Project) -> int:
        (here.build / "report.pdf").write_text("pdf")
        edit("data/results/m/e.json")(here.root)
        return 0

    monkeypatch.setattr(report, "build", build)
    reporting.up_to_date_report(project)
    assert not manifest.is_fresh(project)


def test_a_report_that_failed_is_tried_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "build", lambda here: 1)
    assert reporting.up_to_date_report(project) == 1
    assert not manifest.is_fresh(project)


@pytest.mark.parametrize(
    ("ran", "rendered", "status"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (None, 0, 2)]
)
def test_make_renders_whatever_the_experiments_did_and_tells_the_worst(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ran: int | None,
    rendered: int,
    status: int,
) -> None:
    from zenrepro.cli import main, running

    def run_jobs(here: Project, jobs: object, *, force: bool) -> int:
        if ran is None:
            raise InputError("results/m/e.json: not a whole JSON file")
        return ran

    made: list[int] = []
    monkeypatch.setattr(running, "run_jobs", run_jobs)
    monkeypatch.setattr(report, "build", lambda here: made.append(1) or rendered)
    assert main(["make", "--project", str(project.root)]) == status
    assert made == [1]
    assert ("not a whole JSON file" in capsys.readouterr().err) == (ran is None)
