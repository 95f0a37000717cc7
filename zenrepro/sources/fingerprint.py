"""Fingerprints: hashes of what code, notebooks and data mean, not of how they are written.

Python is hashed as a syntax tree without comments and docstrings, by a serialiser of our own that
writes the same for Python 3.11 to 3.13 (``ast.dump`` and ``ast.unparse`` do not). A fingerprint is
the first 16 hexadecimal digits of a SHA-256.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import yaml

from zenrepro.errors import InputError

# Tags that papermill reads and writes.
_PARAMETERS, _INJECTED = "parameters", "injected-parameters"


class Import(NamedTuple):
    """One import statement: ``module`` is None for ``from . import x``; ``level`` counts dots."""

    module: str | None
    names: tuple[str, ...]
    level: int


class Row(NamedTuple):
    """One literal row of a table: its fingerprint and the texts in it."""

    fingerprint: str
    texts: tuple[str, ...]


class Code(NamedTuple):
    """What one Python file is, and what it imports.

    ``frame`` is the fingerprint without the rows of its literal tables.
    """

    fingerprint: str
    frame: str
    rows: dict[str, Row]
    imports: tuple[Import, ...]


def of_bytes(data: bytes) -> str:
    """Fingerprint of bytes as they are."""
    return hashlib.sha256(data).hexdigest()[:16]


def of_yaml(data: bytes, place: str) -> str:
    """Fingerprint of decoded YAML: comments, layout and the order of keys do not matter."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(data, Loader=loader)  # noqa: S506  (a safe loader)
    except yaml.YAMLError as error:
        raise InputError(f"{place}: not YAML: {' '.join(str(error).split())}") from None
    text = json.dumps(content, sort_keys=True, default=repr, ensure_ascii=True)
    return of_bytes(text.encode())


def of_code(data: bytes, place: str) -> Code:
    """Read one Python file. Raises InputError naming ``place`` when it is not Python."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{place}: not Python: {error}") from None
    found = list(_rows(tree))
    whole = of_tree(tree)
    rows = {name: Row(of_tree(node), tuple(_texts(node))) for name, node in found}
    return Code(
        fingerprint=whole,
        frame=of_tree(tree, {id(node) for _, node in found}) if found else whole,
        rows=rows,
        imports=tuple(_imports(tree, calls=b"import_module" in data or b"__import__" in data)),
    )


def of_notebook(data: bytes, place: str) -> str:
    """Fingerprint of a notebook's code cells.

    Text cells, outputs, metadata and the values in the ``parameters`` cell do not count, nor does
    what papermill injects: parameters are compared by name and value.
    """
    try:
        cells = json.loads(data)["cells"]
        parts = [_of_cell(cell) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{place}: not a notebook (nbformat 4); restore it or save it from Jupyter again"
        ) from None
    return of_bytes("\n".join(part for part in parts if part).encode())


def of_tree(node: ast.AST, without: set[int] | None = None) -> str:
    """Fingerprint of a syntax tree; nodes whose ``id`` is in ``without`` are left out."""
    return of_bytes(_serialised(node, without or set()).encode())


def _of_cell(cell: dict[str, Any]) -> str:
    tags = cell.get("metadata", {}).get("tags", [])
    if _INJECTED in tags:
        return ""
    source = cell["source"]
    text = source if isinstance(source, str) else "".join(source)
    # Jupyter's own commands (%matplotlib, !ls) are not Python and measure nothing.
    plain = "\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in text.split("\n"))
    try:
        tree = ast.parse(plain)
    except SyntaxError:
        return of_bytes(text.encode())
    if _PARAMETERS in tags:
        for statement in tree.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign):
                statement.value = ast.Constant(value=None)
    written = _serialised(tree, set())
    return written if tree.body else ""


def _serialised(node: ast.AST, without: set[int]) -> str:
    out: list[str] = []
    _write(node, out, without)
    return "".join(out)


def _write(value: Any, out: list[str], without: set[int]) -> None:
    kind = type(value)
    if kind is ast.Constant:
        # As ASCII, since repr() prints by the Unicode tables of the Python version.
        out.append(f"{type(value.value).__name__}:{value.value!a};")
    elif kind is list:
        out.append("[")
        for item in value:
            _write(item, out, without)
        out.append("]")
    elif issubclass(kind, ast.AST):
        out.append(f"({kind.__name__}")
        for name in _fields(kind):  # type: ignore[arg-type]
            child = getattr(value, name, None)
            if child is None or (name == "format_spec" and not child.values):
                continue
            if type(child) is str:
                out.append(f" {name}={child!a};")
                continue
            if type(child) is list:
                child = _kept(value, name, child, without)
                if not child:
                    continue
            out.append(f" {name}=")
            _write(child, out, without)
        out.append(")")
    else:
        out.append(f"{value!a};")


@cache
def _fields(kind: type) -> tuple[str, ...]:
    # Whether a name is read or written follows from where it stands.
    return tuple(name for name in getattr(kind, "_fields", ()) if name != "ctx")


def _kept(parent: ast.AST, name: str, children: list[Any], without: set[int]) -> list[Any]:
    """The children of a node that carry meaning."""
    if isinstance(parent, ast.JoinedStr):
        return _joined(children)
    kept = [child for child in children if id(child) not in without] if without else children
    if name in ("body", "orelse", "finalbody"):
        top = isinstance(parent, ast.Module)
        kept = [child for child in kept if not _is_silent(child, top)]
    return kept


def _is_silent(statement: Any, top: bool) -> bool:
    """Whether a statement does nothing: a docstring, or the version number of a module."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    if top and isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return isinstance(target, ast.Name) and target.id == "__version__"
    return False


