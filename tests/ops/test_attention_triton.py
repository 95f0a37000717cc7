"""Our Triton attention without a GPU: what is launched, what it compiles to, and, in Triton's
interpreter, that it is right (``interpreted_attention_triton.py``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zenrepro.ops import device_code
from zenrepro.ops.attention import torch_fa2
from zenrepro.ops.attention.torch_fa2 import CONFIGS, FP32, Call, Config

# What a block may have of shared memory, and what an SM has, in bytes (CUDA programming guide,
# compute capabilities); registers of an SM, and of a thread.
BLOCK_BYTES = {80: 163 * 1024, 87: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
SM_BYTES = {80: 164 * 1024, 87: 164 * 1024, 86: 100 * 1024, 90: 228 * 1024}
REGISTERS, THREAD_REGISTERS, WARP = 65536, 255, 32
DIMS = {64: (64, 64), 128: (128, 128), 192: (192, 128), 256: (256, 256)}
PAGED_DECODE = {"LAYOUT": "paged", "PAGE": 16, "GROUP": 4, "PACK": True, "SPLIT": True}


def compiled(capability: int, config: Config, width: int, dtype: str = "bf16", **given: Any) -> Any:
    """``attend`` for a GPU that need not be here, as ``launch`` would ask for it."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attend = device_code.triton_module("attention").attend
    D, DV = DIMS[width]
    first, second = torch_fa2.halves(D)
    constants = {
        "LAYOUT": "dense", "PAGE": 0, "CAUSAL": True, "GROUP": 1, "PACK": False, "SPLIT": False,
        "D": D, "D1": first, "D2": second, "DV": DV, "DV1": DV, "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n, "AHEAD": config.ahead, "Q_REGISTERS": config.q_registers,
        "TMA": config.tma,
    } | given  # fmt: skip
    stages = torch_fa2.stages(config, constants["LAYOUT"])
    constants["STAGES"] = stages
    constants["PEEL"] = not (constants["PACK"] or config.ahead)
    columns = {"k": first, "k_rest": second or first, "v": DV}
    types = {"q": f"*{dtype}", "out": f"*{dtype}", "partial": "*fp32", "partial_lse": "*fp32"}
    types |= dict.fromkeys(("starts_q", "starts_k", "lengths", "table"), "*i32")
    for name, wide in columns.items():
        types[name] = f"*{dtype}"
        if config.tma:
            types[name] = f"tensordesc<{dtype}[1, 1, {config.block_n}, {wide}]>"
    types["scale"] = "fp32"
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in attend.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(attend.arg_names)
        if signature[name].startswith("*") or name.startswith("stride_")
    }
    return triton.compile(
        ASTSource(attend, signature, constants, aligned),
        target=GPUTarget("cuda", capability, WARP),
        options={"num_warps": config.warps, "num_stages": stages, "enable_fp_fusion": True},
    )


def loops(cubin: bytes) -> list[list[str]]:
    """The instructions between each backward branch and its target."""
    from zenrepro.ops import nvrtc

    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", nvrtc.sass(cubin))
    at = [int(address, 16) for address, _ in lines]
    found = []
    for i, (_, text) in enumerate(lines):
        branch = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < at[i]:
            start = at.index(int(branch[1], 16))
            found.append([line for _, line in lines[start : i + 1]])
    return found


def check(capability: int, config: Config, kernel: Any, programs: int) -> list[list[str]]:
    """Its limits hold, ``programs`` fit on an SM, and no loop with products spills. Those loops."""
    from zenrepro.ops import nvrtc

    used, shared = nvrtc.resources(kernel.asm["cubin"])["attend"], kernel.metadata.shared
    assert used.registers <= THREAD_REGISTERS
    assert used.registers * config.warps * WARP * programs <= REGISTERS
    assert shared <= BLOCK_BYTES[capability]
    assert (shared + 1024) * programs <= SM_BYTES[capability]  # 1 KB of each block is the system's
    products = [
        loop for loop in loops(kernel.asm["cubin"]) if re.search("HG?MMA|FFMA", "\n".join(loop))
    ]
    assert products
    for loop in products:
        assert not [line for line in loop if re.search(r"\b(LDL|STL)\b", line)]
    assert used.local_bytes <= 128  # what is spilled is spilled outside loops
    return products


