"""Latent decode on Hopper: what compiles without a GPU, and arguments that do not fit."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed: no NVRTC")

from zenrepro.ops import nvrtc  # noqa: E402
from zenrepro.ops.mla import torch_hopper  # noqa: E402

# Query rows of a sequence, FP8 cache: what is compiled for them.
BUILDS = pytest.mark.parametrize(
    ("rows", "fp8"),
    [(16, False), (128, False), (32, True), (128, True)],
    ids=["bf16", "bf16-ahead", "fp8-beside", "fp8"],
)


def compiled(rows: int, fp8: bool) -> bytes:
    build = torch_hopper.build(rows, fp8)
    return nvrtc.compile(build.source, arch="sm_90a", defines=build.defines)


@BUILDS
def test_the_kernel_fits_a_multiprocessor(rows: int, fp8: bool) -> None:
    try:
        used = nvrtc.resources(compiled(rows, fp8))["mla_decode"]
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    # With FP8 16 warps share the registers at the beginning, and the plan and what is kept over a
    # sequence are two short.
    assert used.local_bytes <= (8 if fp8 else 0), "registers spill to memory"
    assert used.registers * torch_hopper.build(rows, fp8).threads <= 65536
    # 227 KiB, the most a block of sm_90 can have.
    assert torch_hopper.build(rows, fp8).shared_bytes <= 232448


@BUILDS
def test_the_machine_code_is_hoppers(rows: int, fp8: bool) -> None:
    try:
        code = nvrtc.sass(compiled(rows, fp8))
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    products = re.findall(r"[HQ]GMMA\.64x\d+x\d+", code)
    if fp8:
        # S: four quarters of four steps in e4m3 (twice, where halves do not lie beside), the
        # rotary part in bf16. O: two quarters of values of two steps, P from registers, in one
        # product or (halves not beside) in two of two halves; and once more for scales far apart.
        halves = 1 if rows <= 32 else 2
        assert products.count("HGMMA.64x64x16") == 4
        scores, values = 4 * 4 * halves, 2 * (2 * 2 * halves * halves)
        if halves == 1:
            assert products.count("QGMMA.64x64x32") == scores
            assert products.count("QGMMA.64x128x32") == values
        else:
            assert products.count("QGMMA.64x64x32") == scores + values
        assert len(products) == 4 + scores + values
    else:
        # S = Q K^T: nine chunks of four steps. O += P V: P from registers and from shared memory.
        # With scores ahead, the last page's values are written out by themselves.
        assert products.count("HGMMA.64x64x16") >= 9 * 4 + 2 * 4 * 4
        # For several tiles P is taken by the maxima before, then perhaps anew: 32 weights a thread.
        weights = code[code.index("GMMA") : code.rindex("GMMA")].count("MUFU.EX2")
        assert (weights >= 2 * 32) == (rows > torch_hopper.TILE)
    assert "UTMALDG.3D" in code
    assert "USETMAXREG" in code
    # A wait after each product would mean that the compiler serialised them.
    waits = len(re.findall(r"WARPGROUP\.DEPBAR", code))
    if fp8:  # one for each quarter of S, its rotary part, each product of O: those of the source
        assert waits == 5 + 2 * (2 if rows <= 32 else 4)
    else:
        assert waits < len(products) / 6
    # The compiler puts them before products and arrivals when it cannot see that a warp's threads
    # go the same way: 29 in this loop, at one time.
    loop = page_loop(code) if fp8 else code[code.index("GMMA") : code.rindex("GMMA")]
    assert "WARPSYNC" not in loop
    if fp8:
        assert not re.search(r"\bSTL", loop), "something in the loop spills to memory"
        # One number of a sequence, fetched with each second page's scores of 64 rows.
        assert len(re.findall(r"\bLDL", loop)) <= (0 if rows <= 32 else 1)
        # The thread's number is asked for where P is written and where it is read, no more often:
        # each time costs a wait.
        assert len(re.findall(r"\bS2R\b", loop)) <= (2 if rows <= 32 else 5)
    else:
        assert "LDL" not in loop, "something in the loop is kept in memory"
    # Nothing of the cache is expanded: only weights are converted, and that to e4m3.
    assert fp8 == ("SATFINITE.E4M3" in loop)
    assert ".E4M3.UNPACK_B" not in code


def page_loop(code: str) -> str:
    """The smallest loop that holds all matrix products: over a sequence's pages."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)
    places = [(int(place, 16), text) for place, text in lines]
    products = [place for place, text in places if "GMMA" in text]
    loops = []
    for place, text in places:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= products[0] and place >= products[-1]:
            loops.append((place - int(jump[1], 16), int(jump[1], 16), place))
    _, first, last = min(loops)
    return "\n".join(text for place, text in places if first <= place <= last)


