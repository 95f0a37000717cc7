"""The HTML edition: index, tables, findings, records, executed notebooks. Opens from the file
system: no script, no font and no style comes from a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from zenrepro.report import caches, grids, notebooks, numbers, opening, summary, tables
from zenrepro.report.evidence import Evidence
from zenrepro.report.figures import Figure
from zenrepro.report.formulas import Formatted
from zenrepro.report.numbers import Missing, Number
from zenrepro.results.store import write_atomically

TEMPLATES = Path(__file__).parent / "templates" / "html"


def finalise(value: Any) -> Any:
    """Text or markup for any value that a template prints; autoescape does the rest.

    Raises NotPrintable for None, floats and booleans.
    """
    if isinstance(value, Number):
        return numbers.text(value)
    if isinstance(value, Missing):
        return missing(value)
    if isinstance(value, Formatted):
        return value.text
    if isinstance(value, jinja2.Undefined):
        return str(value)  # StrictUndefined raises here
    numbers.check(value)
    return f"{value:,}" if isinstance(value, int) else value


def missing(value: Missing) -> Markup:
    """An em dash with its code; the reason shows when pointed at."""
    title = value.reason or numbers.CODES[value.code]
    return Markup('<abbr title="{}">—<sup>{}</sup></abbr>').format(title, value.code)


def bare(value: Any) -> Any:
    """A number without its unit."""
    return numbers.text(value, with_unit=False) if isinstance(value, Number) else finalise(value)


def web(address: str) -> str:
    """An address that a link may lead to: http and https alone; else an empty link."""
    return address if re.match(r"https?://", address) else "#"


def slug(name: str) -> str:
    """A name as part of a file name or an anchor."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "unnamed"


def environment() -> jinja2.Environment:
    """The environment over the package's HTML templates."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=finalise,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(bare=bare, web=web, slug=slug, unit_text=numbers.unit_text)
    return env


def write(evidence: Evidence, drawn: Sequence[Figure], folder: Path) -> Path:
    """Write the whole edition into ``folder``; pages of machines that are gone are removed.

    Returns the path of the index.
    """
    env = environment()
    pages = notebooks.convert(evidence, folder, env)
    shared = _shared(evidence, drawn, pages)
    written: dict[str, bytes] = {}

    def page(name: str, template: str, **more: Any) -> None:
        text = env.get_template(template).render(**shared, **more, up="")
        written[name] = text.encode()

    page("index.html", "index.html.jinja")
    page(
        "tables.html", "tables.html.jinja", tables=_tables(evidence), caches=caches.build(evidence)
    )
    page("kernels.html", "kernels.html.jinja", grids=list(grids.every(evidence)))
    page("findings.html", "findings.html.jinja")
    for machine in shared["machines"]:
        entries = [e for e in evidence.records if e.record.machine == machine.name]
        page(
            f"records-{slug(machine.name)}.html",
            "records.html.jinja",
            machine=machine,
            groups=summary.record_groups(entries, evidence.words),
        )
    written["style.css"] = (TEMPLATES / "style.css").read_bytes()
    for figure in drawn:
        if figure.file:
            written[f"{figure.name}.svg"] = figure.svg
    for name, content in written.items():
        _replace(folder / name, content)
    kept = {*written, *(p.file for p in pages)}
    for path in folder.rglob("*.html"):
        if str(path.relative_to(folder)) not in kept:
            path.unlink()
    return folder / "index.html"


def _replace(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _shared(
    evidence: Evidence, drawn: Sequence[Figure], pages: list[notebooks.Page]
) -> dict[str, Any]:
    """What every page is given."""
    severities = [entry.finding.severity for entry in evidence.findings]
    return {
        "title": evidence.project.title,
        "publication": evidence.publication,
        "provenance": opening.provenance(evidence),
        "audit_counts": opening.audit_counts(evidence),
        "measurement_counts": opening.measurement_counts(evidence),
        "claims": len(evidence.publication.claims),
        "errors": severities.count("error"),
        "notes": severities.count("note"),
        "top_findings": opening.top(evidence),
        "findings": summary.findings(evidence),
        "machines": summary.machines(evidence),
        "titles": {m.name: m.title for m in evidence.machines},
        "record_pages": {
            entry.key: f"records-{slug(entry.record.machine)}.html" for entry in evidence.records
        },
        "table_names": [(name, evidence.words.table(name)) for name in tables.names(evidence)],
        "experiments": sorted(evidence.project.experiments),
        "pages": pages,
        "datasheets": list(evidence.datasheets.values()),
        "figures": list(drawn),
    }


def _tables(evidence: Evidence) -> list[tables.Table]:
    """Every table with every machine's column: a screen scrolls where a page cannot."""
    every = [machine.name for machine in evidence.machines]
    names = [*tables.names(evidence), tables.TEXT_TABLE]
    return [tables.build(evidence, name, every) for name in names]
