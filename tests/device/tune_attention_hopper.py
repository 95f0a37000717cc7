"""Variants of the Hopper attention kernel, checked and timed against each other and the peers.

    python tests/device/tune_attention_hopper.py [check] [64] [128] [192] [fp8] [only=n128,n176]

``check`` first runs every variant with waits that trap instead of hanging. Each shape's variants
are sampled in turn, as CUDA graphs, with the L2 emptied before each; TFLOP/s, the fastest first.
ZENREPRO_FA3_LIBRARY names a built FlashAttention-3. ``only`` keeps variants of these names. A
variant takes NVRTC some 7 s of one core, twice (causal, full), and twice more with ``check``.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from zenrepro.ops import nvrtc
from zenrepro.ops.attention import torch_fa3, torch_fa3_package, torch_sdpa_cudnn
from zenrepro.ops.attention.fa3_variant import Variant

SHAPES = ((4, 4096, 32, 32), (1, 16384, 32, 32), (4, 4096, 32, 8))  # batch, length, heads, kv heads
DIMS = {"64": (64, 64), "128": (128, 128), "192": (192, 128), "fp8": (128, 128)}
BOUND = {torch.bfloat16: 5e-3, torch.float8_e4m3fn: 4e-2}
SAMPLES = 6


def variants(name: str) -> dict[str, Variant]:
    """Every choice away from one middle, one at a time, and the sizes of blocks."""
    head_dim, value_dim = DIMS[name]
    if name == "fp8":
        middle = Variant(head_dim, value_dim, False, False, "E4M3", 2, 128, 2)
        return {
            "n128": middle, "n128-s3-q2": middle._replace(stages=3, q_stages=2),
            "n128-drain": middle._replace(continuous=False),
            "n128-poly4": middle._replace(polynomial=4),
            "n192": middle._replace(block_n=192),
            "n192-poly4": middle._replace(block_n=192, polynomial=4),
            "n128-cluster": middle._replace(cluster=2, dynamic=False),
            "n128-poly4-qr": middle._replace(polynomial=4, q_registers=True),
        }  # fmt: skip
    middle = Variant(head_dim, value_dim, False, False, "BF16", 2, 128, 4 if head_dim == 64 else 2)
    widths = {64: (96, 128, 160, 192, 224), 128: (96, 128, 144, 160, 176), 192: (80, 96, 112, 128)}
    found = {f"n{n}": middle._replace(block_n=n) for n in widths[head_dim]}
    if head_dim == 64:
        found["n224"] = found["n224"]._replace(stages=3)
    plain: dict[str, dict[str, Any]] = {
        "drain": {"continuous": False}, "eager": {"lazy_rescale": False},
        "no-turns": {"ping_pong": False}, "static": {"dynamic": False},
        "cluster": {"dynamic": False, "cluster": 2}, "poly4": {"polynomial": 4},
        "qr": {"q_registers": True}, "split": {"split": True},
    }  # fmt: skip
    best = middle._replace(block_n={64: 128, 128: 128, 192: 112}[head_dim])
    for name, change in plain.items():
        found[f"n{best.block_n}-{name}"] = best._replace(**change)
    if head_dim < 192:
        found[f"n{best.block_n}-q2"] = best._replace(q_stages=2)
    else:
        found["n96-q2"] = best._replace(block_n=96, q_stages=2)
        found["n128-qr"] = best._replace(block_n=128, q_registers=True)
    if head_dim == 64:
        found["w3-n96"] = best._replace(warpgroups=3, block_n=96)
        found["n128-s2"] = best._replace(stages=2)
        found["n128-poly3"] = best._replace(polynomial=3)
    if head_dim == 128:
        found["n176-drain"] = best._replace(block_n=176, continuous=False)
        found["n128-qr-split"] = best._replace(q_registers=True, split=True)
        found["n144-qr"] = best._replace(block_n=144, q_registers=True)
        found["n128-qr-cluster"] = best._replace(q_registers=True, cluster=2, dynamic=False)
        for n in (160, 176):
            found[f"n{n}-cluster"] = best._replace(block_n=n, cluster=2, dynamic=False)
        found["n80-s3"] = best._replace(block_n=80, stages=3)
    return found


def build(chosen: list[tuple[Variant, nvrtc.Defines]]) -> None:
    began = time.time()

    def one(item: tuple[Variant, nvrtc.Defines]) -> str | None:
        try:
            nvrtc.compile(torch_fa3.SOURCE, defines=item[0].defines + item[1])
        except nvrtc.CompileError as error:
            return f"{item[0]}: {error}"
        return None

    with ThreadPoolExecutor(16) as pool:
        for failed in filter(None, pool.map(one, chosen)):
            print(failed)
    print(f"{len(chosen)} variants compiled in {time.time() - began:.1f} s", flush=True)


def rows_of(q: Any, k: Any, v: Any, causal: bool, rows: Any) -> Any:
    """fp64 rows of the last sequence, from the inputs as rounded."""
    T, H, D = q.shape[1:]
    S, group = k.shape[1], H // k.shape[2]
    k, v = (x[-1].float().repeat_interleave(group, 1).double() for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q[-1].float()[rows].double(), k) * D**-0.5
    if causal:
        after = torch.arange(S, device=q.device) > (rows[:, None] + S - T)
        scores = scores.masked_fill(after, -torch.inf)
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v)


def error(chosen: Variant, q: Any, k: Any, v: Any) -> float:
    """Against fp64 on some rows; two runs must agree in every bit."""
    out, again = (
        torch.full((*q.shape[:3], v.shape[3]), float("nan"), device="cuda", dtype=torch.bfloat16)
        for _ in range(2)
    )
    for target in (out, again):
        torch_fa3.run(chosen, q, k, v, target, scale=q.shape[3] ** -0.5)
    rows = torch.arange(0, q.shape[1], max(1, q.shape[1] // 61), device="cuda")
    wanted = rows_of(q, k, v, chosen.causal, rows)
    off = float((out[-1, rows].double() - wanted).norm() / wanted.norm())
    return off if torch.equal(out, again) else float("nan")


def in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median microseconds."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    graphs = {}
    for name, call in calls.items():
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                held = call()
            graphs[name] = (graph, held)
        except Exception as failure:  # noqa: BLE001  (one that cannot run must not stop the others)
            print(f"    {name}: {type(failure).__name__}: {str(failure).splitlines()[0][:160]}")
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for i in range(SAMPLES + 1):
        for name, (graph, _) in graphs.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            if i:
                taken[name].append(begin.elapsed_time(end) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def draw(B: int, T: int, S: int, H: int, Hkv: int, name: str) -> list[Any]:
    wide, out = DIMS[name]
    form = torch.float8_e4m3fn if name == "fp8" else torch.bfloat16
    sizes = ((B, T, H, wide), (B, S, Hkv, wide), (B, S, Hkv, out))
    return [torch.randn(size, device="cuda").to(form) for size in sizes]


def kept(name: str) -> dict[str, Variant]:
    """``variants``, or those of them that the command line names."""
    only = [word[5:].split(",") for word in sys.argv[1:] if word.startswith("only=")]
    return {key: v for key, v in variants(name).items() if not only or key in only[0]}


def check(name: str) -> None:
    guard: nvrtc.Defines = (("DEBUG_SPIN", 2_000_000),)
    found = [v._replace(causal=causal) for v in kept(name).values() for causal in (False, True)]
    build([(v, guard) for v in found])
    plain = nvrtc.function
    try:
        nvrtc.function = lambda *a, defines=(), **o: plain(*a, defines=defines + guard, **o)  # type: ignore[assignment]
        for chosen in found:
            worst = max(
                error(chosen, *draw(*shape, name))
                for shape in (
                    (1, 1, 1, 2, 1),
                    (2, 129, 777, 4, 1),
                    (3, 1000, 1000, 6, 3),
                    (8, 640, 640, 40, 8),
                )
            )
            torch.cuda.synchronize()
            fine = worst < BOUND[torch.float8_e4m3fn if name == "fp8" else torch.bfloat16]
            print(f"{'ok   ' if fine else 'WRONG'} {worst:.1e} {chosen}", flush=True)
    finally:
        nvrtc.function = plain


def tune(size: str) -> None:
    found, dims = kept(size), DIMS[size]
    build([(v._replace(causal=c), ()) for v in found.values() for c in (False, True)])
    for B, S, H, Hkv in SHAPES:
        q, k, v = draw(B, S, S, H, Hkv, size)
        for causal in (False, True):
            calls: dict[str, Callable[[], Any]] = {}
            for name, one in found.items():
                chosen = one._replace(causal=causal)
                off = error(chosen, q, k, v)
                if not off < BOUND[q.dtype]:
                    print(f"    {name}: WRONG, {off:.1e}", flush=True)
                    continue
                out = torch.empty(B, S, H, dims[1], device="cuda", dtype=torch.bfloat16)
                run = functools.partial(torch_fa3.run, chosen, q, k, v, out)
                calls[name] = functools.partial(run, scale=dims[0] ** -0.5)
                if name == "n128":
                    for heads in (4, 8, 32):
                        few = {"scale": dims[0] ** -0.5, "heads_at_once": heads}
                        calls[f"{name}-heads{heads}"] = functools.partial(run, **few)
            for name, peer in (("fa3", torch_fa3_package), ("cudnn", torch_sdpa_cudnn)):
                calls[f"PEER {name}"] = functools.partial(peer.attention, q, k, v, causal=causal)
            flops = 2 * B * H * S * S * sum(dims) / (2 if causal else 1)
            order = sorted(in_turn(calls).items(), key=lambda item: item[1])
            print(
                f"B{B} S{S} H{H}/{Hkv} {size} {'causal' if causal else 'full'}:  "
                + "  ".join(f"{name} {flops / us / 1e6:.0f}" for name, us in order),
                flush=True,
            )


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    torch.manual_seed(0)
    wanted = [name for name in DIMS if name in sys.argv[1:]] or ["128"]
    for name in wanted:
        if "check" in sys.argv[1:]:
            check(name)
        tune(name)
