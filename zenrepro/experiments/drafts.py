"""Edited notebooks: their runs go to the project's git-ignored drafts, never to its results.

A notebook counts as edited when the code run so far is not the code that the project's commit
holds for it (or, outside git and for a notebook that is not committed yet, its file). Parameters
may have any value, Markdown and outputs do not matter.
"""

from __future__ import annotations

import ast
from pathlib import Path

from zenrepro import params
from zenrepro.experiments import provenance
from zenrepro.paths import Project
from zenrepro.results.store import Store


def history() -> list[str]:
    """The code cells that this kernel ran so far, oldest first; empty outside a notebook."""
    try:
        shell = get_ipython()  # type: ignore[name-defined]
    except NameError:
        return []
    return [cell for cell in shell.user_ns.get("In", []) if cell.strip()]


def edited(project: Project, notebook: Path, parameters: set[str]) -> str | None:
    """Which code run so far is not in the project's notebook, None where all of it is.

    A cell of nothing but imports and literals that sets any of ``parameters`` may be any.
    """
    executed = history()
    if not executed:
        return None
    relative = notebook.relative_to(project.root).as_posix()
    committed = provenance.git(project, "show", f"HEAD:./{relative}")
    text = committed if committed is not None else notebook.read_text(encoding="utf-8")
    ours = {_essence(cell) for cell in params.code_cells(text, str(notebook))}
    for cell in executed:
        values = params.assignments(cell)
        sets_parameters = values is not None and (not values or parameters.intersection(values))
        if _essence(cell) not in ours and not sets_parameters:
            first = next(line for line in cell.splitlines() if line.strip())
            return f"the code {first.strip()!r} is not in {relative}"
    return None


def stores(project: Project, edited: str | None) -> list[Store]:
    """The stores that a session reads; it writes to the last."""
    results = Store(project.results)
    return [results] if edited is None else [results, Store(project.local / "drafts" / "results")]


def _essence(cell: str) -> str:
    """The cell's code without comments and layout; cells with magics as they are."""
    try:
        return ast.dump(ast.parse(cell))
    except SyntaxError:
        return cell.strip()
