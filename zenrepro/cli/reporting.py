"""`zenrepro render` and `zenrepro report`: from the results there are; they run no experiment."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zenrepro.cli.arguments import Commands, command, project

if TYPE_CHECKING:
    from zenrepro.paths import Project


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    command(commands, "render", _render, "write the report's TeX from the results there are")
    report = command(
        commands, "report", _report, "make the PDF and the HTML from the results there are"
    )
    report.add_argument("--no-pdf", action="store_true", help="the HTML only")
    report.add_argument("--no-html", action="store_true", help="the PDF only")


def _render(given: argparse.Namespace) -> int:
    from zenrepro import report

    here = project(given)
    print(report.render(here).relative_to(here.root))
    return 0


def _report(given: argparse.Namespace) -> int:
    from zenrepro import report

    return report.build(project(given), pdf=not given.no_pdf, html=not given.no_html)


def up_to_date_report(here: Project) -> int:
    """Make the PDF and the HTML, unless nothing that they are made from changed since."""
    from zenrepro.cli import manifest

    if manifest.is_fresh(here):
        print("build/report.pdf and build/html/index.html: up to date")
        return 0
    from zenrepro import report

    before = manifest.look(here)
    status = report.build(here)
    if status == 0:
        manifest.write(here, before)
    return status
