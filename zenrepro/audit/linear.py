"""A small linear programme: the least of a linear cost over a polyhedron, by the simplex method.

A few dozen unknowns and rows at most, so a dense tableau does. Steepest columns first, Bland's rule
(which cannot cycle) when that takes long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_EPSILON = 1e-9
_BEFORE_BLAND = 60
_Array = np.ndarray[Any, np.dtype[np.float64]]


def minimise(
    cost: Sequence[float], rows: Sequence[tuple[Sequence[float], float]]
) -> tuple[float, list[float]] | None:
    """Least ``cost @ x`` with ``coefficients @ x <= limit`` for each row and ``x >= 0``.

    Returns (cost, x), or None when no x satisfies the rows. Raises ArithmeticError when the cost
    has no least value.
    """
    unknowns, count = len(cost), len(rows)
    # Dictionary form: basic[i] = table[i, 0] + table[i, 1:] @ free; the last row is the cost.
    free = list(range(unknowns))
    basic = list(range(unknowns, unknowns + count))
    table = np.zeros((count + 1, unknowns + 1))
    for i, (coefficients, limit) in enumerate(rows):
        table[i, 0] = limit
        table[i, 1:] = np.negative(coefficients)
    if count and table[:count, 0].min() < -_EPSILON:
        # Phase one: an extra unknown relaxes every row; its least value tells feasibility.
        extra = unknowns + count
        free.append(extra)
        table = np.hstack([table, np.ones((count + 1, 1))])
        _pivot(table, basic, free, int(table[:count, 0].argmin()), len(free) - 1)
        _descend(table, basic, free)
        if table[-1, 0] > 1e-7:
            return None
        if extra in basic:
            out = basic.index(extra)
            _pivot(table, basic, free, out, int(np.abs(table[out, 1:]).argmax()))
        column = free.index(extra)
        del free[column]
        table = np.delete(table, 1 + column, axis=1)
    table[-1] = 0.0
    for j, name in enumerate(free):
        if name < unknowns:
            table[-1, 1 + j] += cost[name]
    for i, name in enumerate(basic):
        if name < unknowns and cost[name]:
            table[-1] += cost[name] * table[i]
    _descend(table, basic, free)
    point = [0.0] * unknowns
    for i, name in enumerate(basic):
        if name < unknowns:
            point[name] = float(table[i, 0])
    return float(table[-1, 0]), point


def _descend(table: _Array, basic: list[int], free: list[int]) -> None:
    steps = 0
    while True:
        slopes = table[-1, 1:]
        if not len(slopes) or slopes.min() >= -_EPSILON:
            return
        if steps < _BEFORE_BLAND:
            column = int(slopes.argmin())
        else:
            column = min((int(j) for j in np.flatnonzero(slopes < -_EPSILON)), key=free.__getitem__)
        falling = np.flatnonzero(table[:-1, 1 + column] < -_EPSILON)
        if not len(falling):
            raise ArithmeticError("the cost has no least value")
        ratios = table[falling, 0] / -table[falling, 1 + column]
        least = ratios.min()
        row = min(falling[ratios <= least + 1e-12], key=lambda i: basic[i])
        _pivot(table, basic, free, int(row), column)
        steps += 1


def _pivot(table: _Array, basic: list[int], free: list[int], row: int, column: int) -> None:
    scale = -table[row, 1 + column]
    new = table[row] / scale
    new[1 + column] = -1.0 / scale
    factors = table[:, 1 + column].copy()
    factors[row] = 0.0
    table[:, 1 + column] = 0.0
    table += np.outer(factors, new)
    table[row] = new
    basic[row], free[column] = free[column], basic[row]
