"""docs/ADDING-AN-EXPERIMENT.md works as it stands: its own code, run by the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ADDING-AN-EXPERIMENT.md"


def blocks() -> list[str]:
    """The page's code: module, parameters cell, measuring cell, entry in zenrepro.toml."""
    found = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 4
    return found


def build(folder: Path) -> None:
    module, parameters, cell, entry = blocks()
    (folder / "zenrepro.toml").write_text(f'title = "Mine"\n\n{entry}')
    (folder / "scan.py").write_text(module)
    notebook = new_notebook(cells=[new_code_cell(parameters), new_code_cell(cell)])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python",
    }  # fmt: skip
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / "scan.ipynb")


def zenrepro(folder: Path, *arguments: str) -> str:
    code = "import sys; from zenrepro.cli import main; sys.exit(main(sys.argv[1:]))"
    # Locks of its own (they are in TMPDIR): the machine's may be held by a real run.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "ZENREPRO_MACHINE": "test", "TMPDIR": str(folder),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, env=environment, timeout=300, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_page_needs_at_most_thirty_lines() -> None:
    lines = [line for block in blocks() for line in block.splitlines() if line.strip()]
    assert len(lines) <= 30


def test_the_page_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    build(tmp_path)
    zenrepro(tmp_path, "run", "scan", "--backend", "torch", "--device", "cpu", "--scale", "smoke")
    rows = json.loads(zenrepro(tmp_path, "results", "--json", "--experiment", "scan"))
    assert [row["implementation"] for row in rows] == ["torch.cumsum"]
    assert rows[0]["status"] in ("ok", "disturbed")
    assert rows[0]["value"] > 0
    assert rows[0]["conditions"] == {"dtype": "fp32", "m": 512, "n": 128}
