"""Our Triton attention in Triton's interpreter, on a CPU: run by test_attention_triton.py.

The interpreter must be chosen before triton is imported (TRITON_INTERPRET=1), hence a process of
its own. It cuts bf16 off where devices round to nearest, and multiplies bf16 as the integers that
it keeps it in: both are mended here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from zenrepro import backends
from zenrepro.ops import device_code
from zenrepro.ops.attention import CASES, TABLE, torch_fa2
from zenrepro.ops.attention.cases import CONTRACT, Case, decode, prefill
from zenrepro.ops.attention.problem import Problem
from zenrepro.ops.precision import rounded

ROW = next(entry for entry in TABLE if entry.name == "torch.fa2")
CPU = backends.open("torch", "cpu")
ALL = (*CASES["smoke"], *CONTRACT)
DECODES = tuple(case for case in ALL if case.phase == "decode")
# Scores of hundreds make rows that hang on one near tie: their error is luck, with this seed as
# with any. Over ten seeds ours was 0.0 to 2.3 times the plain loop's, torch's own 0.0 to 1.7.
SEED = 1


@pytest.fixture(autouse=True)
def faithful(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 as devices have it, and memory that held NaN before."""
    plain_dot = interpreter.InterpreterBuilder.create_dot
    plain_cast = interpreter.InterpreterBuilder.cast_impl

    def wide(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << np.uint32(16)
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain_dot(self, wide(a), wide(b), *rest)

    def cast(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            bits = rounded(source.data, "bf16").view(np.uint32) >> np.uint32(16)
            return interpreter.TensorHandle(bits.astype(np.uint16), tl.bfloat16)
        return plain_cast(self, source, to)

    def poisoned(function: Callable[..., Any]) -> Callable[..., Any]:
        def allocate(*args: Any, **options: Any) -> Any:
            out = function(*args, **options)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return allocate

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
    for name in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, cast)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configurations of sm_90: descriptors, and at 192 wide the scores one step ahead."""
    monkeypatch.setattr(torch_fa2, "_device", lambda index: ("sm_90", 4))


def reason(case: Case, dtype: str) -> str | None:
    """Why the gate refuses the output, or None."""
    drawn = Problem(CPU, case, dtype, SEED)
    return drawn.judge(drawn.call(ROW)).reason


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_matches_fp64(case: Case) -> None:
    assert reason(case, "fp32") is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_matches_fp64_in_half_precision(dtype: str) -> None:
    for case in DECODES if dtype == "bf16" else CASES["smoke"]:
        assert reason(case, dtype) is None, case


@pytest.mark.usefixtures("hopper")
def test_matches_fp64_as_on_hopper() -> None:
    longer = (
        prefill(None, 1, 300, 1, 64), prefill(None, 1, 257, 1, 40, causal=False),
        prefill(None, 1, 150, 1, 128), prefill(None, 1, 129, 1, 96, causal=False),
        prefill(None, 1, 90, 4, 32, kv_heads=1, query_len=33),
        decode(None, 2, 100, 8, 2, 32, query_len=19, page_size=16, skew=0.5),
    )  # fmt: skip
    for case in (*(case for case in ALL if case.phase == "prefill"), *longer):
        assert reason(case, "bf16") is None, case


@pytest.mark.parametrize(
    "case",
    [
        # Splits, of which causality or raggedness leaves some without a key.
        decode(None, 1, 300, 4, 1, 32),
        decode(None, 1, 170, 4, 2, 64, query_len=5),
        prefill(None, 1, 130, 1, 32, query_len=70, causal=False),
        prefill(None, 1, 130, 1, 32, query_len=70),
        decode(None, 3, 150, 4, 1, 32, page_size=16, skew=0.95),
        decode(None, 2, 130, 2, 1, 40, page_size=48, query_len=3),
        decode(None, 1, 900, 32, 1, 16, query_len=2),
    ],
    ids=str,
)
def test_split_keys(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = torch_fa2.launch

    def launch(call: Any, chosen: torch_fa2.Plan, *arrays: Any) -> None:
        seen.append(chosen.splits)
        plain(call, chosen, *arrays)

    monkeypatch.setattr(torch_fa2, "launch", launch)
    monkeypatch.setattr(torch_fa2, "_device", lambda index: ("sm_80", 100))
    monkeypatch.setattr(torch_fa2, "SPLIT_KEYS", 16)
    assert reason(case, "fp32") is None
    assert seen
    assert min(seen) > 1


def test_large_scores_do_not_overflow() -> None:
    """Scores of 10^10, which a scale fused into the subtraction would turn into infinities."""
    q, k, v = (torch.randn(1, 40, 2, 32) for _ in range(3))
    q, k = q * 1e5, k * 1e5
    out = torch_fa2.attention(q, k, v, causal=True)
    scores = torch.einsum("bthd,bshd->bhts", q.double(), k.double()) / 32**0.5
    hidden = torch.ones(40, 40, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    wanted = torch.einsum("bhts,bshd->bthd", weights, v.double())
    assert out.isfinite().all()
    assert (out - wanted).norm() < 1e-3 * wanted.norm()


def beside_nan() -> tuple[Any, Any]:
    """The first sequence of two, varlen and paged, where whatever is not its own holds NaN."""
    nan = float("nan")
    q, k, v = (torch.randn(90, 2, 32) for _ in range(3))
    k[50:], v[50:], q[50:] = nan, nan, nan
    offsets = torch.tensor([0, 50, 90], dtype=torch.int32)
    varlen = torch_fa2.attention_varlen(
        q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=50, max_seqlen_k=50,
        causal=True,
    )  # fmt: skip
    cache = torch.full((5, 16, 2, 32), nan)
    cache[3], cache[1, :7] = torch.randn(16, 2, 32), torch.randn(7, 2, 32)
    table = torch.tensor([[3, 1, -9], [4, 900, 2]], dtype=torch.int32)
    paged = torch_fa2.attention_paged(
        torch.randn(2, 2, 4, 32), cache, cache, block_table=table,
        cache_seqlens=torch.tensor([23, 0], dtype=torch.int32), causal=True,
    )  # fmt: skip
    assert (paged[1] == 0).all()
    return varlen[:50], paged[0]


def test_other_sequences_and_unused_rows_are_not_touched() -> None:
    for out in beside_nan():
        assert out.isfinite().all()


def test_strides_and_the_same_bits_again() -> None:
    whole = torch.randn(2, 70, 6, 40)
    q, k, v = whole[:, :, :2, 3:35], whole[:, :, 2:4, :32], whole.transpose(1, 2)[:, 4:, :, :24]
    v = v.transpose(1, 2)
    out = torch_fa2.attention(q, k, v, causal=True)
    again = torch_fa2.attention(q.clone(), k.contiguous(), v.clone(), causal=True)
    assert torch.equal(out, again)
    assert out.shape == (2, 70, 2, 24)


DEFECTS = {
    "wrong scale": ("exp2((s - top[:, None]) * scale)", "exp2((s - top[:, None]) * scale * 1.1)"),
    "mask off by one": ("<= last_seen[:, None]", "< last_seen[:, None]"),
    "mask lets one more in": ("<= last_seen[:, None]", "<= last_seen[:, None] + 1"),
    "a page dropped": ("table + rows // PAGE", "table + tl.maximum(rows // PAGE - 1, 0)"),
    "a page of whole tiles dropped": ("table + n // PAGE", "table + tl.maximum(n // PAGE - 1, 0)"),
    "combine not normalised": ("tl.math.exp2(lse - top) / total", "tl.math.exp2(lse - top)"),
    "a split dropped": ("mask=part < splits,", "mask=part < splits - 1,"),
    "sum not corrected": ("norm * correction +", "norm +"),
    "output not corrected": ("acc * correction[:, None]", "acc * 1.0"),
    "head of another group": ("kv_head = head // GROUP", "kv_head = head % (heads // GROUP)"),
}
WITNESSES = (
    prefill(None, 1, 100, 4, 32, kv_heads=2),
    prefill(None, 2, 100, 2, 32, layout="varlen", lengths=(70, 41), causal=False),
    decode(None, 1, 520, 4, 1, 32),
    decode(None, 1, 90, 4, 2, 32, page_size=16),
    decode(None, 1, 150, 4, 2, 32, page_size=64),
)


@pytest.fixture
def mutated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def load(right: str, wrong: str) -> None:
        source = device_code.path("triton/attention.py").read_text()
        assert right in source
        file = tmp_path / "attention_mutated.py"
        file.write_text(source.replace(right, wrong))
        module = device_code._load("zenrepro_kernels_triton_mutated", file)
        monkeypatch.setattr(device_code, "triton_module", lambda name: module)

    return load


@pytest.mark.parametrize("name", DEFECTS)
def test_the_gate_refuses(name: str, mutated: Callable[..., None]) -> None:
    mutated(*DEFECTS[name])
    assert any(reason(case, "fp32") for case in WITNESSES)


def test_a_row_read_behind_the_end_is_seen(mutated: Callable[..., None]) -> None:
    mutated("offs_n < rows_left", "offs_n < rows_left + 1")
    assert not any(out.isfinite().all() for out in beside_nan())


def test_the_witnesses_pass_unharmed() -> None:
    for case in WITNESSES:
        assert reason(case, "fp32") is None, case
