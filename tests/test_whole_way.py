"""The whole way at smoke scale: notebooks, records, audit, PDF and HTML, in a temporary project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zenrepro import paths
from zenrepro.records import Record, Status
from zenrepro.results.store import Store

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("torch", "jax", "mlx")
SCALE = ("--scale", "smoke")


def _zenrepro(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    scratch = project.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    # Device locks live in the temporary folder: of its own, so that other tests do not wait.
    environment = {**os.environ, "TMPDIR": str(scratch), "ZENREPRO_MACHINE": "trial"}
    return subprocess.run(
        [sys.executable, "-m", "zenrepro", *arguments],
        cwd=project, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("notebooks", "latex", "data/published", "data/hardware", "data/models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("generated"))
    marker = (ROOT / paths.MARKER).read_text(encoding="utf-8").splitlines()
    kept = [line for line in marker if not line.startswith("machines")]
    (folder / paths.MARKER).write_text("\n".join(kept) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_notebooks_to_pdf(project: Path) -> None:
    missing = [tool for tool in ("latexmk", "pdftotext") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: no PDF can be made or read here")
    # The way is the same for every notebook: these two on one backend, to save the others' start.
    rest = ("mla", "traffic")
    ran = _zenrepro(project, "run", *rest, "--backend", "torch", "--device", "cpu", *SCALE)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    only = ("--only", "hardware", "--only", "attention")
    made = _zenrepro(project, "make", "--device", "cpu", *SCALE, *only)
    assert made.returncode == 0, made.stdout + made.stderr

    records = Store(project / "data/results").load()
    for experiment in ("hardware", "attention", *rest):
        for backend in ("torch",) if experiment in rest else BACKENDS:
            measured = [r for r in _of(records, experiment, backend) if r.samples]
            assert measured, f"{experiment} measured nothing on {backend}"
    bad = [(r.implementation, r.reason) for r in records if r.status is Status.FAILED]
    assert not bad

    text = subprocess.run(
        ["pdftotext", "-layout", str(project / "build/report.pdf"), "-"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "impossible" in text
    assert f"{len(records)} records from 1 machine" in text
    index = (project / "build/html/index.html").read_text(encoding="utf-8")
    assert "notebooks/" in index
    pages = list((project / "build/html/notebooks").rglob("*.html"))
    assert len(pages) == 2 * len(BACKENDS) + len(rest)
    assert "GFLOP" in (project / "build/html/kernels.html").read_text(encoding="utf-8")

    again = _zenrepro(project, "make", "--device", "cpu", *SCALE, *only)
    assert again.returncode == 0
    assert (again.stdout + again.stderr).count("up to date") == 2 * len(BACKENDS) + 1
    assert Store(project / "data/results").load() == records


def _of(records: list[Record], experiment: str, backend: str) -> list[Record]:
    prefix = f"{backend}."
    return [
        r for r in records if r.experiment == experiment and r.implementation.startswith(prefix)
    ]
