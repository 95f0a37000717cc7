"""Rounding to a number format on the host, so that a reference can use the same precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Half the distance between 1 and the next number: the largest relative error of one rounding.
UNIT_ROUNDOFF: dict[str, float] = {
    "fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8,
    "fp8_e4m3": 2.0**-4,
}  # fmt: skip


def rounded(array: NDArray[np.floating], dtype: str) -> NDArray[np.float32]:
    """The fp32 array with every element rounded to ``dtype`` (to nearest, ties to even).

    ``dtype``: fp32, fp16, bf16 or fp8_e4m3 (beyond 464, which rounds to its largest number, 448, it
    is NaN). Raises ValueError for another.
    """
    wide = np.asarray(array, dtype=np.float32)
    if dtype == "fp32":
        return wide
    if dtype == "fp16":
        with np.errstate(over="ignore"):  # beyond 65504 is inf in fp16 too
            return wide.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = wide.view(np.uint32)
        # bf16 is the upper half of fp32: add half of the lost part, and one more when odd.
        up = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))).view(np.uint32)
        out = (up & np.uint32(0xFFFF0000)).view(np.float32)
        return np.where(np.isfinite(wide), out, wide)
    if dtype == "fp8_e4m3":
        # Four significant bits; below 2^-6 steps of 2^-9. np.rint rounds ties to even.
        with np.errstate(over="ignore", invalid="ignore"):
            exponent = np.maximum(np.frexp(wide)[1] - 4, -9)
            near = np.ldexp(np.rint(np.ldexp(wide, -exponent)), exponent)
        return np.where(np.abs(near) > 448, np.float32(np.nan), near).astype(np.float32)
    raise ValueError(f"dtype wants fp32, fp16, bf16 or fp8_e4m3, got {dtype!r}")
