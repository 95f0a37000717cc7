"""The arithmetic under the rules: intervals, the linear programme, formulas, the experiments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro.audit import expressions, trials
from zenrepro.audit.intervals import EVERYTHING, add, divide, multiply, subtract, total
from zenrepro.audit.linear import minimise
from zenrepro.claims import Formula, Symbol
from zenrepro.errors import InputError
from zenrepro.printed import Interval
from zenrepro.units import NONE, UNITS

FINITE = st.integers(-(10**9), 10**9).map(lambda k: k / 1000)


@st.composite
def inside(draw: st.DrawFn) -> tuple[Interval, float]:
    """An interval and a point in it."""
    a, b = sorted((draw(FINITE), draw(FINITE)))
    return Interval(a, b), a + (b - a) * draw(st.floats(0, 1))


@given(inside(), inside())
def test_results_hold_every_result_of_points(
    a: tuple[Interval, float], b: tuple[Interval, float]
) -> None:
    (i, x), (j, y) = a, b
    for combine, value in (
        (add, x + y), (subtract, x - y), (multiply, x * y), (divide, x / y if y else None),
    ):  # fmt: skip
        if value is None:
            continue
        found = combine(i, j)
        slack = 1e-9 * max(1.0, abs(value))
        assert found.low - slack <= value <= found.high + slack


def test_division_by_what_may_be_zero_says_nothing() -> None:
    assert divide(Interval(1, 2), Interval(-1, 1)) == EVERYTHING
    assert total([]) == Interval(0, 0)


COEFFICIENT = st.integers(-3, 3).map(float)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_linear_programme_finds_the_best_corner(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    vector = st.lists(COEFFICIENT, min_size=n, max_size=n)
    limits = st.integers(-6, 9).map(lambda k: k / 2)
    rows = data.draw(st.lists(st.tuples(vector, limits), max_size=5))
    rows = [*rows, ([1.0] * n, 10.0)]
    cost = data.draw(vector)
    matrix = np.array([r for r, _ in rows] + [list(-row) for row in np.eye(n)])
    limit = np.array([b for _, b in rows] + [0.0] * n)
    best = None
    for chosen in itertools.combinations(range(len(matrix)), n):
        corner = matrix[list(chosen)]
        if abs(np.linalg.det(corner)) < 1e-9:
            continue
        x = np.linalg.solve(corner, limit[list(chosen)])
        if (matrix @ x <= limit + 1e-7).all():
            value = float(np.array(cost) @ x)
            best = value if best is None else min(best, value)
    found = minimise(cost, rows)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert found[0] == pytest.approx(best, abs=1e-6)
        assert (matrix @ np.array(found[1]) <= limit + 1e-6).all()


def test_a_cost_without_a_least_value() -> None:
    with pytest.raises(ArithmeticError):
        minimise([-1.0], [([-1.0], 0.0)])


def test_expressions_compute_and_know_their_symbols() -> None:
    tree = expressions.parse("sqrt(x) * 2 ** -b + min(x, 3) / log2(8)", "here")
    assert expressions.symbols(tree) == {"x", "b"}
    assert expressions.evaluate(tree, {"x": 4.0, "b": 1.0}) == pytest.approx(1 + 1)
    assert math.isnan(expressions.evaluate(expressions.parse("1 / x", "here"), {"x": 0.0}))


@pytest.mark.parametrize(
    "text", ["x if x else 1", "(lambda: 1)()", "x[0]", "'a'", "True", "open('f')", "1;2", "x := 2"]
)
def test_expressions_are_arithmetic_and_nothing_else(text: str) -> None:
    with pytest.raises(InputError, match="here"):
        expressions.parse(text, "here")


@given(st.text(max_size=30))
def test_no_text_gets_through_to_python(text: str) -> None:
    try:
        tree = expressions.parse(text, "here")
    except InputError:
        return
    assert isinstance(
        expressions.evaluate(tree, dict.fromkeys(expressions.symbols(tree), 2)), float
    )


def test_dimensions() -> None:
    units = {"n": UNITS["B"].dimension, "r": UNITS["B/s"].dimension, "k": NONE}

    def of(text: str) -> object:
        return expressions.dimension(expressions.parse(text, "here"), units)

    assert of("n / r") == UNITS["s"].dimension
    assert of("sqrt(n ** 2) * k") == UNITS["B"].dimension
    assert of("n + r") is None
    assert of("log2(n)") is None
    assert of("n ** k") is None


def growth(right: str) -> Formula:
    names = {"N": Symbol(meaning="length"), "d": Symbol(meaning="head")}
    return Formula(left="y", relation="order", right=right, symbols=names)


@pytest.mark.parametrize(
    ("right", "quantity", "metric", "holds"),
    [
        ("N**2 * d", "count", "flops", True),
        ("N * d", "count", "flops", False),
        ("N**2", "memory", "working", True),
        ("N", "memory", "working", True),  # tiled
        ("N**3", "memory", "working", False),
        ("N**2", "traffic", "device", True),
        ("N", "traffic", "device", False),
    ],
)
def test_growth_is_counted(right: str, quantity: str, metric: str, holds: bool) -> None:
    (outcome,) = trials.growth(growth(right), quantity, metric)
    assert outcome.holds is holds


def test_traffic_of_tiles_is_counted_exactly() -> None:
    # Two tiles of rows, each over two of columns: queries and outputs once, keys, values twice.
    n, d = 2 * trials.TILE, 8
    assert trials.tiled_traffic(n, d) == 2 * n * d + 2 * (2 * n * d)


def test_the_tiled_softmax_formula_holds_unnormalised_only() -> None:
    (outcome,) = trials.tiled_softmax(growth("N"), "error", "absolute")
    assert outcome.holds
    wrong = outcome.arithmetic.split("maximum, ")[1]
    assert float(wrong.split()[0]) > 1e-3


def test_group_quantisation_errs_like_theory() -> None:
    errors = trials.quantisation_errors(128, 4)
    # Between the rate-distortion bound of a Gaussian and a careless quantiser.
    assert 2.0**-8 < errors["mean over the weights"] < 0.02
    assert errors["summed over one group"] == pytest.approx(128 * errors["mean over the weights"])
    rising = trials.group_trend({"g": 1})
    falling = trials.group_trend({"g": -1})
    assert rising is not None
    assert falling is not None
    assert (rising.holds, falling.holds) == (True, False)


def test_expected_tokens() -> None:
    symbols = {"a": Symbol(meaning="acceptance"), "gamma": Symbol(meaning="drafted")}
    for right, holds in (("(1 - a**(gamma + 1)) / (1 - a)", True), ("1 + a * gamma", False)):
        given_ = Formula(left="t", relation="=", right=right, symbols=symbols)
        assert trials.expected_tokens(given_, "count", "tokens")[0].holds is holds
