"""A notebook run by hand, cell by cell, in IPython."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in json.loads(sys.argv[1]):
    shell.run_cell(cell, store_history=True)
"""


def by_hand(trial: Any, *cells: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(cells)],
        cwd=trial.root / "notebooks", env=trial.environment, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    return done.stdout


def test_cells_run_by_hand_are_validated_and_may_be_corrected(trial: Any) -> None:
    sources = [
        cell["source"]
        for cell in json.loads(trial.notebook.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    parameters, start, measure, read = sources
    said = by_hand(trial, f"{parameters}\nsizs: int = 2", start)
    assert "InputError: experiment sums: unknown parameter 'sizs'; did you mean 'sizes'?" in said
    assert "Traceback" not in said
    said = by_hand(trial, parameters.replace("sizes: int = 3", "sizes: int = 'x'"), start)
    assert "parameter 'sizes' wants a whole number, got 'x'" in said
    assert trial.measured() == []

    shorter = parameters.replace("sizes: int = 3", "sizes: int = 1")
    said = by_hand(trial, f"{parameters}\nsizs: int = 1", start, shorter, start, measure, read)
    assert "1 records" in said
    assert trial.measured() == ["torch 1"]
    # Corrected, but nothing that the project's notebook does not have: not a draft.
    assert list(trial.records()) == ["torch.sum 1"]


def test_cells_of_ones_own_make_a_draft(trial: Any) -> None:
    sources = [
        cell["source"]
        for cell in json.loads(trial.notebook.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    parameters, start, measure, _ = sources
    said = by_hand(trial, parameters, start, "run.seed = 3", measure)
    assert "edited notebook, so its records are drafts: the code 'run.seed = 3'" in said
    assert not trial.results.exists()
    assert len(trial.measured()) == 3
