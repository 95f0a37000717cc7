"""A small linear programme: the least of a linear cost over a polyhedron, by the simplex method.

A dozen unknowns and rows at most, so a dense tableau and Bland's rule (which cannot cycle) do.
"""

from __future__ import annotations

from collections.abc import Sequence

_EPSILON = 1e-9


def minimise(
    cost: Sequence[float], rows: Sequence[tuple[Sequence[float], float]]
) -> tuple[float, list[float]] | None:
    """Least ``cost @ x`` with ``coefficients @ x <= limit`` for each row and ``x >= 0``.

    Returns (cost, x), or None when no x satisfies the rows. Raises ArithmeticError when the cost
    has no least value.
    """
    unknowns, count = len(cost), len(rows)
    # Dictionary form: basic[i] = table[i][0] + sum(table[i][1 + j] * free[j]).
    free = list(range(unknowns))
    basic = list(range(unknowns, unknowns + count))
    table = [[float(limit), *(-float(c) for c in coefficients)] for coefficients, limit in rows]
    if any(row[0] < -_EPSILON for row in table):
        # Phase one: an extra unknown relaxes every row; its least value tells feasibility.
        extra = unknowns + count
        free.append(extra)
        for row in table:
            row.append(1.0)
        goal = [0.0] * (len(free) + 1)
        goal[-1] = 1.0
        worst = min(range(count), key=lambda i: table[i][0])
        _pivot(table, goal, basic, free, worst, len(free) - 1)
        _descend(table, goal, basic, free)
        if goal[0] > 1e-7:
            return None
        if extra in basic:
            out = basic.index(extra)
            column = max(range(len(free)), key=lambda j: abs(table[out][1 + j]))
            _pivot(table, goal, basic, free, out, column)
        column = free.index(extra)
        del free[column]
        for row_values in table:
            del row_values[1 + column]
    goal = [0.0] * (len(free) + 1)
    for j, name in enumerate(free):
        if name < unknowns:
            goal[1 + j] += cost[name]
    for i, name in enumerate(basic):
        if name < unknowns:
            for j, value in enumerate(table[i]):
                goal[j] += cost[name] * value
    _descend(table, goal, basic, free)
    point = [0.0] * unknowns
    for i, name in enumerate(basic):
        if name < unknowns:
            point[name] = table[i][0]
    return goal[0], point


def _descend(
    table: list[list[float]], goal: list[float], basic: list[int], free: list[int]
) -> None:
    while True:
        entering = [j for j in range(len(free)) if goal[1 + j] < -_EPSILON]
        if not entering:
            return
        column = min(entering, key=lambda j: free[j])
        limits = [
            (table[i][0] / -table[i][1 + column], basic[i], i)
            for i in range(len(table))
            if table[i][1 + column] < -_EPSILON
        ]
        if not limits:
            raise ArithmeticError("the cost has no least value")
        _pivot(table, goal, basic, free, min(limits)[2], column)


def _pivot(
    table: list[list[float]], goal: list[float], basic: list[int], free: list[int],
    row: int, column: int,
) -> None:  # fmt: skip
    old = table[row]
    scale = -old[1 + column]
    new = [value / scale for value in old]
    new[1 + column] = -1.0 / scale
    table[row] = new
    for other in (*(r for i, r in enumerate(table) if i != row), goal):
        factor = other[1 + column]
        if factor == 0.0:
            continue
        other[1 + column] = 0.0
        for j, value in enumerate(new):
            other[j] += factor * value
    basic[row], free[column] = free[column], basic[row]
