"""Numerical experiments that try formulas: small, seeded, counted or computed with NumPy.

A claim names one in ``method``. Symbols of its formula are taken by these names: N sequence
length, d head dimension; h heads, d_k key dimension of a head, d_c dimension of the latent;
variance of the weights, g weights a group, b bits a weight; a acceptance, gamma drafted tokens.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from zenrepro.audit import expressions
from zenrepro.audit.engine import Outcome, number
from zenrepro.claims import Formula
from zenrepro.errors import InputError

if TYPE_CHECKING:
    import numpy as np

SEED = 20250601
TILE = 64  # rows and columns of a tile of the attention scores
# Growth is compared between two lengths far above the other sizes, so that lower orders vanish.
_LENGTH, _HEAD = 8192, 64
_SAME_ORDER = 0.15  # of an exponent


def attention_flops(length: int, head: int) -> float:
    """Floating-point operations of standard attention: scores, softmax, weighted values."""
    scores = 2 * length * length * head
    softmax = 4 * length * length  # maximum, subtraction and exponential, sum, division
    return float(scores + softmax + 2 * length * length * head)


def standard_intermediates(length: int, head: int) -> float:
    """Elements that standard attention holds beyond its inputs: scores and the output."""
    return float(length * length + length * head)


def tiled_intermediates(length: int, head: int) -> float:
    """Elements that tiled attention holds beyond its inputs: output and two statistics a row."""
    return float(length * head + 2 * length)


def standard_traffic(length: int, head: int) -> float:
    """Elements that standard attention moves to and from device memory."""
    inputs, scores, output = 3 * length * head, length * length, length * head
    return float(inputs + 4 * scores + output)  # scores and probabilities written and read


def tiled_traffic(length: int, head: int) -> float:
    """Elements that tiled attention moves, counted tile by tile: each tile of queries passes over
    all keys and values."""
    moved = 0
    for rows in range(0, length, TILE):
        held = min(TILE, length - rows)
        moved += held * head  # queries in
        for columns in range(0, length, TILE):
            moved += 2 * min(TILE, length - columns) * head  # keys and values in
        moved += held * head  # output out
    return float(moved)


# What a growth claim of this quantity may count: any of these algorithms' counts saves it.
GROWTH: dict[tuple[str, str], dict[str, Callable[[int, int], float]]] = {
    ("count", "flops"): {"standard attention": attention_flops},
    ("memory", "working"): {
        "standard attention": standard_intermediates, "tiled attention": tiled_intermediates,
    },
    ("traffic", "device"): {
        "standard attention": standard_traffic, "tiled attention": tiled_traffic,
    },
}  # fmt: skip


def growth(formula: Formula, quantity: str, metric: str) -> list[Outcome]:
    """Growth of the counted work in N and d against the formula's, as exponents.

    One outcome: it holds when some algorithm's count grows like the right side.
    """
    counters = GROWTH.get((quantity, metric))
    if counters is None or not formula.right:
        return [Outcome(None)]
    tree = expressions.parse(formula.right, "formula")
    if not expressions.symbols(tree) <= {"N", "d"}:
        return [Outcome(None)]
    base = {"N": float(_LENGTH), "d": float(_HEAD)}
    told: list[str] = []
    for name, count in counters.items():
        fits = []
        for symbol in ("N", "d"):
            if symbol == "d" and "d" not in expressions.symbols(tree):
                continue
            # d is doubled where it dominates: at a long sequence, far above the constants.
            point = base if symbol == "N" else {"N": 1024.0, "d": 4096.0}
            twice = {**point, symbol: 2 * point[symbol]}
            counted = math.log2(
                count(int(twice["N"]), int(twice["d"])) / count(int(point["N"]), int(point["d"]))
            )
            stated = math.log2(
                expressions.evaluate(tree, twice) / expressions.evaluate(tree, point)
            )
            fits.append(abs(counted - stated) <= _SAME_ORDER)
            told.append(f"{name} as {symbol} to the {counted:.2f}")
        if all(fits):
            return [Outcome(True, f"grows, counted over doublings: {', '.join(told)}")]
    counts = f"grows, counted over doublings: {', '.join(told)}"
    order = expressions.shown(formula.right)
    return [Outcome(False, f"{counts}; stated {order}", "the counted growth")]


def tiled_softmax(formula: Formula, quantity: str, metric: str) -> list[Outcome]:
    """Output from tiles, exponentials against each tile's own maximum rescaled to the row's,
    against the direct softmax. The alternative, tiles normalised before they are summed, is tried
    too and shown to differ."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    q, k, v = (rng.standard_normal((96, 16)) for _ in range(3))
    scores = q @ k.T / math.sqrt(16)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    direct = weights @ v / weights.sum(axis=1, keepdims=True)
    apart = {}
    for normalised in (False, True):
        row_max = scores.max(axis=1, keepdims=True)
        total = np.zeros((96, 1))
        out = np.zeros((96, 16))
        for start in range(0, 96, 32):
            tile = scores[:, start : start + 32]
            tile_max = tile.max(axis=1, keepdims=True)
            p = np.exp(tile - tile_max)
            total += np.exp(tile_max - row_max) * p.sum(axis=1, keepdims=True)
            if normalised:
                p /= p.sum(axis=1, keepdims=True)
            out += np.exp(tile_max - row_max) * p @ v[start : start + 32]
        apart[normalised] = float(np.abs(out / total - direct).max())
    arithmetic = (
        f"largest difference from the direct softmax: {apart[False]:.0e} with exponentials "
        f"against the tile's maximum, {apart[True]:.0e} with tiles normalised first"
    )
    return [Outcome(min(apart.values()) < 1e-9, arithmetic)]


