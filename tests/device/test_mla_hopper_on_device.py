"""Latent decode on Hopper, on a GPU: the op's cases, splits, poison, graphs, the same bits.

    pytest -m device tests/device/test_mla_hopper_on_device.py

A first launch has waits that trap (DEBUG_SPIN), so that a hanging pipeline fails and does not hang;
the second is what is shipped.
Small enough for compute-sanitizer with ``-k small``.
"""

from __future__ import annotations

from typing import Any

import pytest

from zenrepro.ops.mla import CASES, TABLE
from zenrepro.ops.mla.cases import CONTRACT
from zenrepro.ops.mla.problem import Problem
from zenrepro.ops.mla.sizes import LATENT, PAGE, ROW, SCALE

pytestmark = pytest.mark.device
LONG = (
    "full_128_16_4096", "full_128_24_4096", "full_64_40_4096", "full_64_64_4096",
    "full_64_128_4096", "full_8_16_32768", "full_1_16_131072", "full_64_16_4096_8",
    "full_128_16_4096_ragged", "full_128_16_4096_fp8", "full_64_128_4096_fp8",
    "full_1_16_131072_fp8",
)  # fmt: skip
# bf16 rounds P and the output. With an FP8 cache weights times scales keep as many bits, and
# products add up in some 14.
BOUND = {False: 4e-3, True: 4e-3}
SPIN = (("DEBUG_SPIN", 50_000_000),)
FORMATS = pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
# Both orders of work and both kinds of maxima in bf16, whatever is shipped for so many rows.
BUILDS = pytest.mark.parametrize(
    ("fp8", "tuning"),
    [
        (False, (("FIRST", 0), ("LAZY", 0))),
        (False, (("FIRST", 4), ("LAZY", 8))),
        (True, ()),
    ],
    ids=["bf16-fixed", "bf16-ahead", "fp8"],
)


@pytest.fixture
def hopper(device: Any) -> Any:
    import torch

    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the GPU is not of sm_90")
    from zenrepro.ops.mla import torch_hopper

    return torch_hopper


