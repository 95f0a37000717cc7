"""What every attention implementation checks before it launches anything."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Sizes of one call, and the scale that it uses."""

    batch: int
    query_len: int
    cache_len: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float


def check(q: Any, k: Any, v: Any, *, causal: bool, scale: float | None = None) -> Shape:
    """Return the sizes of q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv].

    Takes arrays of any framework. Raises ValueError naming the argument, what came and what is
    wanted.
    """
    for name, array, wanted in (
        ("q", q, "[B, T, H, D]"),
        ("k", k, "[B, S, Hkv, D]"),
        ("v", v, "[B, S, Hkv, Dv]"),
    ):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ValueError(f"{name}: wants an array {wanted}, got {type(array).__name__}")
        if len(array.shape) != 4:
            raise ValueError(f"{name}: wants 4 dimensions {wanted}, got {tuple(array.shape)}")
        if 0 in tuple(array.shape):
            raise ValueError(f"{name}: wants no empty dimension, got {tuple(array.shape)}")
        if not any(word in str(array.dtype) for word in ("float16", "float32", "float64")):
            raise ValueError(
                f"{name}: wants float16, bfloat16, float32 or float64, got {array.dtype}"
            )
        if array.dtype != q.dtype:
            raise ValueError(f"{name}: wants q's dtype {q.dtype}, got {array.dtype}")
        if getattr(array, "device", None) != getattr(q, "device", None):
            raise ValueError(f"{name}: wants q's device {q.device}, got {array.device}")
    batch, query_len, heads, head_dim = tuple(q.shape)
    cache_len, kv_heads, value_dim = k.shape[1], k.shape[2], v.shape[3]
    if tuple(k.shape) != (batch, cache_len, kv_heads, head_dim):
        raise ValueError(f"k: wants B = {batch} and D = {head_dim} as q has, got {tuple(k.shape)}")
    if tuple(v.shape) != (batch, cache_len, kv_heads, value_dim):
        raise ValueError(
            f"v: wants B = {batch}, S = {cache_len}, Hkv = {kv_heads} as k has, "
            f"got {tuple(v.shape)}"
        )
    if heads % kv_heads:
        raise ValueError(f"k: wants a number of heads that divides q's {heads}, got {kv_heads}")
    if not isinstance(causal, bool):
        raise ValueError(f"causal: wants True or False, got {causal!r}")
    if causal and query_len > cache_len:
        raise ValueError(
            f"q: wants at most as many queries as keys ({cache_len}) when causal, got {query_len}"
        )
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: wants a positive finite number or None, got {scale!r}")
    return Shape(
        batch, query_len, cache_len, heads, kv_heads, head_dim, value_dim,
        head_dim**-0.5 if scale is None else float(scale),
    )  # fmt: skip