def latent_cache(formula: Formula, quantity: str, metric: str) -> list[Outcome]:
    """Cache elements of ordinary heads over those of the latent, counted for some shapes: keys
    alone, or keys and values, over the latent alone or with the rotary part that is kept beside
    it. Holds when the formula gives one of these counts at every shape."""
    tree = expressions.parse(formula.right, "formula")
    if not expressions.symbols(tree) <= {"h", "d_k", "d_c", "d_r"}:
        return [Outcome(None)]
    shapes = [(16, 128, 512, 64), (24, 128, 576, 32), (64, 192, 512, 64)]
    for tensors, rotary in itertools.product((1, 2), (False, True)):
        what = "keys alone" if tensors == 1 else "keys and values"
        if all(
            math.isclose(
                expressions.evaluate(tree, {"h": h, "d_k": d_k, "d_c": d_c, "d_r": d_r}),
                sum(d_k for _ in range(h)) * tensors / (d_c + rotary * d_r),
            )
            for h, d_k, d_c, d_r in shapes
        ):
            over = "the latent's with its rotary part" if rotary else "the latent's"
            return [Outcome(True, f"counted cache of {what} over {over}")]
    return [Outcome(False, f"{formula.right} counts neither keys nor keys and values", "h·d_k/d_c")]


@functools.cache
def quantisation_errors(group: int, bits: int) -> dict[str, float]:
    """Squared error of rounding Gaussian weights of variance 1 with one scale a group.

    The least of three quantisers: symmetric and asymmetric integers, and normal-float levels.
    Returns sums over the matrix and over the mean group, and the mean over the weights.
    """
    import numpy as np

    weights = np.random.default_rng(SEED).standard_normal((256, 1024)).reshape(-1, group)
    errors = []
    for quantise in (_symmetric, _asymmetric, _normal_float):
        errors.append(float(((weights - quantise(weights, bits)) ** 2).sum()))
    total = min(errors)
    return {
        "summed over the matrix": total,
        "summed over one group": total / len(weights),
        "mean over the weights": total / weights.size,
    }


