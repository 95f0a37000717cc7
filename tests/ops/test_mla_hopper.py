"""Latent decode on Hopper: what compiles without a GPU, and arguments that do not fit."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed: no NVRTC")

from zenrepro.ops import nvrtc  # noqa: E402
from zenrepro.ops.mla import torch_hopper  # noqa: E402

# Tiles of query rows, FP8 cache: what is compiled for them.
BUILDS = pytest.mark.parametrize(
    ("tiles", "fp8"), [(1, False), (2, False), (1, True)], ids=["bf16", "bf16-ahead", "fp8"]
)


def compiled(tiles: int, fp8: bool) -> bytes:
    defines = torch_hopper.macros(tiles, fp8)
    return nvrtc.compile(torch_hopper.SOURCE, arch="sm_90a", defines=defines)


@BUILDS
def test_the_kernel_fits_a_multiprocessor(tiles: int, fp8: bool) -> None:
    try:
        used = nvrtc.resources(compiled(tiles, fp8))["mla_decode"]
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    # With FP8 the exchange of parts, once at the end, is two registers short.
    assert used.local_bytes <= (8 if fp8 else 0), "registers spill to memory"
    threads = torch_hopper.FP8_THREADS if fp8 else torch_hopper.THREADS
    assert used.registers * threads <= 65536
    assert torch_hopper.SHARED_BYTES <= 232448  # 227 KiB, the most a block of sm_90 can have


@BUILDS
def test_the_machine_code_is_hoppers(tiles: int, fp8: bool) -> None:
    try:
        code = nvrtc.sass(compiled(tiles, fp8))
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    products = re.findall(r"HGMMA\.64x(\d+)x16\.F32\.BF16", code)
    # S = Q K^T: nine chunks of four steps. O += P V: P from registers and from shared memory.
    # With scores ahead, the last page's values are written out by themselves.
    assert products.count("64") >= 9 * 4 + (0 if fp8 else 2 * 4 * 4)
    assert not fp8 or products.count("128") >= 2 * 2 * 4
    assert "UTMALDG.3D" in code
    assert "USETMAXREG" in code
    # A wait after each product would mean that the compiler serialised them.
    assert len(re.findall(r"WARPGROUP\.DEPBAR", code)) < len(products) / 6
    # The compiler puts them before products and arrivals when it cannot see that a warp's threads
    # go the same way: 29 in this loop, at one time.
    loop = code[code.index("HGMMA") : code.rindex("HGMMA")]
    assert "WARPSYNC" not in loop
    assert fp8 == ("F16.E4M3.UNPACK_B" in code)


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
        ({"cache": torch.zeros(3, 64, 672, dtype=torch.uint8)[..., :656]}, "rows without gaps"),
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
