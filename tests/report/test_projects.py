"""The projects of this repository render: the report under study, and the example."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from zenrepro import paths, report
from zenrepro.report import document, figures, html, pdf, tables

ROOT = Path(__file__).parents[2]
PROJECTS = {"zen": ROOT, "example": ROOT / "docs/example"}


@pytest.fixture(params=sorted(PROJECTS))
def project(request: pytest.FixtureRequest, tmp_path: Path) -> paths.Project:
    """A copy of a project, so that nothing is written into the checkout."""
    source = PROJECTS[request.param]
    for name in ("data", "latex", "notebooks"):
        if (source / name).is_dir():
            shutil.copytree(
                source / name, tmp_path / name, ignore=shutil.ignore_patterns("generated")
            )
    shutil.copy(source / "zenrepro.toml", tmp_path)
    return paths.load(tmp_path)


def test_every_claim_and_finding_is_in_the_tex_and_the_html(project: paths.Project) -> None:
    evidence = report.gather(project)
    drawn = [figures.Figure(name, "", "", b"", b"", "Not drawn here.") for name in figures.NAMES]
    source = document.render_tex(evidence, drawn)
    for name in [*tables.names(evidence), tables.TEXT_TABLE]:
        assert source.count(rf"\label{{{document.label(name)}}}") == 1, name
    for entry in evidence.findings:
        assert rf"\anchor{{{entry.key}}}" in source
    folder = project.build / "html"
    html.write(evidence, drawn, folder)
    page = (folder / "tables.html").read_text()
    for claim in evidence.publication.claims:
        assert f'id="{html.slug(claim.id)}"' in page
    targets = set(re.findall(r"\\(?:hypertarget|anchor)\{([^}]*)\}", source))
    assert set(re.findall(r"\\hyperlink\{([^}]*)\}", source)) <= targets


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed: no PDF")
def test_the_pdf_has_no_overfull_box_and_no_dead_reference(project: paths.Project) -> None:
    assert report.build(project, html=False) == 0
    log = (project.build / "report.log").read_text(errors="replace")
    assert pdf.overfull(log) == []
    for words in ("undefined references", "undefined citations", "does not exist", "multiply"):
        assert words not in log
