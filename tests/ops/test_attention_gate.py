"""The gate: defects that it must see, and the reference that it trusts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zenrepro.ops.attention import CASES, reference
from zenrepro.ops.attention.cases import CONTRACT, Case, bound
from zenrepro.ops.gate import judge, relative_error
from zenrepro.ops.precision import UNIT_ROUNDOFF, rounded

ALL = tuple(case for case in (*CASES["smoke"], *CONTRACT) if case.layout == "dense")
SEEDED = [case for case in ALL if case.name in ("smoke_causal", "smoke_grouped", "chunk")]


def matrices(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, causal: bool, shift: int = 0, factor: float = 1
) -> np.ndarray:
    """Attention as whole matrices: another way to write it, with places to break it."""
    T, S, D, group = q.shape[1], k.shape[1], q.shape[3], q.shape[2] // k.shape[2]
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("bthd,bshd->bhts", q, k) * factor / math.sqrt(D)
    if causal:
        seen = np.tril(np.ones((T, S), bool), S - T + shift)
        scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, v)


def draw(case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    q = rng.standard_normal((case.batch, case.query_len, case.heads, case.head_dim))
    k = rng.standard_normal((case.batch, case.cache_len, case.kv_heads, case.head_dim))
    v = rng.standard_normal((case.batch, case.cache_len, case.kv_heads, case.value_dim))
    return rounded(q, dtype), rounded(k, dtype), rounded(v, dtype)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_reference_agrees_with_whole_matrices(case: Case) -> None:
    q, k, v = draw(case, "fp32")
    wanted = matrices(q, k, v, causal=case.causal)
    assert relative_error(reference.attention(q, k, v, causal=case.causal), wanted) < 1e-14


def test_reference_of_picked_rows_is_a_part_of_the_whole() -> None:
    q, k, v = draw(CASES["smoke"][1], "fp32")
    whole = reference.attention(q, k, v, causal=True)
    assert np.array_equal(
        reference.attention(q, k, v, causal=True, rows=[0, 7, 64]), whole[:, [0, 7, 64]]
    )


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "fp8_e4m3"])
@pytest.mark.parametrize("case", SEEDED, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "defect", ["scale", "mask reaches one key too far", "mask stops one key early", "head", "row"]
)
def test_defects_fail(case: Case, dtype: str, defect: str) -> None:
    q, k, v = draw(case, dtype)
    wanted = reference.attention(q, k, v, causal=True)
    plain = reference.same_precision(q, k, v, causal=True, dtype=dtype)
    limit = bound(dtype, relative_error(plain, wanted))
    out = matrices(q, k, v, causal=True)
    out_dtype = "bf16" if dtype == "fp8_e4m3" else dtype
    assert judge(rounded(out, out_dtype), wanted, limit).passed
    if defect == "scale":
        out = matrices(q, k, v, causal=True, factor=1.05)
    elif defect == "mask reaches one key too far":
        out = matrices(q, k, v, causal=True, shift=1)
    elif defect == "mask stops one key early":
        with np.errstate(invalid="ignore"):  # the first row of a square sees no key at all
            out = np.nan_to_num(matrices(q, k, v, causal=True, shift=-1))
    elif defect == "head":
        out[:, :, 1] = 0.0
    else:
        out[:, -1] = out[:, -2]
    verdict = judge(rounded(out, out_dtype), wanted, limit)
    assert not verdict.passed
    assert "relative error" in str(verdict.reason)


@pytest.mark.parametrize("case", SEEDED, ids=lambda case: case.name)
@pytest.mark.parametrize(("form", "passes"), [("fp8_e4m3", True), ("two significant bits", False)])
def test_fp8_weights_pass_and_fewer_bits_do_not(case: Case, form: str, passes: bool) -> None:
    """Weights rounded before the division, as kernels round them: to e4m3's four significant bits,
    and to two."""
    q, k, v = draw(case, "fp8_e4m3")
    wanted = reference.attention(q, k, v, causal=True)
    plain = reference.same_precision(q, k, v, causal=True, dtype="fp8_e4m3")
    limit = bound("fp8_e4m3", relative_error(plain, wanted))
    T, S, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.float32(math.sqrt(q.shape[3]))
    scores = np.where(np.tril(np.ones((T, S), bool), S - T), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1).transpose(0, 2, 1)[..., None]
    if form == "fp8_e4m3":
        weights = rounded(weights, form)
    else:
        mantissa, exponent = np.frexp(weights)
        weights = np.ldexp(np.rint(mantissa * 4) / 4, exponent)
    out = np.einsum("bhts,bshd->bthd", weights, v) / total
    assert judge(rounded(out, "bf16"), wanted, limit).passed == passes


def test_nan_never_passes() -> None:
    wanted = np.ones((1, 2, 3, 4))
    out = wanted.copy()
    out[0, 0, 0, 0] = math.nan
    verdict = judge(out, wanted, math.inf)
    assert not verdict.passed
    assert verdict.error is None
    assert "1 of 24" in str(verdict.reason)
    assert not judge(wanted, np.full_like(wanted, math.nan), math.inf).passed
    assert not judge(wanted[..., :3], wanted, math.inf).passed


def test_zero_reference() -> None:
    zero = np.zeros((2, 2))
    assert judge(zero, zero, 0.0).passed
    assert not judge(zero + 1e-30, zero, 1.0).passed


def test_bound_is_twice_the_plain_error_and_never_below_one_rounding() -> None:
    assert bound("bf16", 0.01) == 0.02
    assert bound("bf16", 0.0) == UNIT_ROUNDOFF["bf16"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8_e4m3"])
def test_rounding_is_to_nearest_even(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    bits = np.concatenate([bits, np.float32([0, -0.0, np.inf, -np.inf, 3.4e38, 1 + 2**-8])])
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn}
    kind = kinds[dtype]
    bits = np.concatenate([bits, rng.standard_normal(20000, dtype=np.float32) * 0.05])
    if dtype == "fp8_e4m3":  # torch saturates what does not fit, or makes it NaN, by version
        bits = np.concatenate([bits[np.abs(bits) < 464], np.float32([464, -448, 2**-10, 3e-3])])
    wanted = torch.from_numpy(bits).to(kind).float().numpy()
    assert np.array_equal(rounded(bits, dtype), wanted, equal_nan=True)
    with pytest.raises(ValueError, match="fp32, fp16, bf16 or fp8_e4m3"):
        rounded(bits, "int8")
