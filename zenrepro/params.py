"""Typed notebook parameters, read from the notebook without running it.

The one cell tagged ``parameters`` holds annotated literals and nothing else that matters::

    backend: Literal["torch", "jax", "mlx"] = "torch"
    seed: int = 0

What an experiment accepts is its ``Parameters`` struct; both are the same kind of declaration.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from zenrepro.errors import InputError

TAG = "parameters"
_TYPES: dict[str, type] = {
    "bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict,
    "None": type(None),
}  # fmt: skip
_WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text",
    "list": "a list", "dict": "a mapping", "None": "none",
}  # fmt: skip
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter: the names of its types, the values it is limited to, and its default.

    ``choices`` None allows every value of ``types``; None itself is allowed where ``types`` has it.
    """

    name: str
    types: tuple[str, ...]
    choices: tuple[Any, ...] | None = None
    default: Any = None

    def wants(self) -> str:
        """What it accepts, in words."""
        if self.choices is not None:
            words = [_shown(choice) for choice in self.choices]
        else:
            words = [_WORDS[name] for name in self.types if name != "None"]
        return ("one of " if len(words) > 1 and self.choices else "") + (
            ", ".join(words) + (" or none" if "None" in self.types else "")
        )

    def accepts(self, value: Any) -> bool:
        """Whether the value has the parameter's type and is allowed."""
        if value is None:
            return "None" in self.types
        if self.choices is not None:
            return any(type(c) is type(value) and c == value for c in self.choices)
        if isinstance(value, bool):
            return "bool" in self.types
        if isinstance(value, int) and "float" in self.types:
            return True
        return any(isinstance(value, _TYPES[name]) for name in self.types)


# -- reading notebooks ---------------------------------------------------------------------------


def read(notebook: Path) -> list[Parameter]:
    """The parameters that a notebook declares, in their order; runs nothing.

    Raises InputError naming the notebook when it can't be read, has no or two cells tagged
    ``parameters``, or that cell holds anything but annotated literals.
    """
    try:
        text = notebook.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{notebook}: cannot be read ({reason})") from None
    return parse_notebook(text, str(notebook))


def parse_notebook(text: str, place: str) -> list[Parameter]:
    """The parameters in a notebook's JSON. Raises InputError naming ``place``."""
    tagged = [
        _source(cell) for cell in _cells(text, place)
        if cell.get("cell_type") == "code" and TAG in _tags(cell)
    ]  # fmt: skip
    if len(tagged) != 1:
        found = "no cell is" if not tagged else f"{len(tagged)} cells are"
        raise InputError(
            f"{place}: {found} tagged {TAG!r}; tag the one cell that declares its parameters"
        )
    return declarations(tagged[0], f"{place}, parameters cell")


def code_cells(text: str, place: str) -> list[str]:
    """The sources of a notebook's code cells. Raises InputError naming ``place``."""
    return [_source(c) for c in _cells(text, place) if c.get("cell_type") == "code"]