def test_a_struct_that_differs_from_the_kernels_does_not_compile() -> None:
    with pytest.raises(nvrtc.CompileError, match="layout of Problem"):
        nvrtc.compile(torch_hopper.SOURCE, defines=(("WANTED_PROBLEM_BYTES", 1),))


def arguments(fp8: bool = False) -> dict[str, torch.Tensor]:
    cache = (
        torch.zeros(3, 64, 656, dtype=torch.uint8)
        if fp8
        else torch.zeros(3, 64, 576, dtype=torch.bfloat16)
    )
    return {
        "q": torch.zeros(2, 1, 16, 576, dtype=torch.bfloat16),
        "cache": cache,
        "block_table": torch.tensor([[0, 1], [2, 0]], dtype=torch.int32),
        "cache_seqlens": torch.tensor([100, 64], dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"q": torch.zeros(2, 1, 16, 576)}, r"cache: wants q's dtype"),
        ({"q": torch.zeros(2, 1, 576, 16, dtype=torch.bfloat16).transpose(2, 3)}, "q: wants a c"),
        ({"q": torch.zeros(2, 1, 16, 512, dtype=torch.bfloat16)}, "q: wants width 576"),
        ({"cache": torch.zeros(3, 64, 600, dtype=torch.bfloat16)[..., :576]}, None),
        ({"cache": torch.zeros(3, 64, 580, dtype=torch.bfloat16)[..., :576]}, "start on 16 bytes"),
        ({"cache": torch.zeros(3, 64, 577, dtype=torch.bfloat16)[..., 1:]}, "cache: wants"),
        ({"cache_seqlens": torch.tensor([129, 1], dtype=torch.int32)}, "from 0 to 128"),
        ({"block_table": torch.tensor([[0, 3], [1, 2]], dtype=torch.int32)}, "got 3 for page 1"),
        ({"scale": 0.0}, "scale: wants a positive"),
    ],
)
def test_arguments_that_do_not_fit(wrong: dict[str, object], said: str | None) -> None:
    given = arguments() | wrong
    # A gap between rows is served; the CPU is what is refused then.
    with pytest.raises(ValueError, match=said or "wants a CUDA tensor on sm_90, got one on cpu"):
        torch_hopper.decode(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("fp8", [False, True])
def test_a_device_that_is_not_hopper(fp8: bool) -> None:
    with pytest.raises(ValueError, match="q: wants a CUDA tensor on sm_90, got one on cpu"):
        torch_hopper.decode(**arguments(fp8))


def test_an_outgrown_workspace_stays_for_captured_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_hopper, "multiprocessors", lambda _: 1)
    monkeypatch.setattr(torch_hopper, "_workspaces", {})
    monkeypatch.setattr(torch_hopper, "_outgrown", [])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    device = torch.device("cpu")
    first = torch_hopper.shared_workspace(device, 1)
    assert torch_hopper.shared_workspace(device, 1 << 16) is first
    larger = torch_hopper.shared_workspace(device, 1 << 17)
    assert larger.counters.numel() >= 2 << 17
    assert torch_hopper.shared_workspace(device, 1) is larger
    assert [kept is first for kept in torch_hopper._outgrown] == [True]