def _symmetric(w: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    import numpy as np

    top = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / top
    return np.clip(np.round(w / scale), -top - 1, top) * scale


def _asymmetric(w: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    import numpy as np

    low = w.min(axis=1, keepdims=True)
    scale = (w.max(axis=1, keepdims=True) - low) / (2**bits - 1)
    return np.round((w - low) / scale) * scale + low


def _normal_float(w: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Levels at the quantiles of the normal distribution, scaled to the group's largest weight."""
    from statistics import NormalDist

    import numpy as np

    count = 2**bits
    levels = np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    levels /= levels.max()
    scale = np.abs(w).max(axis=1, keepdims=True)
    borders = (levels[1:] + levels[:-1]) / 2
    return levels[np.searchsorted(borders, w / scale)] * scale


def group_quantisation(formula: Formula, quantity: str, metric: str) -> list[Outcome]:
    """Error of group-wise quantisation of Gaussian weights against the formula's bound.

    One outcome for each thing that the error may mean, at the groups 32 to 256.
    """
    if not formula.right:
        return [Outcome(None)]
    tree = expressions.parse(formula.right, "formula")
    if not expressions.symbols(tree) <= {"variance", "g", "b"}:
        return [Outcome(None)]
    bits = int(formula.symbols["b"].value or 4) if "b" in formula.symbols else 4
    held: dict[str, bool] = {}
    worst: dict[str, str] = {}
    for group in (32, 64, 128, 256):
        bound = expressions.evaluate(tree, {"variance": 1.0, "g": float(group), "b": float(bits)})
        for what, error in quantisation_errors(group, bits).items():
            fits = error <= bound if formula.relation == "<=" else error >= bound
            held[what] = held.get(what, True) and fits
            if group == 128 or what not in worst:
                worst[what] = (
                    f"bound {number(bound)} σ² at g = {group} and b = {bits}, error {what} "
                    f"{number(error)} σ² (Gaussian weights, best of three quantisers)"
                )
    mend = (
        f"a bound that does not fall with g: no quantiser of {bits} bits errs less than "
        f"σ²/{number(2.0 ** (2 * bits))} a weight on Gaussian weights"
    )
    return [Outcome(held[what], worst[what], mend, f"the error is {what}") for what in held]


def group_trend(increases: Mapping[str, int]) -> Outcome | None:
    """Whether the mean error moves with the group size as a sentence says (+1 with, -1 against)."""
    if "g" not in increases:
        return None
    errors = {g: quantisation_errors(g, 4)["mean over the weights"] for g in (32, 64, 128, 256)}
    ordered = [errors[g] for g in sorted(errors)]
    rising = all(a < b for a, b in itertools.pairwise(ordered))
    told = ", ".join(f"g = {g}: {number(e)} σ²" for g, e in sorted(errors.items()))
    return Outcome(rising == (increases["g"] > 0), f"mean error measured {told}")


def expected_tokens(formula: Formula, quantity: str, metric: str) -> list[Outcome]:
    """Tokens a step of speculative decoding, summed over all ways to accept, and the formula's."""
    tree = expressions.parse(formula.right, "formula")
    if not expressions.symbols(tree) <= {"a", "gamma"}:
        return [Outcome(None)]
    for a in (0.5, 0.71, 0.88):
        for gamma in (1, 5, 8):
            counted = sum(
                (i + 1) * a**i * (1 - a) for i in range(gamma)
            ) + (gamma + 1) * a**gamma  # fmt: skip
            stated = expressions.evaluate(tree, {"a": a, "gamma": float(gamma)})
            if not math.isclose(counted, stated, rel_tol=1e-9):
                arithmetic = f"a = {a}, gamma = {gamma}: {number(counted)} tokens a step counted, "
                return [Outcome(False, arithmetic + f"{number(stated)} by the formula")]
    return [Outcome(True, "equal to the counted expectation at nine points")]


TRIALS: dict[str, Callable[[Formula, str, str], list[Outcome]]] = {
    "attention-flops": growth,
    "attention-intermediates": growth,
    "attention-traffic": growth,
    "tiled-softmax": tiled_softmax,
    "latent-cache": latent_cache,
    "group-quantisation": group_quantisation,
    "expected-tokens": expected_tokens,
}


def find(method: str, place: str) -> Callable[[Formula, str, str], list[Outcome]]:
    """The experiment with this name. Raises InputError for an unknown one."""
    try:
        return TRIALS[method]
    except KeyError:
        raise InputError(
            f"{place}: no numerical experiment {method!r}; known: {', '.join(TRIALS)}"
        ) from None
