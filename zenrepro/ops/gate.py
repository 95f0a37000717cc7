"""The correctness gate: no speed is reported of an implementation whose output is wrong."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Verdict(NamedTuple):
    """``error`` is ||out - wanted|| / ||wanted||, None when it is not a finite number."""

    passed: bool
    error: float | None
    bound: float
    reason: str | None


def relative_error(out: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """||out - wanted|| / ||wanted|| in fp64 (Frobenius); NaN or inf where either holds one.

    Both zero is 0. Raises ValueError when the shapes differ.
    """
    if out.shape != wanted.shape:
        raise ValueError(f"out has shape {out.shape}, wanted has {wanted.shape}")
    size = float(np.linalg.norm(wanted.astype(np.float64)))
    difference = float(np.linalg.norm(out.astype(np.float64) - wanted.astype(np.float64)))
    if size == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / size


def judge(out: NDArray[np.floating], wanted: NDArray[np.floating], bound: float) -> Verdict:
    """Whether ``out`` is ``wanted`` within the relative ``bound``. NaN never passes."""
    if out.shape != wanted.shape:
        reason = f"wrong output: its shape is {out.shape}, the reference's {wanted.shape}"
        return Verdict(False, None, bound, reason)
    lost = int(np.size(out) - np.count_nonzero(np.isfinite(out)))
    if lost:
        reason = f"wrong output: {lost} of {np.size(out)} compared elements are NaN or infinite"
        return Verdict(False, None, bound, reason)
    error = relative_error(out, wanted)
    if not error <= bound:
        reason = f"wrong output: relative error {error:.2e} against fp64, bound {bound:.2e}"
        return Verdict(False, error if math.isfinite(error) else None, bound, reason)
    return Verdict(True, error, bound, None)
