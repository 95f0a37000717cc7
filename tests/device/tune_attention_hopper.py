"""Variants of the Hopper attention kernel, checked and timed against each other and the peers.

    python tests/device/tune_attention_hopper.py [check] [64] [128] [192] [fp8] [only=shipped,n176]

``check`` first runs every variant with waits that trap instead of hanging. Each shape's variants
are sampled in turn, as CUDA graphs, with the L2 emptied before each; TFLOP/s, the fastest first.
ZENREPRO_FA3_LIBRARY names a built FlashAttention-3. ``only`` keeps variants of these names. A
variant takes NVRTC some 7 s of one core, twice (causal, full), and twice more with ``check``.
"""

from __future__ import annotations

import functools
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from zenrepro.ops import nvrtc
from zenrepro.ops.attention import torch_fa3, torch_fa3_package, torch_sdpa_cudnn
from zenrepro.ops.attention.fa3_variant import Variant, variant

SHAPES = ((4, 4096, 32, 32), (1, 16384, 32, 32), (4, 4096, 32, 8))  # batch, length, heads, kv heads
DIMS = {"64": (64, 64), "128": (128, 128), "192": (192, 128), "fp8": (128, 128)}
BOUND = {torch.bfloat16: 5e-3, torch.float8_e4m3fn: 4e-2}
SAMPLES = 10


def variants(name: str, causal: bool) -> dict[str, Variant]:
    """The shipped choice, and what differs from it in one thing."""
    head_dim, value_dim = DIMS[name]
    form = "fp8_e4m3" if name == "fp8" else "bf16"
    best = variant(head_dim, value_dim, causal=causal, varlen=False, dtype=form)
    found = {"shipped": best}
    for n in {64: (96, 112), 128: (144, 160, 176), 192: (96, 112)}[head_dim]:
        if name != "fp8":  # of many keys, Q does not fit the registers
            found[f"n{n}"] = best._replace(block_n=n, q_registers=best.q_registers and n < 160)
    if name == "fp8":
        found["n128-s3-q2"] = best._replace(block_n=128, stages=3, q_stages=2)
        found["s3"] = best._replace(stages=3)
    if head_dim == 64:
        found["w2-n192"] = best._replace(warpgroups=2, block_n=192)
    else:
        found["q-elsewhere"] = best._replace(q_registers=not best.q_registers)
    if not causal:
        found["whole"] = best._replace(split=False)
    found["turns-otherwise"] = best._replace(ping_pong=not best.ping_pong)
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
    # A graph that the collector destroys while another is captured loses that capture.
    gc.collect()
    gc.disable()
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
    gc.enable()
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    order = list(graphs)
    for i in range(SAMPLES + 1):
        random.shuffle(order)  # what ran just before decides how far the clock has fallen
        for name in order:
            graph = graphs[name][0]
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


def kept(name: str, causal: bool) -> dict[str, Variant]:
    """``variants``, or those of them that the command line names."""
    only = [word[5:].split(",") for word in sys.argv[1:] if word.startswith("only=")]
    return {key: v for key, v in variants(name, causal).items() if not only or key in only[0]}


def check(name: str) -> None:
    guard: nvrtc.Defines = (("DEBUG_SPIN", 2_000_000),)
    found = [v for causal in (False, True) for v in kept(name, causal).values()]
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


def packed(q: Any, k: Any, v: Any, causal: bool) -> Callable[[], Any]:
    """FlashAttention-3 with equal lengths: vLLM's build serves packed sequences alone."""
    B, S = q.shape[:2]
    at = torch.arange(0, (B + 1) * S, S, dtype=torch.int32, device="cuda")
    return functools.partial(
        torch_fa3_package.attention_varlen, *(x.flatten(0, 1) for x in (q, k, v)),
        cu_seqlens_q=at, cu_seqlens_k=at, max_seqlen_q=S, max_seqlen_k=S, causal=causal,
    )  # fmt: skip


def tune(size: str) -> None:
    dims = DIMS[size]
    build([(v, ()) for causal in (False, True) for v in kept(size, causal).values()])
    for B, S, H, Hkv in SHAPES:
        q, k, v = draw(B, S, S, H, Hkv, size)
        for causal in (False, True):
            calls: dict[str, Callable[[], Any]] = {}
            for name, chosen in kept(size, causal).items():
                off = error(chosen, q, k, v)
                if not off < BOUND[q.dtype]:
                    print(f"    {name}: WRONG, {off:.1e}", flush=True)
                    continue
                out = torch.empty(B, S, H, dims[1], device="cuda", dtype=torch.bfloat16)
                run = functools.partial(torch_fa3.run, chosen, q, k, v, out)
                calls[name] = functools.partial(run, scale=dims[0] ** -0.5)
                if name == "shipped":
                    for heads in (H // Hkv, 8, 32):
                        few = {"scale": dims[0] ** -0.5, "heads_at_once": heads}
                        calls[f"{name}-heads{heads}"] = functools.partial(run, **few)
            calls["PEER fa3"] = packed(q, k, v, causal)
            if size != "fp8":
                peer = torch_sdpa_cudnn.attention
                calls["PEER cudnn"] = functools.partial(peer, q, k, v, causal=causal)
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
