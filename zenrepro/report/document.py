"""The TeX document: what the templates are given, and the files that latexmk gets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from zenrepro.audit import rules
from zenrepro.errors import InputError
from zenrepro.report import caches, grids, layout, opening, summary, tables, tex
from zenrepro.report.escape import Tex, escape
from zenrepro.report.evidence import BODY_MACHINES, Evidence
from zenrepro.report.figures import Figure

MAIN = "report.tex"
TEMPLATE = "report.tex.jinja"
BIBLIOGRAPHY = "references.bib"


@dataclass(frozen=True)
class Counts:
    """Whole numbers that prose may want."""

    claims: int
    tables: int
    machines: int
    records: int
    findings: int
    errors: int
    notes: int


def render_tex(evidence: Evidence, drawn: Sequence[Figure]) -> str:
    """The whole document. Raises InputError for a template that asks for what there is not."""
    env = tex.environment(evidence.project.templates)
    document = _Document(env, evidence, drawn)
    return tex.render(env, TEMPLATE, **document.variables())


class _Document:
    """One rendering: keeps track of which tables and figures the templates have placed."""

    def __init__(
        self, env: jinja2.Environment, evidence: Evidence, drawn: Sequence[Figure]
    ) -> None:
        self.env = env
        self.evidence = evidence
        self.figures = {figure.name: figure for figure in drawn}
        self.titles = {machine.name: machine.title for machine in evidence.machines}
        self.placed: set[str] = set()

    def variables(self) -> dict[str, Any]:
        evidence = self.evidence
        severities = Counter(e.finding.severity for e in evidence.findings)
        return {
            "title": evidence.project.title,
            "publication": evidence.publication,
            "datasheets": evidence.datasheets,
            "provenance": opening.provenance(evidence),
            "titles": self.titles,
            "audit_counts": opening.audit_counts(evidence),
            "measurement_counts": opening.measurement_counts(evidence),
            "top_findings": opening.top(evidence),
            "findings": summary.findings(evidence),
            "machines": summary.machines(evidence),
            "record_groups": self._record_groups(),
            "comparisons": [
                {"title": m.title, "rows": summary.comparisons(evidence, m.name)}
                for m in evidence.machines
            ],
            "other_tables": self._other_tables(),
            "rules": rules.explained(),
            "assumed_bounds": self._assumed_bounds(),
            "caches": caches.build(evidence),
            "figures": list(self.figures.values()),
            "drawn": {name: bool(figure.file) for name, figure in self.figures.items()},
            "count": Counts(
                claims=len(evidence.publication.claims),
                tables=len(tables.names(evidence)),
                machines=len(evidence.machines),
                records=len(evidence.records),
                findings=len(evidence.findings),
                errors=severities["error"],
                notes=severities["note"],
            ),
            "table": self.table,
            "remaining_tables": self.remaining_tables,
            "grid": self.grid,
            "figure": self.figure,
            "remaining_figures": self.remaining_figures,
            "claim": self.claim,
            "finding_refs": self.finding_refs,
        }

    def table(self, name: str, caption: str | None = None) -> Tex:
        """One table as TeX. ``caption`` is TeX (templates write it); default: the table's name."""
        self.placed.add(name)
        built = tables.build(self.evidence, name)
        return self._table(built, Tex(caption) if caption else escape(built.title), label(name))

    def remaining_tables(self) -> Tex:
        """Every published table that no template has placed: none can be lost."""
        left = [name for name in tables.names(self.evidence) if name not in self.placed]
        return Tex("\n".join(self.table(name) for name in left))

    def grid(self, name: str, caption: str | None = None) -> Tex:
        """A table of measurements (``grids.build``) as TeX, or a sentence that says why not."""
        made = grids.build(self.evidence, name)
        return Tex(
            self.env.get_template("parts/grid.tex.jinja").render(
                grid=made,
                caption=Tex(caption) if caption else escape(made.title),
                label=label(name),
            )
        )

    def figure(self, name: str, caption: str | None = None) -> Tex:
        """One figure as TeX, or a sentence that says why there is none yet."""
        if name not in self.figures:
            raise InputError(
                f"a template asks for figure {name!r}; figures: {', '.join(self.figures)}"
            )
        self.placed.add(f"figure {name}")
        figure = self.figures[name]
        return Tex(
            self.env.get_template("parts/figure.tex.jinja").render(
                figure=figure,
                caption=Tex(caption) if caption else escape(figure.caption),
                label=f"fig:{name}",
            )
        )

    def remaining_figures(self) -> Tex:
        """Every figure that no template has placed."""
        left = [name for name in self.figures if f"figure {name}" not in self.placed]
        return Tex("\n".join(self.figure(name) for name in left))

    def claim(self, name: str) -> Tex:
        """A published value, for prose: no number is typed in a template."""
        claims = self.evidence.claims
        if name not in claims:
            raise InputError(f"a template cites claim {name!r}, which does not exist")
        shown = tables.published_value(claims[name], self.evidence.words)
        sign = escape(f"{shown.relation} ") if shown.relation else ""
        if shown.high is not None:
            return Tex(f"{sign}{tex.bare(shown.value)} to {tex.finalise(shown.high)}")
        return Tex(sign + tex.finalise(shown.value))

    def finding_refs(self, name: str) -> Tex:
        """Links to the findings about a claim: ``F3, F7``; a dash when there is none."""
        self.claim(name)
        links = [
            rf"\hyperlink{{{entry.key}}}{{F{entry.number}}}"
            for entry in self.evidence.findings_of(name)
        ]
        return Tex(", ".join(links) or r"\textemdash{}")

    def _table(self, built: tables.Table, caption: Tex, label: str) -> Tex:
        template = self.env.get_template("parts/table.tex.jinja")
        return Tex(
            template.render(
                table=built, caption=caption, label=label, titles=self.titles,
                layout=layout.fit(built, self.titles),
            )
        )  # fmt: skip

    def _other_tables(self) -> list[Tex]:
        """The tables again for machines that the body has no room for: measured lines only."""
        others = [m.name for m in self.evidence.machines if m.name not in self.evidence.body]
        out = []
        for start in range(0, len(others), BODY_MACHINES):
            chosen = others[start : start + BODY_MACHINES]
            for name in (*tables.names(self.evidence), tables.TEXT_TABLE):
                built = tables.measured_only(tables.build(self.evidence, name, chosen))
                if built.groups:
                    place = f"{label(name)}-others-{start // BODY_MACHINES + 1}"
                    out.append(self._table(built, escape(built.title), place))
        return out

    def _record_groups(self) -> list[dict[str, Any]]:
        out = []
        for machine in self.evidence.machines:
            entries = [e for e in self.evidence.records if e.record.machine == machine.name]
            out.append(
                {
                    "title": machine.title,
                    "groups": summary.record_groups(entries, self.evidence.words),
                }
            )
        return out

    def _assumed_bounds(self) -> list[dict[str, str]]:
        claims = self.evidence.claims
        return [
            {
                "words": summary.claim_in_words(claims[bound.claim], self.evidence.words).words,
                "arithmetic": self.evidence.words.prose(bound.arithmetic),
                "assumption": bound.assumption,
            }
            for bound in self.evidence.audit.bounds
            if bound.assumption
        ]


def label(name: str) -> str:
    """A TeX label for a table: letters and digits of its name, and a hash against collisions."""
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:40]
    return f"tab:{slug}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def files(evidence: Evidence, document: str, drawn: Sequence[Figure]) -> dict[str, bytes]:
    """What latexmk gets: the document, the figures, the project's bibliography."""
    out = {MAIN: document.encode()}
    for figure in drawn:
        if figure.file:
            out[figure.file] = figure.pdf
    bibliography = evidence.project.templates / BIBLIOGRAPHY
    if bibliography.is_file():
        out[BIBLIOGRAPHY] = bibliography.read_bytes()
    return out