def declarations(source: str, place: str) -> list[Parameter]:
    """The annotated literals of a parameters cell; imports and texts beside them are allowed."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{place}: not Python (line {error.lineno}: {error.msg})") from None
    except ValueError as error:  # null bytes, in some versions of Python
        raise InputError(f"{place}: not Python ({error})") from None
    found: list[Parameter] = []
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
            continue
        where = f"{place}, line {statement.lineno}"
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            raise InputError(f"{where}: wanted `name: type = literal`, found other code")
        name = statement.target.id
        if any(parameter.name == name for parameter in found):
            raise InputError(f"{where}: parameter {name!r} is declared twice")
        types, choices = _annotation(statement.annotation, f"{where}: parameter {name!r}")
        try:
            default = ast.literal_eval(statement.value)
        except (ValueError, SyntaxError):
            raise InputError(f"{where}: parameter {name!r} wants a literal value") from None
        parameter = Parameter(name=name, types=types, choices=choices, default=default)
        if not parameter.accepts(default):
            raise InputError(
                f"{where}: parameter {name!r} wants {parameter.wants()}, got {default!r}"
            )
        found.append(parameter)
    return found


def assignments(source: str) -> dict[str, Any] | None:
    """The values of a cell that only assigns literals to names; None for any other cell.

    Parameters cells are such cells, and so is the one that papermill injects.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    values: dict[str, Any] = {}
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
            continue
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            target, value = statement.target, statement.value
        elif (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            target, value = statement.targets[0], statement.value
        else:
            return None
        try:
            values[target.id] = None if value is None else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return None
    return values


def assigned(executed: Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that a running notebook was given as parameters, known or not.

    ``executed`` are the cells run so far. The last one that declares any of ``names`` with its
    type is the parameters cell; the last one that begins as papermill's does is the injected one.
    """
    known = set(names)
    declared: set[str] = set()
    injected: set[str] = set()
    for cell in executed:
        values = assignments(cell)
        if not values:
            continue
        if cell.lstrip().startswith("# Parameters"):
            injected = set(values)
        elif known & set(values) and ":" in cell:
            declared, injected = set(values), set()
    return declared | injected


# -- what an experiment accepts ------------------------------------------------------------------


def of_struct(struct: type[Any]) -> list[Parameter]:
    """The parameters that a ``msgspec.Struct`` declares; every field has a default."""
    found = []
    for field in msgspec.structs.fields(struct):
        types, choices = _inspected(field.type)
        default = field.default
        if default is msgspec.NODEFAULT:
            default = (
                None if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            )
        found.append(
            Parameter(name=field.encode_name, types=types, choices=choices, default=default)
        )
    return found


def agree(notebook: Sequence[Parameter], struct: Sequence[Parameter], place: str) -> None:
    """Check that the experiment accepts what the notebook declares, defaults included.

    Raises InputError naming ``place`` and the parameter.
    """
    accepted = {parameter.name: parameter for parameter in struct}
    refuse_unknown((parameter.name for parameter in notebook), struct, place)
    for parameter in notebook:
        _check(accepted[parameter.name], parameter.default, place)


def refuse_unknown(given: Iterable[str], parameters: Sequence[Parameter], place: str) -> None:
    """Raise InputError for the first name that is not a parameter, with the nearest one."""
    known = [parameter.name for parameter in parameters]
    for name in given:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"{place}: unknown parameter {name!r}; {mend}")


def validate(
    parameters: Sequence[Parameter], given: Mapping[str, Any], place: str = "parameters"
) -> dict[str, Any]:
    """All parameters' values: the given ones checked, the defaults elsewhere.

    Whole numbers become floats where a number is wanted. Raises InputError naming the parameter.
    """
    refuse_unknown(given, parameters, place)
    values = {}
    for parameter in parameters:
        value = given.get(parameter.name, parameter.default)
        values[parameter.name] = _check(parameter, value, place)
    return values


def build(struct: type[Any], values: Mapping[str, Any], place: str) -> Any:
    """The struct itself, its own constraints checked. Raises InputError naming ``place``."""
    try:
        return msgspec.convert(dict(values), struct)
    except msgspec.ValidationError as error:
        raise InputError(f"{place}: {error}") from None


def parse(text: str, parameters: Sequence[Parameter]) -> tuple[str, Any]:
    """Read ``KEY=VALUE`` by the parameter's type. Raises InputError for what it can't be."""
    name, equals, word = text.partition("=")
    if not equals or not name:
        raise InputError(f"-p {text}: wanted KEY=VALUE")
    refuse_unknown([name], parameters, "-p")
    parameter = next(p for p in parameters if p.name == name)
    value = _word(word, parameter)
    if not parameter.accepts(value):
        raise InputError(f"-p {name}: wants {parameter.wants()}, got {word!r}")
    return name, value


# -- inside --------------------------------------------------------------------------------------


def _check(parameter: Parameter, value: Any, place: str) -> Any:
    if not parameter.accepts(value):
        raise InputError(
            f"{place}: parameter {parameter.name!r} wants {parameter.wants()}, got {value!r}"
        )
    if parameter.name == "seed" and type(value) is int and value < 0:
        # Random generators take no negative one; every point would fail, and replace its records.
        raise InputError(f"{place}: parameter 'seed' wants 0 or more, got {value}")
    wants_float = "float" in parameter.types and "int" not in parameter.types
    return float(value) if wants_float and type(value) is int else value


def _word(word: str, parameter: Parameter) -> Any:
    """The word as the first of the parameter's types that it can be, else as text."""
    if "None" in parameter.types and word.lower() in ("none", "null", ""):
        return None
    for choice in parameter.choices or ():
        if _shown(choice) == word:
            return choice
    for name in parameter.types:
        try:
            if name == "bool" and word.lower() in _TRUTH:
                return _TRUTH[word.lower()]
            if name in ("int", "float"):
                return _TYPES[name](word)
            if name in ("list", "dict"):
                return json.loads(word)
        except (ValueError, OverflowError):
            continue
    return word


def _annotation(node: ast.expr, place: str) -> tuple[tuple[str, ...], tuple[Any, ...] | None]:
    """(types, choices) of ``int``, ``list[int]``, ``Literal[...]`` and unions of these."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_annotation(node.left, place), _annotation(node.right, place)])
    if isinstance(node, ast.Constant) and node.value is None:
        return ("None",), None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _annotation(ast.parse(node.value, mode="eval").body, place)
        except SyntaxError:
            pass
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return (node.id,), None
    if isinstance(node, ast.Subscript):
        kind = ast.unparse(node.value).removeprefix("typing.")
        if kind == "Literal":
            try:
                values = ast.literal_eval(node.slice)
            except ValueError:
                raise InputError(f"{place}: Literal wants literal values") from None
            return _literal(values if isinstance(values, tuple) else (values,))
        if kind == "Optional":
            return _union([_annotation(node.slice, place), (("None",), None)])
        if kind in ("list", "dict"):
            return (kind,), None
    raise InputError(
        f"{place}: unknown type {ast.unparse(node)!r}; known: Literal[...], "
        f"{', '.join(_TYPES)} and unions of them"
    )


def _inspected(kind: Any) -> tuple[tuple[str, ...], tuple[Any, ...] | None]:
    """(types, choices) of a resolved annotation; those of a Literal keep their order."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _inspected(get_args(kind)[0])
    if origin is Literal:
        return _literal(get_args(kind))
    if origin in (Union, UnionType):
        return _union([_inspected(part) for part in get_args(kind)])
    if origin in (list, tuple) or kind is tuple:
        return ("list",), None
    for name, of in _TYPES.items():
        if kind is of or origin is of:
            return (name,), None
    raise TypeError(f"a parameter can't be of type {kind}")


def _literal(values: Iterable[Any]) -> tuple[tuple[str, ...], tuple[Any, ...] | None]:
    values = tuple(values)
    types = dict.fromkeys("None" if v is None else type(v).__name__ for v in values)
    return tuple(types), tuple(v for v in values if v is not None)


def _union(
    parts: Sequence[tuple[tuple[str, ...], tuple[Any, ...] | None]],
) -> tuple[tuple[str, ...], tuple[Any, ...] | None]:
    types = tuple(dict.fromkeys(name for part in parts for name in part[0]))
    limited = [choices for _, choices in parts if choices is not None]
    free = any(choices is None and names != ("None",) for names, choices in parts)
    return types, None if free or not limited else tuple(c for part in limited for c in part)


def _cells(text: str, place: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{place}: not a notebook ({error})") from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise InputError(f"{place}: not a notebook of format 4 (no list of cells)")
    return cells


def _tags(cell: Mapping[str, Any]) -> list[str]:
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return tags if isinstance(tags, list) else []


def _source(cell: Mapping[str, Any]) -> str:
    source = cell.get("source", "")
    return "".join(source) if isinstance(source, list) else str(source)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