@pytest.mark.parametrize(
    ("target", "kind", "width"), CONFIGS, ids=lambda value: str(value).removeprefix("sm_")
)
def test_every_configuration_fits_its_architecture(target: str, kind: str, width: int) -> None:
    capability, config = int(target.removeprefix("sm_")), CONFIGS[target, kind, width]
    given: dict[str, Any] = {}
    if kind == "decode":
        given = PAGED_DECODE
    elif not config.tma:
        given = {"LAYOUT": "varlen"}
    kernel = compiled(capability, config, width, **given)
    products = check(capability, config, kernel, config.programs)
    text = "\n".join("\n".join(loop) for loop in products)
    if target == "sm_90" and kind != "decode":
        assert "HGMMA" in text
        assert ("UTMALDG" in text) == config.tma
    else:
        assert re.search(r"\bHMMA", text)
        assert "LDGSTS" in text  # keys and values come while others are worked on


@pytest.mark.parametrize(
    ("capability", "kind", "given"),
    [
        (87, "prefill", {}),
        (87, "decode", PAGED_DECODE),
        (80, "prefill", {"LAYOUT": "paged", "PAGE": 64, "SPLIT": True}),
        (90, "pointers", {"LAYOUT": "paged", "PAGE": 64, "SPLIT": True}),
        (90, "prefill", {"PACK": True, "GROUP": 4, "SPLIT": True}),
        (90, "decode", PAGED_DECODE | {"PAGE": 256, "GROUP": 64, "BLOCK_M": 64}),
    ],
)
def test_other_forms_fit_too(capability: int, kind: str, given: dict[str, Any]) -> None:
    config = CONFIGS["sm_90" if capability == 90 else "sm_80", kind, 128]
    programs = 2 if given.get("BLOCK_M") == 64 else 1
    check(capability, config, compiled(capability, config, 128, **given), programs)


def test_fp32_is_multiplied_in_fp32() -> None:
    text = compiled(80, FP32[128], 128, "fp32").asm["ptx"]
    assert "tf32" not in text
    assert "mma.sync" not in text
    assert "fma.rn.f32" in text


@pytest.mark.parametrize(
    ("width", "config"),
    [
        (128, Config(128, 64, 8, 4, ahead=True, q_registers=True, tma=True)),
        (192, CONFIGS["sm_90", "prefill", 192]),
    ],
)
def test_the_softmax_runs_beside_the_next_scores_on_hopper(width: int, config: Config) -> None:
    """What ``ahead`` is for: most exponentials lie between a step's first product and the wait."""

    def beside(config: Config) -> float:
        found = loops(compiled(90, config, width, CAUSAL=False).asm["cubin"])
        inner = min((loop for loop in found if "EX2" in "".join(loop)), key=len)
        marks = [re.search("HGMMA|EX2|DEPBAR", line) for line in inner]
        tags = "".join({"HGMMA": "p", "EX2": "e", "DEPBAR": "w"}[mark[0]] for mark in marks if mark)
        between = re.findall("p[pe]*w", tags)
        return sum(part.count("e") for part in between) / tags.count("e")

    assert beside(config) > 0.9
    assert beside(config._replace(ahead=False, q_registers=False)) < 0.1


class Driver:
    """A GPU that is not there, for Triton's launcher: it can be compiled for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, WARP)

    def get_current_device(self) -> int:
        return self.capability  # a number of its own: what was compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """A kernel that is compiled with the arguments of a launch, and not launched."""

    def __init__(self, kernel: Any, seen: list[str]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_only(*args: Any, **options: Any) -> None:
            assert len(grid) == 1
            self.kernel.warmup(*args, grid=grid, **options)
            self.seen.append(self.kernel.__name__)

        return compile_only


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_every_layout_compiles_from_the_arguments_of_a_call(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Triton's own launcher: what it makes of strides, sizes and descriptors."""
    torch, triton = pytest.importorskip("torch"), pytest.importorskip("triton")
    seen: list[str] = []
    module = device_code.triton_module("attention")
    for name in ("attend", "combine"):
        monkeypatch.setattr(module, name, Compiled(getattr(module, name), seen))
    monkeypatch.setattr(torch_fa2, "_device", lambda index: (target, 132))
    monkeypatch.setattr(torch_fa2, "_check_served", lambda *args, **given: None)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(int(target.removeprefix("sm_"))))

    def x(*shape: int) -> Any:
        return torch.zeros(shape, dtype=torch.bfloat16)

    wide = x(2, 70, 4, 192), x(2, 70, 2, 192), x(2, 70, 2, 128)
    torch_fa2.attention(*wide, causal=True)
    one = x(1, 1, 1, 8), x(1, 1, 1, 8), x(1, 1, 1, 1)
    torch_fa2.attention(*one, causal=False)
    torch_fa2.attention(x(1, 1, 4, 64), x(1, 3000, 2, 64), x(1, 3000, 2, 64), causal=True)
    assert seen == ["attend", "attend", "attend", "combine"]
    offsets = torch.tensor([0, 3, 200], dtype=torch.int32)
    torch_fa2.attention_varlen(
        x(200, 4, 40), x(200, 2, 40), x(200, 2, 24), cu_seqlens_q=offsets,
        cu_seqlens_k=offsets, max_seqlen_q=197, max_seqlen_k=197, causal=True,
    )  # fmt: skip
    table = torch.zeros(2, 70, dtype=torch.int32)
    lengths = torch.tensor([100, 5], dtype=torch.int32)
    for queries in (2, 70):
        torch_fa2.attention_paged(
            x(2, queries, 4, 64), x(8, 16, 2, 64), x(8, 16, 2, 64), block_table=table,
            cache_seqlens=lengths, causal=True,
        )  # fmt: skip
    assert seen[4:] == ["attend", "attend", "combine", "attend", "combine"]


