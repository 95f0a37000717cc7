"""Formulas as arithmetic: a tree of numbers, symbols and a few functions, and nothing else."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping

from zenrepro.errors import InputError
from zenrepro.units import NONE, Dimension

FUNCTIONS: dict[str, Callable[..., float]] = {
    "log2": math.log2, "sqrt": math.sqrt, "min": min, "max": max,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_MOST_NODES = 200


def parse(text: str, place: str) -> ast.expr:
    """Return the expression's tree. Raises InputError naming ``place`` for anything else."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"{place}: {text!r} is not arithmetic; wanted e.g. 2 * h / d") from None
    nodes = list(ast.walk(tree))
    if len(nodes) > _MOST_NODES:
        raise InputError(f"{place}: {text[:40]!r}… is longer than {_MOST_NODES} terms")
    for node in nodes:
        _allow(node, text, place)
    return tree


def _allow(node: ast.AST, text: str, place: str) -> None:
    allowed = (
        ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.Call, ast.Load, ast.USub, ast.UAdd,
        *_OPERATORS,
    )  # fmt: skip
    if not isinstance(node, allowed):
        raise InputError(
            f"{place}: {text!r} uses {type(node).__name__}; a formula has + - * / **, "
            f"{', '.join(FUNCTIONS)}, numbers and symbols"
        )
    if isinstance(node, ast.Constant) and (
        isinstance(node.value, bool) or not isinstance(node.value, int | float)
    ):
        raise InputError(f"{place}: {text!r} contains {node.value!r}, which is no number")
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        if not known or node.keywords or not node.args:
            raise InputError(f"{place}: {text!r} calls what is not one of {', '.join(FUNCTIONS)}")


def symbols(tree: ast.expr) -> set[str]:
    """Names of the symbols in the expression."""
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in called}


def evaluate(tree: ast.expr, values: Mapping[str, float]) -> float:
    """The expression's value; NaN where it has none (division by zero, log of a negative)."""
    try:
        return float(_value(tree, values))
    except (ArithmeticError, ValueError, TypeError):
        return math.nan


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, values)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return FUNCTIONS[node.func.id](*(_value(arg, values) for arg in node.args))
    assert isinstance(node, ast.BinOp)
    return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))


def dimension(tree: ast.expr, units: Mapping[str, Dimension]) -> Dimension | None:
    """The expression's dimension; None where terms of different dimensions are added, a power or
    a logarithm has one, or an exponent is not a whole number."""
    if isinstance(tree, ast.Constant):
        return NONE
    if isinstance(tree, ast.Name):
        return units[tree.id]
    if isinstance(tree, ast.UnaryOp):
        return dimension(tree.operand, units)
    if isinstance(tree, ast.Call):
        found = [dimension(arg, units) for arg in tree.args]
        assert isinstance(tree.func, ast.Name)
        if any(f is None or f != found[0] for f in found):
            return None
        return NONE if tree.func.id == "log2" and found[0] == NONE else (
            None if tree.func.id == "log2" else _root(found[0], tree.func.id)
        )  # fmt: skip
    assert isinstance(tree, ast.BinOp)
    left, right = dimension(tree.left, units), dimension(tree.right, units)
    if left is None or right is None:
        return None
    if isinstance(tree.op, ast.Mult):
        return left * right
    if isinstance(tree.op, ast.Div):
        return left / right
    if isinstance(tree.op, ast.Pow):
        if right != NONE:
            return None
        if left == NONE:
            return NONE
        power = evaluate(tree.right, {}) if not symbols(tree.right) else math.nan
        return left ** int(power) if power == power and power == int(power) else None
    return left if left == right else None


def _root(found: Dimension | None, name: str) -> Dimension | None:
    if found is None or name != "sqrt":
        return found
    if any(power % 2 for power in found):
        return None
    return Dimension(*(power // 2 for power in found))


def shown(source: str) -> str:
    """An expression as a reader writes it: ``h · d_k / d_c`` for ``h * d_k / d_c``."""
    return source.replace(" ** ", "^").replace("**", "^").replace("*", "·")