class Call:
    """A decode step with NaN in every row of the pool that no sequence has."""

    def __init__(self, tokens: int, heads: int, lengths: list[int], fp8: bool) -> None:
        import torch

        torch.manual_seed(sum(lengths) + heads)
        own = [-(-length // PAGE) for length in lengths]
        pages = sum(own) + 2
        rows = torch.randn(pages, PAGE, ROW, device="cuda").bfloat16()
        self.q = torch.randn(len(lengths), tokens, heads, ROW, device="cuda").bfloat16()
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device="cuda")
        self.table = torch.full((len(lengths), max(1, *own)), -7, dtype=torch.int32, device="cuda")
        order, at = torch.randperm(pages, device="cuda").int(), 0
        unused = torch.ones(pages, PAGE, dtype=torch.bool, device="cuda")
        for b, (count, length) in enumerate(zip(own, lengths, strict=True)):
            self.table[b, :count] = order[at : at + count]
            for i in range(count):
                unused[int(order[at + i]), : length - i * PAGE] = False
            at += count
        self.cache, self.rows = rows, rows
        if fp8:
            latent = rows[..., :LATENT].float().unflatten(-1, (4, 128))
            scales = latent.abs().amax(-1) / 448
            codes = (latent / scales[..., None]).to(torch.float8_e4m3fn)
            parts = (codes.flatten(-2), scales.contiguous(), rows[..., LATENT:].contiguous())
            self.cache = torch.cat([part.view(torch.uint8) for part in parts], -1)
            wide = (codes.double() * scales[..., None].double()).flatten(-2)
            self.rows = torch.cat([wide, rows[..., LATENT:].double()], -1)
        self.cache[unused] = 0xFF if fp8 else float("nan")

    def run(self, hopper: Any, tuning: tuple[tuple[str, int], ...] = ()) -> Any:
        import torch

        out = torch.full((*self.q.shape[:3], LATENT), float("nan"), device="cuda").bfloat16()
        workspace = hopper.shared_workspace(self.q.device, self.q.shape[0] * 16)
        workspace.parts.fill_(float("nan"))
        workspace.part_sums.fill_(float("nan"))
        given = (self.q, self.cache, self.table, self.lengths, SCALE, workspace, out)
        # Waits that trap leave the compiler too few registers: it serialises products and spills.
        # So they only guard against a hang; what is compared is the build that is shipped.
        for guard in (SPIN, ()):
            out.fill_(float("nan"))
            hopper.launch(*given, tuning=(*tuning, *guard))
            torch.cuda.synchronize()
            assert not workspace.counters.any(), "counters are left for the next call"
        return out

    def error(self, out: Any) -> float:
        """The worst relative error of a sequence, against fp64."""
        import torch

        worst = 0.0
        for b, length in enumerate(self.lengths.tolist()):
            wanted = torch.zeros(out.shape[1:], dtype=torch.float64, device="cuda")
            keys = self.rows[self.table[b, : -(-length // PAGE)].long()].flatten(0, 1)[:length]
            for t in range(self.q.shape[1]):
                seen = length - self.q.shape[1] + t + 1
                if seen > 0:
                    scores = self.q[b, t].double() @ keys[:seen].double().T * SCALE
                    wanted[t] = torch.softmax(scores, -1) @ keys[:seen, :LATENT].double()
            wrong = float((out[b].double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
            worst = max(worst, wrong if wrong == wrong else float("inf"))
        return worst


@BUILDS
@pytest.mark.parametrize("heads", [1, 16, 40, 64, 128])
def test_small_ragged(hopper: Any, heads: int, fp8: bool, tuning: Any) -> None:
    for tokens in (1, 3, 8):
        call = Call(tokens, heads, [1, 63, 64, 65, 0, 5, 777], fp8)
        one, two = call.run(hopper, tuning), call.run(hopper, tuning)
        assert call.error(one) < BOUND[fp8], tokens
        assert bool((one == two).all()), "other bits the second time"


@pytest.mark.parametrize("by", [0.7, 100.0])
@pytest.mark.parametrize("lazy", [0, 8])
def test_small_maxima_that_grow(hopper: Any, lazy: int, by: float) -> None:
    """From page to page by some powers of two, and by more than fp32 has."""
    call = Call(1, 128, [320, 130, 1000], fp8=False)
    for b, length in enumerate(call.lengths.tolist()):
        for i in range(-(-length // PAGE)):
            call.cache[int(call.table[b, i])] *= 1 + by * i
    assert call.error(call.run(hopper, (("LAZY", lazy),))) < BOUND[False]


@BUILDS
@pytest.mark.parametrize(
    "lengths",
    [
        [131072],
        [60000] + [30] * 39,
        [256] * 264,  # whole sequences, two a block
        [(137 * i) % 3000 for i in range(700)],  # cut along the line of all sequences
        [100 + 62 * i for i in range(128)],
    ],
    ids=["one", "one_long", "alike", "many", "ragged"],
)
def test_plans(hopper: Any, lengths: list[int], fp8: bool, tuning: Any) -> None:
    call = Call(2, 16, lengths, fp8)
    assert call.error(call.run(hopper, tuning)) < BOUND[fp8]


@pytest.mark.parametrize(
    "scales",
    [
        (1.0, 1 / 448, 0.0123456, 3e-5),
        (127.9, 1e-30, 2.0**-100, 5e-38),
        (128.0, 1.0, 0.7, 0.3),
        (1e30, 4e35, 1e-20, 777.7),
        (-0.37, 0.0, -300.0, 2.0),
    ],
    ids=str,
)
def test_small_every_code_of_an_fp8_cache(hopper: Any, scales: tuple[float, ...]) -> None:
    """A cache of one row gives that row: each code of each scale. A code that is no number gives
    none."""
    import torch

    call = Call(1, 1, [1, 1, 1], fp8=True)
    call.q.zero_()
    codes = torch.arange(512, device="cuda").to(torch.uint8)
    codes[codes % 128 == 127] = 0
    held = torch.tensor(scales, device="cuda")
    every = (codes, codes.flip(0), torch.full_like(codes, 0x7F))
    for b, bits in enumerate(every):
        row = call.cache[int(call.table[b, 0]), 0]
        row[:512] = bits
        row[512:528] = held.view(torch.uint8)
    out = call.run(hopper)
    assert bool(out[2].isnan().all())
    for b, bits in enumerate(every[:2]):
        wide = bits.view(torch.float8_e4m3fn).double().view(4, 128) * held.double()[:, None]
        # The scale to the eight bits of two e4m3 numbers, the output to those of bf16.
        allowed = wide.abs() * (2.0**-9 + 2.0**-8 + 2.0**-11) + 2.0**-134
        assert bool(((out[b].double().view(4, 128) - wide).abs() <= allowed).all())


@FORMATS
def test_small_graph_whose_lengths_change(hopper: Any, fp8: bool) -> None:
    import torch

    call = Call(1, 16, [1000, 640, 77], fp8)
    given = {"block_table": call.table, "cache_seqlens": call.lengths}
    hopper.decode(call.q, call.cache, **given)  # makes the workspace
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = hopper.decode(call.q, call.cache, **given)
    for lengths in ([1000, 640, 77], [1, 640, 0], [999, 3, 64]):
        call.lengths.copy_(torch.tensor(lengths))
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        # Rows beyond the new lengths are other tokens', as when drafted ones are rejected.
        assert call.error(out) < BOUND[fp8], lengths


@pytest.mark.parametrize("name", [*(c.name or str(c) for c in CONTRACT), *LONG])
def test_case(backend: Any, device: Any, hopper: Any, name: str) -> None:
    every = (*CONTRACT, *CASES["full"])
    case = next(case for case in every if name in (case.name, str(case)))
    entry = next(entry for entry in TABLE if entry.name == "torch.hopper")
    served = entry.available(device, case.conditions("bf16"))
    if not served.ok:
        pytest.skip(str(served.reason))
    problem = Problem(backend, case, "bf16", seed=0)
    verdict = problem.judge(problem.call(entry))
    assert verdict.passed, verdict.reason