@pytest.mark.parametrize(
    ("head_dim", "parts"),
    [(1, (16, 0)), (16, (16, 0)), (40, (32, 16)), (48, (32, 16)), (64, (64, 0)), (80, (64, 16)),
     (100, (128, 0)), (96, (64, 32)), (128, (128, 0)), (192, (128, 64)), (256, (256, 0))],
)  # fmt: skip
def test_halves_hold_the_width_in_powers_of_two(head_dim: int, parts: tuple[int, int]) -> None:
    assert torch_fa2.halves(head_dim) == parts


def call(batch: int, query_len: int, cache_len: int, heads: int, kv_heads: int) -> Call:
    return Call(
        "dense", batch, query_len, cache_len, heads, kv_heads, 128, 128, True, 0.1
    )  # fmt: skip


def planned(wanted: Call, target: str = "sm_90", descriptors: bool = True) -> torch_fa2.Plan:
    return torch_fa2.plan(wanted, target, 132, fp32=False, descriptors=descriptors)


def test_a_decode_packs_the_heads_of_a_group_and_splits_the_keys() -> None:
    chosen = planned(call(1, 1, 16384, 32, 8))
    assert chosen.packed
    assert chosen.config.block_m == 16
    slots = 132 * chosen.config.programs
    assert 0.8 * slots <= 8 * chosen.splits <= slots
    assert planned(call(1, 6, 16384, 32, 8)).config.block_m == 32
    wide = planned(call(1, 1, 16384, 64, 1), "sm_80").config
    assert (wide.block_m, wide.programs) == (64, 1)  # two of 16 rows
    draft = planned(call(8, 30, 16384, 32, 8))
    assert draft.packed
    assert (draft.config.block_m, draft.tiles) == (64, 2)
    assert not planned(call(8, 100, 16384, 32, 8)).packed
    assert planned(call(64, 1, 16384, 32, 32)).splits == 1  # enough without
    assert planned(call(1, 1, 300, 32, 8)).splits == 1  # too short


def test_a_prefill_is_split_only_where_it_leaves_processors_idle() -> None:
    chosen = planned(call(4, 4096, 4096, 32, 32))
    assert not chosen.packed
    assert (chosen.tiles, chosen.splits) == (64, 1)
    assert planned(call(1, 128, 131072, 32, 8)).splits == 4
    assert planned(call(1, 128, 131072, 32, 8), descriptors=False).config.tma is False


def test_architectures() -> None:
    names = {
        c: torch_fa2.architecture(c) for c in ((8, 0), (8, 7), (8, 6), (8, 9), (9, 0), (12, 0))
    }
    assert names == {
        (8, 0): "sm_80", (8, 7): "sm_80", (8, 6): "sm_86", (8, 9): "sm_86", (9, 0): "sm_90",
        (12, 0): "sm_86",
    }  # fmt: skip


def test_wrong_arguments_are_named() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    x = torch.zeros(1, 4, 2, 32)
    with pytest.raises(ValueError, match=r"^q: wants a cuda tensor, got one on cpu"):
        torch_fa2.attention(x, x, x, causal=True)
    with pytest.raises(ValueError, match=r"^k: wants q's dtype"):
        torch_fa2.attention(x, x.half(), x, causal=True)
    with pytest.raises(ValueError, match=r"^q: wants .*got torch.float64"):
        torch_fa2.attention(x.double(), x.double(), x.double(), causal=True)


def test_strides_beyond_32_bits_in_a_tile_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, triton = pytest.importorskip("torch"), pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    x = torch.zeros(1, 2, 1, 16, dtype=torch.float16)
    far = torch.empty_strided((1, 2, 1, 16), (0, 2**24, 16, 1), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^v: wants fewer than 16777216 elements from token"):
        torch_fa2.attention(x, x, far, causal=True)


def test_in_the_interpreter() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted_attention_triton.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 50
