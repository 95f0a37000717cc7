"""`zenrepro audit` and `zenrepro models`: what the report claims, and what its models cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenrepro.cli.arguments import Commands, command, print_json, project
from zenrepro.errors import InputError

if TYPE_CHECKING:
    from zenrepro.claims import Publication


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    audit = command(commands, "audit", _audit, "which claims cannot hold, and why", json_too=True)
    audit.add_argument(
        "--published", type=Path, metavar="DIR", help="claims from here (default: the project's)"
    )
    command(commands, "models", _models, "what the architectures cost, part by part", json_too=True)


def _audit(given: argparse.Namespace) -> int:
    from zenrepro import audit, specs

    here = project(given)
    publication = _publication(given.published or here.published)
    found = audit.run(publication, specs.load(here.hardware))
    if given.json:
        print_json(
            {
                "report": publication.report,
                "counts": found.counts(),
                "verdicts": found.verdicts,
                "findings": found.findings,
                "bounds": found.bounds,
            }
        )
        return 0
    for finding in found.findings:
        print(f"{finding.verdict}: {', '.join(finding.claims)}: {finding.arithmetic}")
        print(f"  {finding.rule}; {finding.mend}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.counts().items() if count)
    print(f"{len(found.verdicts)} claims: {counts}")
    return 0


def _publication(folder: Path) -> Publication:
    from zenrepro import claims

    files = sorted(folder.glob("*.yaml"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise InputError(f"{folder}: wanted one file of claims (*.yaml), found: {names}")
    return claims.load(files[0])


def _models(given: argparse.Namespace) -> int:
    from zenrepro import architecture

    here = project(given)
    models = architecture.load(here.models)
    if not models:
        raise InputError(f"{here.models}: no model (*.yaml) there")
    policies = _publication(here.published).policies
    tables = [architecture.cost_rows(model, policies) for model in models.values()]
    if given.json:
        print_json([row for rows in tables for row in rows])
        return 0
    for model, rows in zip(models.values(), tables, strict=True):
        names = list(rows[0].bytes)
        lines = [
            ["part", "parameters", "share", "active", "FLOP/token", *(f"{n} GB" for n in names)]
        ]
        for row in rows:
            lines.append(
                [
                    row.part,
                    f"{row.parameters / 1e9:.4f} B",
                    f"{row.share:.1%}",
                    f"{row.active / 1e9:.4f} B",
                    f"{row.flops_per_token / 1e9:.3f} G",
                    *(f"{row.bytes[name].total / 1e9:.2f}" for name in names),
                ]
            )
        print(rows[0].model)
        _print_table(lines)
        kept = [
            f"{cache.form} {architecture.cache_bytes(model, form=cache.form) / 1e3:.1f}"
            for cache in architecture.caches(model)
        ]
        print(f"  cache, kB/token in bf16: {', '.join(kept)}")
        smaller = architecture.cache_readings(model).items()
        print(f"  so many times smaller: {', '.join(f'{x:.3g} ({words})' for words, x in smaller)}")
    return 0


def _print_table(lines: list[list[Any]]) -> None:
    """The first column to the left, the others to the right, as wide as they need."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells))
