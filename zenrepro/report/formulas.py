"""A claim's formula in print: its arithmetic, read by ``ast``, as TeX mathematics and as text."""

from __future__ import annotations

import ast
from typing import NamedTuple

from zenrepro.claims import Formula
from zenrepro.report.escape import Tex, escape

_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi "
    "psi omega".split()
)
_SIGNS = {"=": ("=", "="), "<=": (r"\le", "≤"), ">=": (r"\ge", "≥"), "order": ("=", "=")}
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class Formatted(NamedTuple):
    """A formula for both media."""

    tex: Tex
    text: str


def formatted(formula: Formula) -> Formatted:
    """The whole formula; where it has no sides, what its left side grows and shrinks with."""
    parts: list[Formatted] = []
    if formula.left and formula.right:
        sign_tex, sign_text = _SIGNS[formula.relation]
        left, right = _expression(formula.left), _expression(formula.right)
        if formula.relation == "order":
            right = Formatted(Tex(rf"O({right.tex})"), f"O({right.text})")
        parts.append(
            Formatted(
                Tex(rf"\ensuremath{{{left.tex} {sign_tex} {right.tex}}}"),
                f"{left.text} {sign_text} {right.text}",
            )
        )
    subject = _meaning(formula, formula.left) if formula.left else "it"
    for verb, names in (
        ("grows with", formula.increases_with),
        ("shrinks with", formula.decreases_with),
    ):
        if names:
            words = f"{subject} {verb} {' and '.join(_meaning(formula, n) for n in names)}"
            parts.append(Formatted(escape(words), words))
    return Formatted(Tex("; ".join(p.tex for p in parts)), "; ".join(p.text for p in parts))


def _meaning(formula: Formula, name: str) -> str:
    return formula.symbols[name].meaning if name in formula.symbols else name


def _expression(source: str) -> Formatted:
    """One side. What is not plain arithmetic is printed as it is written."""
    try:
        return _node(ast.parse(source, mode="eval").body, 0)
    except (SyntaxError, _NotArithmetic):
        return Formatted(Tex(rf"\text{{{escape(source)}}}"), source)


class _NotArithmetic(Exception):
    pass


def _node(node: ast.expr, binding: int) -> Formatted:
    """``binding``: how tightly the place binds (0 loose, 1 sum, 2 product, 3 power)."""
    if isinstance(node, ast.Name):
        return _name(node.id)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Formatted(Tex(f"{node.value:g}"), f"{node.value:g}")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _node(node.operand, 2)
        return _bracketed(Formatted(Tex(f"-{inner.tex}"), f"−{inner.text}"), binding >= 2)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(node.func.id, node.args)
    if not isinstance(node, ast.BinOp):
        raise _NotArithmetic
    if isinstance(node.op, ast.Pow):
        base, power = _node(node.left, 3), _node(node.right, 0)
        bare = power.text.translate(_SUPERSCRIPTS)
        raised = bare if power.text.isdigit() else f"^({power.text})"
        return Formatted(Tex(f"{{{base.tex}}}^{{{power.tex}}}"), f"{base.text}{raised}")
    if isinstance(node.op, ast.Div):
        top, bottom = _node(node.left, 2), _node(node.right, 3)
        raw = Formatted(
            Tex(rf"\frac{{{_node(node.left, 0).tex}}}{{{_node(node.right, 0).tex}}}"),
            f"{top.text} / {bottom.text}",
        )
        return Formatted(raw.tex, f"({raw.text})" if binding >= 3 else raw.text)
    if isinstance(node.op, ast.Mult):
        left, right = _node(node.left, 2), _node(node.right, 2)
        digits = right.tex[:1].isdigit()
        joined = Formatted(
            Tex(rf"{left.tex} \cdot {right.tex}" if digits else rf"{left.tex}\,{right.tex}"),
            f"{left.text}·{right.text}",
        )
        return _bracketed(joined, binding >= 3)
    for kind, sign, sign_text in ((ast.Add, "+", "+"), (ast.Sub, "-", "−")):
        if isinstance(node.op, kind):
            left, right = _node(node.left, 1), _node(node.right, 2)
            joined = Formatted(
                Tex(f"{left.tex} {sign} {right.tex}"), f"{left.text} {sign_text} {right.text}"
            )
            return _bracketed(joined, binding >= 2)
    raise _NotArithmetic


def _call(name: str, arguments: list[ast.expr]) -> Formatted:
    inner = [_node(argument, 0) for argument in arguments]
    text = ", ".join(i.text for i in inner)
    tex = ", ".join(i.tex for i in inner)
    known = {"log2": r"\log_2", "min": r"\min", "max": r"\max"}
    if name == "sqrt":
        return Formatted(Tex(rf"\sqrt{{{tex}}}"), f"√({text})")
    if name not in known:
        raise _NotArithmetic
    return Formatted(Tex(rf"{known[name]}({tex})"), f"{name.replace('2', '₂')}({text})")


def _name(name: str) -> Formatted:
    stem, _, index = name.partition("_")
    if stem in _GREEK:
        stem_tex = rf"\{stem}"
    elif len(stem) == 1:
        stem_tex = stem
    else:
        stem_tex = rf"\text{{{escape(stem)}}}"
    if not index:
        return Formatted(Tex(stem_tex), name)
    return Formatted(Tex(rf"{stem_tex}_{{\text{{{escape(index)}}}}}"), name)


def _bracketed(value: Formatted, needed: bool) -> Formatted:
    return Formatted(Tex(f"({value.tex})"), f"({value.text})") if needed else value
