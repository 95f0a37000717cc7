"""From records, claims and verdicts to TeX, PDF and HTML. Runs no experiment, needs no framework.

``render`` writes the TeX; ``build`` also makes the PDF and the HTML.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zenrepro.errors import InputError
from zenrepro.paths import Project
from zenrepro.report.evidence import Evidence, gather

if TYPE_CHECKING:
    from zenrepro.report.figures import Figure

__all__ = ["build", "gather", "render"]


def render(project: Project) -> Path:
    """Write ``latex/generated/report.tex`` and the figures. Returns the document's path.

    Raises InputError for a missing template variable, an unknown machine, a broken file of results.
    """
    with _one_line(project):
        return _render(gather(project))[0]


def _render(evidence: Evidence) -> tuple[Path, dict[str, bytes], list[Figure]]:
    from zenrepro.report import document, figures

    drawn = figures.draw(evidence, evidence.project.templates / "generated")
    text = document.render_tex(evidence, drawn)
    files = document.files(evidence, text, drawn)
    folder = evidence.project.templates / "generated"
    for name, content in files.items():
        write_if_changed(folder / name, content)
    return folder / document.MAIN, files, drawn


def write_if_changed(path: Path, content: bytes) -> bool:
    """Write a file in one step, unless it holds just that already."""
    from zenrepro.results.store import write_atomically

    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return True


def build(project: Project, *, pdf: bool = True, html: bool = True) -> int:
    """Render, compile, and write the HTML; one printed line per product.

    Returns 0, or 1 when the PDF could not be made (the HTML is made all the same). Raises
    InputError for bad input.
    """
    evidence = gather(project)
    return build_from(evidence, pdf=pdf, html=html)


def build_from(evidence: Evidence, *, pdf: bool = True, html: bool = True) -> int:
    """``build`` for evidence that is gathered already."""
    with _one_line(evidence.project):
        return _build(evidence, pdf, html)


@contextmanager
def _one_line(project: Project) -> Iterator[None]:
    """A full or read-only disk is bad input: one line that names the place."""
    try:
        yield
    except OSError as error:
        place = error.filename or project.build
        raise InputError(f"{place}: cannot be read or written ({error.strerror})") from None


def _build(evidence: Evidence, pdf: bool, html: bool) -> int:
    from zenrepro.report import document
    from zenrepro.report.pdf import CompileError, compile_pdf

    project = evidence.project
    path, files, drawn = _render(evidence)
    print(f"TeX   {_shown(path, project)}")
    code = 0
    if pdf:
        target = project.build / "report.pdf"
        try:
            ran = compile_pdf(files, document.MAIN, target, project.build / ".report.inputs")
            print(f"PDF   {_shown(target, project)}" + ("" if ran else " (unchanged)"))
        except CompileError as error:
            print(f"PDF   {error}")
            code = 1
    if html:
        from zenrepro.report import html as html_module

        index = html_module.write(evidence, drawn, project.build / "html")
        print(f"HTML  {_shown(index, project)}")
    return code


def _shown(path: Path, project: Project) -> str:
    """A path as a reader sees it: relative to the project where it is inside."""
    return str(path.relative_to(project.root) if path.is_relative_to(project.root) else path)
