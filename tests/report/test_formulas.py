"""Formulas of claims in TeX and in text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zenrepro.claims import Formula, Symbol
from zenrepro.report.formulas import formatted

CASES = [
    ("flops", "order", "N**2 * d", "flops = O(N²·d)"),
    ("ratio", "=", "2 * h * d_k / d_c", "ratio = 2·h·d_k / d_c"),
    ("e", "<=", "v / (g * 2 ** (2 * b))", "e ≤ v / (g·2^(2·b))"),
    ("y", "=", "(a + b) * c - -d", "y = (a + b)·c − (−d)"),
    ("y", ">=", "sqrt(log2(x)) + min(a, 3)", "y ≥ √(log₂(x)) + min(a, 3)"),
    ("y", "=", "a / (b / c)", "y = a / (b / c)"),
    ("y", "=", "not arithmetic $ at all {", "y = not arithmetic $ at all {"),
]


def formula(left: str, relation: str, right: str, **more: list[str]) -> Formula:
    symbols = {"N": Symbol(meaning="sequence length"), "g": Symbol(meaning="weights a group")}
    return Formula(left=left, relation=relation, right=right, symbols=symbols, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("left", "relation", "right", "text"), CASES)
def test_text(left: str, relation: str, right: str, text: str) -> None:
    assert formatted(formula(left, relation, right)).text == text


def test_a_trend_without_sides_is_a_sentence() -> None:
    trend = formula("g", "order", "", increases_with=["N"])
    assert formatted(trend).text == "weights a group grows with sequence length"


def test_every_formula_compiles(compile_tex: Callable[[str], str]) -> None:
    compile_tex("\n\n".join(formatted(formula(*case[:3])).tex for case in CASES))
