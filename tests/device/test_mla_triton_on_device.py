"""Latent attention in Triton on a GPU: the op's cases, every way of cutting, poison, graphs.

    pytest -m device tests/device/test_mla_triton_on_device.py

Small enough for compute-sanitizer with ``-k "cut or graph or codes"``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from zenrepro.ops.mla import CASES, TABLE
from zenrepro.ops.mla.cases import CONTRACT, Case
from zenrepro.ops.mla.problem import Problem
from zenrepro.ops.mla.sizes import LATENT, NOPE, PAGE, QUERY, ROW, SCALE, VALUE

pytestmark = pytest.mark.device
EVERY = (*CASES["smoke"], *CONTRACT)
LONG = (
    "full_128_24_4096", "full_64_40_4096", "full_1_16_131072", "full_1_16_131072_fp8",
    "full_64_16_4096_8", "full_64_64_4096_ragged", "full_128_16_4096_fp8", "full_64_64_4096_fp8",
    "full_64_128_4096_fp8", "full_chunk_128",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", ["torch.triton", "torch.fused"])
def test_contract(backend: Any, device: Any, row: str, dtype: str) -> None:
    entry = next(entry for entry in TABLE if entry.name == row)
    ran = 0
    for case in EVERY:
        ran += judged(backend, device, entry, case, dtype)
    assert ran


@pytest.mark.parametrize("name", LONG)
def test_long(backend: Any, device: Any, name: str) -> None:
    case = next(case for case in CASES["full"] if case.name == name)
    row = "torch.triton" if case.phase == "decode" else "torch.fused"
    entry = next(entry for entry in TABLE if entry.name == row)
    assert judged(backend, device, entry, case, "bf16")


def judged(backend: Any, device: Any, entry: Any, case: Case, dtype: str) -> bool:
    if not entry.available(device, case.conditions(dtype)).ok:
        return False
    if case.format is not None and dtype != "bf16":
        return False  # the FP8 cache's rotary part is bf16, and so must queries be
    problem = Problem(backend, case, dtype, seed=0)
    verdict = problem.judge(problem.call(entry))
    assert verdict.passed, f"{entry.name}, {case.name}, {dtype}: {verdict.reason}"
    return True


class Drawn:
    """A decode step on the GPU with every byte that is no sequence's own poisoned."""

    def __init__(self, lengths: list[int], heads: int, queries: int, fp8: bool, dtype: Any) -> None:
        import torch

        from zenrepro.ops.mla import cache as cache_format

        torch.manual_seed(sum(lengths) + heads)
        width = max(1, *(-(-length // PAGE) for length in lengths))
        pages = len(lengths) * width + 2
        order = torch.randperm(pages)[: len(lengths) * width].view(len(lengths), width)
        pool = torch.full((pages, PAGE, ROW), float("nan"))
        table = torch.full((len(lengths), width), -1, dtype=torch.int32)
        for b, length in enumerate(lengths):
            own = -(-length // PAGE)
            table[b, :own] = order[b, :own].int()
            for i in range(own):
                rows = min(PAGE, length - i * PAGE)
                pool[order[b, i], :rows] = torch.randn(rows, ROW)
        stored = torch.from_numpy(cache_format.quantise(pool.numpy())) if fp8 else pool.to(dtype)
        exact = torch.from_numpy(cache_format.dequantise(stored.numpy())) if fp8 else stored
        q = torch.randn(len(lengths), queries, heads, ROW).to(dtype)
        self.wanted = torch.zeros(len(lengths), queries, heads, LATENT, dtype=torch.float64)
        for b, length in enumerate(lengths):
            rows = exact[table[b].clamp(min=0).long()].reshape(-1, ROW)[:length].double()
            for t in range(queries):
                seen = rows[: max(0, length - queries + t + 1)]
                if len(seen):
                    weights = (q[b, t].double() @ seen.T * SCALE).softmax(-1)
                    self.wanted[b, t] = weights @ seen[:, :LATENT]
        self.q, self.cache, self.table = q.cuda(), stored.cuda(), table.cuda()
        self.lengths = torch.tensor(lengths, dtype=torch.int32).cuda()

    def error(self, out: Any) -> float:
        wrong = (out.cpu().double() - self.wanted).norm()
        return float(wrong / self.wanted.norm())


def candidates(rows: int, fp8: bool) -> list[Any]:
    """How to cut, in every way that the tuning script tries for so many rows on this card."""
    path = Path(__file__).with_name("tune_mla_triton.py")
    spec = importlib.util.spec_from_file_location("tune_mla_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[Any] = module.of(rows, fp8)
    return found


@pytest.mark.parametrize(("heads", "queries"), [(16, 1), (24, 1), (40, 1), (5, 3), (16, 8)])
def test_every_cut_in_poisoned_memory(device: Any, heads: int, queries: int) -> None:
    import torch

    from zenrepro.ops.mla import torch_triton

    lengths = [70, 1, 0, 640, 65, 64, 1000, 3]
    for fp8 in (False, True):
        drawn = Drawn(lengths, heads, queries, fp8, torch.bfloat16)
        for cut in candidates(heads * queries, fp8):
            for programs in (1, 7, 100):
                out = [
                    torch_triton.launch(
                        drawn.q, drawn.cache, drawn.table, drawn.lengths, SCALE, cut,
                        torch_triton.Schedule(programs, 1),
                    )
                    for _ in range(2)
                ]  # fmt: skip
                assert torch.equal(*out), f"{cut}, {programs} programs: not the same twice"
                error = drawn.error(out[0])
                assert error < 6e-3, f"{cut}, fp8 {fp8}, {programs} programs: error {error:.1e}"
                assert not out[0][2].any()  # the empty sequence


def test_a_graph_follows_lengths_that_change(device: Any) -> None:
    """What is captured reads lengths on the device, and stays inside the pool whatever they are."""
    import torch

    from zenrepro.ops.mla import torch_triton

    short = Drawn([70, 1, 130], 16, 1, False, torch.bfloat16)
    given = {"block_table": short.table, "cache_seqlens": short.lengths}
    torch_triton.decode(short.q, short.cache, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch_triton.decode(short.q, short.cache, **given)
    graph.replay()
    assert short.error(out) < 6e-3
    kept = short.lengths.clone()
    short.lengths.copy_(torch.tensor([1, 0, 65], dtype=torch.int32))
    graph.replay()
    assert not out[1].any()
    assert torch.isfinite(out).all()
    short.lengths.copy_(torch.tensor([-5, 10**9, 3], dtype=torch.int32))
    short.table.fill_(10**8)
    graph.replay()
    torch.cuda.synchronize()  # no fault
    short.lengths.copy_(kept)


def test_every_pair_of_fp8_codes(device: Any) -> None:
    path = Path(__file__).parents[1] / "ops" / "mla_triton_driver.py"
    spec = importlib.util.spec_from_file_location("mla_triton_driver", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for packed in (False, True):
        assert module.codes("cuda", packed)["passed"], packed


@pytest.mark.parametrize("fp8", [False, True])
def test_projections_at_the_ends_of_decode(device: Any, fp8: bool) -> None:
    import torch

    from zenrepro.ops.mla import torch_fused

    drawn = Drawn([70, 1, 0, 640], 24, 2, fp8, torch.bfloat16)
    q = torch.randn(4, 2, 24, QUERY, device="cuda").bfloat16()
    w_uk, w_uv = (
        (torch.randn(24, rows, LATENT, device="cuda") * LATENT**-0.5).bfloat16()
        for rows in (NOPE, VALUE)
    )
    given = {"block_table": drawn.table, "cache_seqlens": drawn.lengths}
    out = torch_fused.decode_projected(q, drawn.cache, w_uk, w_uv, **given)
    from zenrepro.ops.mla import torch_triton

    nope = torch.einsum("bthn,hnc->bthc", q[..., :NOPE].double(), w_uk.double())
    absorbed = torch.cat((nope.bfloat16(), q[..., NOPE:]), -1)
    plain = torch_triton.decode(absorbed, drawn.cache, **given)
    right = torch.einsum("bthc,hvc->bthv", plain.double(), w_uv.double())
    assert float((out.double() - right).norm() / right.norm()) < 6e-3
