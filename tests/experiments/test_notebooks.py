"""The notebooks as committed: their form, their parameters, and that they run by hand."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zenrepro import params, paths

ROOT = Path(__file__).parents[2]
PROJECT = paths.load(ROOT)
NAMES = sorted(PROJECT.experiments)
SECTIONS = ("Prediction", "Method", "Run", "Figure", "Reading", "Threats")


def cells(name: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(PROJECT.notebook(name).read_text())["cells"]
    return content


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("name", NAMES)
def test_committed_without_outputs(name: str) -> None:
    for cell in cells(name):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("name", NAMES)
def test_code_cells_are_short_and_between_sentences(name: str) -> None:
    found = cells(name)
    assert found[0]["cell_type"] == found[-1]["cell_type"] == "markdown"
    for before, cell in itertools.pairwise(found):
        if cell["cell_type"] == "code":
            a_list = "parameters" in cell["metadata"].get("tags", ())
            assert a_list or len(source(cell).splitlines()) <= 15
            assert before["cell_type"] == "markdown", source(cell)


@pytest.mark.parametrize("name", NAMES)
def test_from_question_to_threats(name: str) -> None:
    text = "\n".join(source(cell) for cell in cells(name) if cell["cell_type"] == "markdown")
    assert "**Question.**" in text
    places = [re.search(rf"^## {section}s?$", text, re.MULTILINE) for section in SECTIONS]
    assert all(places), [s for s, p in zip(SECTIONS, places, strict=True) if not p]
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_experiment(name: str) -> None:
    module = importlib.import_module(PROJECT.experiments[name].module)
    declared = params.read(PROJECT.notebook(name))
    accepted = params.of_struct(module.Parameters)
    params.agree(declared, accepted, name)
    assert {p.name for p in declared} == {p.name for p in accepted}
    assert {p.name: p.default for p in declared} == {p.name: p.default for p in accepted}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_by_plain_papermill_from_a_folder_below_the_project(
    name: str, project: paths.Project
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("papermill")
    out = project.root / f"{name}.ipynb"
    given = ["-p", "backend", "torch", "-p", "device", "cpu", "-p", "scale", "smoke"]
    done = subprocess.run(
        [sys.executable, "-m", "papermill", f"{name}.ipynb", str(out), *given],
        cwd=project.root / "notebooks",
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(project.root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "unknown parameter" not in done.stdout + done.stderr
    shown = json.loads(out.read_text())["cells"]
    kinds = {kind for cell in shown for o in cell.get("outputs", ()) for kind in o.get("data", ())}
    assert {"image/svg+xml", "text/html"} <= kinds
    printed = "".join("".join(o.get("text", ())) for o in shown[-2]["outputs"])
    assert f"data/results/{next(project.results.iterdir()).name}/{name}.json" in printed
