"""The Hopper kernel as compiled (no GPU needed), and what its wrapper refuses."""

from __future__ import annotations

import re

import pytest
import torch

from zenrepro.ops import nvrtc
from zenrepro.ops.attention import torch_fa3
from zenrepro.ops.attention.fa3_variant import SERVED, Variant, variant
from zenrepro.ops.attention.torch_fa3 import SOURCE

pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings, NVRTC's Python side, is absent")

SHARED_LIMIT = 227 * 1024  # bytes a block may have on compute capability 9.0


@pytest.mark.parametrize(
    "chosen",
    [
        variant(128, 128, causal=False, varlen=False, dtype="bf16"),  # the widest scores
        variant(192, 128, causal=True, varlen=True, dtype="fp16"),
        variant(64, 64, causal=True, varlen=False, dtype="bf16"),
        variant(128, 128, causal=True, varlen=False, dtype="fp8_e4m3"),
    ],
    ids=lambda v: f"{v.head_dim}-{v.value_dim}-{v.dtype}",
)
def test_the_machine_code_is_hoppers_and_nothing_spills(chosen: Variant) -> None:
    cubin = nvrtc.compile(SOURCE, defines=chosen.defines)
    taken = nvrtc.resources(cubin)[torch_fa3.KERNEL]
    assert taken.local_bytes == 0
    # Of 65536 registers, shared out evenly at the start and moved by setmaxnreg after it.
    assert taken.registers * chosen.threads <= 65536
    assert chosen.shared_bytes + taken.shared_bytes <= SHARED_LIMIT + 1024  # static: the system's
    code = nvrtc.sass(cubin)
    products = len(re.findall(r"\bQGMMA\b" if chosen.dtype == "E4M3" else r"\bHGMMA\b", code))
    assert products > 0
    assert "UTMALDG" in code
    assert code.count("USETMAXREG") == 2
    assert not re.findall(r"\b(?:LDL|STL)\b", code)
    # Where ptxas serialises wgmma it waits after every one; the schedule has eight waits.
    assert len(re.findall(r"\bWARPGROUP\.DEPBAR\b", code)) <= 8 < products


@pytest.mark.parametrize(
    "chosen",
    [
        variant(128, 128, causal=False, varlen=False, dtype="bf16"),
        variant(128, 128, causal=True, varlen=True, dtype="bf16"),
        variant(64, 64, causal=True, varlen=False, dtype="fp16"),
    ],
    ids=["full", "packed", "64"],
)
def test_the_steps_are_scheduled_as_meant(chosen: Variant) -> None:
    """What made the difference on the device (docs/LOG.md), and what a small change loses."""
    code = nvrtc.sass(nvrtc.compile(SOURCE, defines=chosen.defines))
    # A branch on which lanes differ costs two R2UR a product, and a WARPSYNC at every barrier.
    assert "WARPSYNC" not in code
    between = [x for x in re.split(r"\bHGMMA\b", code)[1:-1] if "WARPGROUP" not in x]
    assert sum("R2UR" in x for x in between) < len(between) / 4
    steps = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1\b", code)[1:]
    assert len(steps) == 3  # masked, whole, and the step from tile to tile
    for step in steps:
        under, wait, after = step.partition("WARPGROUP.DEPBAR.LE gsb0, 0x0")
        assert wait
        assert under.count("FMNMX") >= chosen.block_n // 2 - 2  # maxima under the product
        weighed = after[
            : [m.end() for m in re.finditer(r"MUFU\.EX2", after)][chosen.block_n // 2 - 1]
        ]
        # Rounding waits for no exponential but its own.
        assert weighed.count("F2FP") >= chosen.block_n // 4 - 4


def test_every_served_size_fits_shared_memory() -> None:
    for wide, out in SERVED:
        for causal in (False, True):
            chosen = variant(wide, out, causal=causal, varlen=False, dtype="bf16")
            assert chosen.shared_bytes <= SHARED_LIMIT


def tensors(head_dim: int = 64, value_dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> tuple:
    q, k = (torch.zeros(1, 8, 2, head_dim, dtype=dtype) for _ in range(2))
    return q, k, torch.zeros(1, 8, 2, value_dim, dtype=dtype)


def test_what_the_kernel_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="q: wants a cuda tensor, got one on cpu"):
        torch_fa3.attention(*tensors(), causal=True)
    with pytest.raises(ValueError, match=r"q: wants .*float16.*, got torch\.float32"):
        torch_fa3.attention(*tensors(dtype=torch.float32), causal=True)
    for head_dim, value_dim in ((256, 256), (128, 136), (44, 44), (64, 20)):
        with pytest.raises(ValueError, match=rf"multiples of 8, got {head_dim}/{value_dim}"):
            variant(head_dim, value_dim, causal=False, varlen=False, dtype="bf16")


def test_strides_that_tma_does_not_take_are_refused() -> None:
    q, k, v = tensors()
    chosen = variant(64, 64, causal=False, varlen=False, dtype="bf16")
    wide = torch.zeros(1, 8, 2, 68, dtype=torch.bfloat16)[..., :64]
    with pytest.raises(ValueError, match="k: wants strides that are multiples of 16 bytes"):
        torch_fa3.run(chosen, q, wide, v, torch.empty_like(q), scale=1.0)
    across = torch.zeros(1, 8, 64, 2, dtype=torch.bfloat16).transpose(2, 3)
    with pytest.raises(ValueError, match="v: wants its last dimension contiguous"):
        torch_fa3.run(chosen, q, k, across, torch.empty_like(q), scale=1.0)