def _joined(values: list[Any]) -> list[Any]:
    """The parts of an f-string with adjoining texts merged: Python versions split them apart
    differently."""
    out: list[Any] = []
    for value in values:
        if isinstance(value, ast.Constant):
            before = out.pop().value if out and isinstance(out[-1], ast.Constant) else ""
            text = str(before) + str(value.value)
            if not text:
                continue
            value = ast.Constant(value=text)
        out.append(value)
    return out


def _rows(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Literal rows of a module's tables: calls in a list or tuple that is assigned at the top and
    whose first argument, or ``name=``, is a text."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            yield from _rows_in(statement.value)


def _rows_in(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        name = _row_name(child) if isinstance(node, ast.List | ast.Tuple) else None
        if name is not None:
            yield name, child
        else:
            yield from _rows_in(child)


def _row_name(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    named = [keyword.value for keyword in node.keywords if keyword.arg == "name"]
    for candidate in [*named, *node.args[:1]]:
        if isinstance(candidate, ast.Constant) and isinstance(candidate.value, str):
            return candidate.value
    return None


def _texts(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value


def _imports(tree: ast.Module, calls: bool) -> Iterator[Import]:
    """Every import that can run, wherever it stands; with ``calls``, ``import_module("a.b")`` too.

    What stands under ``if TYPE_CHECKING`` never runs, but where the module has a ``__getattr__`` it
    declares what that imports lazily.
    """
    lazy = any(isinstance(s, ast.FunctionDef) and s.name == "__getattr__" for s in tree.body)
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), 0)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.module, tuple(alias.name for alias in node.names), node.level)
        elif isinstance(node, ast.Call):
            name = _imported_by_call(node)
            if name is not None:
                yield Import(name, (), 0)
        if isinstance(node, ast.If) and _is_type_checking(node.test) and not lazy:
            pending.extend(node.orelse)
        elif calls:
            pending.extend(ast.iter_child_nodes(node))
        else:  # import statements stand in blocks only, never inside expressions
            for block in ("body", "orelse", "finalbody", "handlers", "cases"):
                pending.extend(getattr(node, block, ()))


def _imported_by_call(node: ast.Call) -> str | None:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else None
    if isinstance(node.func, ast.Name):
        called = node.func.id
    if called not in ("import_module", "__import__") or not node.args:
        return None
    first = node.args[0]
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return None
    return first.value if not first.value.startswith(".") else None


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"
