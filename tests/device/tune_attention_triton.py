"""Configurations of the Triton attention, checked and timed against each other and torch's own.

    python tests/device/tune_attention_triton.py [seconds] [prefill] [decode] [paged]

Candidates are compiled by several processes first, then each shape's are checked against fp64 and
sampled in turn with torch's FlashAttention-2 and cuDNN, as CUDA graphs, with the L2 emptied before
each; the fastest first, the table's choice marked *. Stops starting shapes after ``seconds`` (40).
Runs on any card of the table: candidates that do not fit it are left out by name.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from zenrepro.ops.attention import torch_fa2, torch_sdpa_cudnn, torch_sdpa_flash
from zenrepro.ops.attention.torch_fa2 import Call, Config, Plan

SAMPLES, PROCESSES = 7, min(14, os.cpu_count() or 1)
BOUND = 8e-3  # of bf16 outputs against fp64, random inputs


class Shape(NamedTuple):
    kind: str  # prefill, decode, paged
    batch: int
    query_len: int
    cache_len: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    causal: bool


SHAPES = (
    Shape("prefill", 4, 4096, 4096, 32, 32, 128, 128, False),
    Shape("prefill", 4, 4096, 4096, 32, 32, 128, 128, True),
    Shape("prefill", 4, 4096, 4096, 32, 32, 192, 128, True),
    Shape("prefill", 4, 4096, 4096, 32, 32, 64, 64, True),
    Shape("prefill", 1, 16384, 16384, 32, 32, 128, 128, True),
    Shape("decode", 32, 1, 16384, 32, 8, 128, 128, True),
    Shape("decode", 1, 1, 16384, 32, 8, 128, 128, True),
    Shape("decode", 32, 1, 4096, 32, 32, 128, 128, True),
    Shape("paged", 32, 1, 4096, 32, 8, 128, 128, True),
    Shape("paged", 1, 1, 131072, 32, 8, 128, 128, True),
)
PAGE = 64


def candidates(shape: Shape, target: str) -> list[Config]:
    """The table's own first."""
    width = torch_fa2.width(shape.head_dim, shape.value_dim)
    kind = "prefill" if shape.kind == "prefill" else "decode"
    found = [torch_fa2.CONFIGS[target, kind, width]]
    if kind == "decode":
        sizes = (
            (64, 4, 3),
            (128, 4, 2),
            (128, 4, 3),
            (128, 8, 3),
            (64, 2, 3),
            (64, 4, 4),
            (32, 2, 4),
        )
        found += [Config(16, n, warps, depth, 3) for n, warps, depth in sizes]
        if target == "sm_90" and shape.kind == "decode":  # descriptors: not through a page table
            found += [Config(16, n, warps, depth, 3, tma=True) for n, warps, depth in sizes]
    elif target == "sm_90":
        sizes = ((128, 8, 2), (128, 8, 3), (64, 8, 2), (64, 8, 3), (64, 8, 4))
        forms = ((True, True), (True, False), (False, True), (False, False))
        found += [
            Config(128, n, warps, depth, ahead=ahead, q_registers=registers, tma=True)
            for (n, warps, depth), (ahead, registers) in itertools.product(sizes, forms)
        ]
        found += [Config(64, n, 4, 2, ahead=n < 128, tma=True) for n in (64, 128)]
        found += [torch_fa2.CONFIGS[target, "pointers", width]]
    else:
        sizes = ((128, 64, 4, 3), (128, 64, 8, 3), (128, 32, 4, 3), (128, 32, 8, 4), (64, 64, 4, 3))
        found += [
            Config(m, n, warps, depth, ahead=ahead)
            for (m, n, warps, depth), ahead in itertools.product(sizes, (False, True))
        ]
    return list(dict.fromkeys(found))


def plans(shape: Shape, config: Config, processors: int) -> list[Plan]:
    """The tiles; for a decode with the splits for 1, 2, 3 and 4 programs a processor."""
    call = described(shape)
    packed = shape.query_len * call.group <= torch_fa2.PACKED_ROWS
    rows = shape.query_len * (call.group if packed else 1)
    if packed:
        config = config._replace(block_m=max(16, 1 << (rows - 1).bit_length()))
    tiles = -(-rows // config.block_m)
    splits = {1}
    if packed:
        programs, most = tiles * shape.batch * shape.kv_heads, shape.cache_len // 256
        splits = {
            torch_fa2.choose_splits(programs, most, processors * each) for each in (1, 2, 3, 4)
        }
    return [Plan(config, packed, tiles, count) for count in sorted(splits)]


def described(shape: Shape) -> Call:
    return Call(
        "paged" if shape.kind == "paged" else "dense", *shape[1:8], shape.causal,
        shape.head_dim**-0.5,
    )  # fmt: skip


def drawn(shape: Shape) -> tuple[Call, list[torch.Tensor]]:
    torch.manual_seed(0)
    call = described(shape)
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    kept: tuple[int, ...] = (shape.batch, shape.cache_len)
    if shape.kind == "paged":
        pages = shape.batch * shape.cache_len // PAGE
        kept = (pages, PAGE)
        table = torch.randperm(pages, device="cuda").int().view(shape.batch, -1)
        lengths = torch.full((shape.batch,), shape.cache_len, device="cuda", dtype=torch.int32)
        call = call._replace(table=table, lengths=lengths, page=PAGE, pages=pages)
    q = torch.randn(shape.batch, shape.query_len, shape.heads, shape.head_dim, **options)
    k = torch.randn(*kept, shape.kv_heads, shape.head_dim, **options)
    v = torch.randn(*kept, shape.kv_heads, shape.value_dim, **options)
    out = torch.empty(shape.batch, shape.query_len, shape.heads, shape.value_dim, **options)
    return call, [q, k, v, out]


def compile_one(job: tuple[Shape, Plan]) -> str | None:
    """Into Triton's cache on disk. What went wrong, or None."""
    shape, plan = job
    try:
        call, arrays = drawn(shape._replace(batch=1))
        torch_fa2.launch(call, plan, *arrays)
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  (one that does not fit must not stop the others)
        return f"{shape.kind} {tuple(plan.config)}: {type(error).__name__} {str(error)[:120]}"
    return None


def error(call: Call, arrays: list[torch.Tensor]) -> float:
    """The largest relative error of the first and the last head, against fp64."""
    q, k, v, out = arrays
    worst = 0.0
    for b, h in ((0, 0), (call.batch - 1, call.heads - 1)):
        near = [x[b, :, h // call.group] for x in (k, v)]
        if call.table is not None:
            pages = call.table[b].long()
            near = [x[pages, :, h // call.group].flatten(0, 1) for x in (k, v)]
        keys, values = (x.double() for x in near)
        scores = q[b, :, h].double() @ keys.T * call.scale
        hidden = torch.ones_like(scores, dtype=torch.bool)
        scores[hidden.triu(scores.shape[1] - scores.shape[0] + 1) & call.causal] = -torch.inf
        wanted = scores.softmax(-1) @ values
        worst = max(worst, float((out[b, :, h] - wanted).norm() / wanted.norm()))
    return worst


def replay(call: Callable[[], Any]) -> Callable[[], None]:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.held = call()  # type: ignore[attr-defined]
    return graph.replay


def in_turn(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median microseconds of each."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(SAMPLES + 1):
        for name, call in calls.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if i:
                taken[name].append(begin.elapsed_time(end) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(shape: Shape, target: str, processors: int) -> None:
    call, arrays = drawn(shape)
    q, k, v, out = arrays
    calls: dict[str, Callable[[], None]] = {}
    for i, config in enumerate(candidates(shape, target)):
        for plan in plans(shape, config, processors):
            name = f"{'*' if i == 0 else ' '} {tuple(plan.config)} splits {plan.splits}"
            try:
                out.fill_(float("nan"))
                torch_fa2.launch(call, plan, *arrays)
                wrong = error(call, arrays)
                if not wrong < BOUND:
                    print(f"    WRONG {name}: {wrong:.1e}")
                    continue
                calls[name] = replay(functools.partial(torch_fa2.launch, call, plan, *arrays))
            except Exception as problem:  # noqa: BLE001
                print(f"    {name}: {type(problem).__name__} {str(problem)[:100]}")
    if shape.kind != "paged":
        for peer in (torch_sdpa_flash, torch_sdpa_cudnn):
            try:
                whole = functools.partial(peer.attention, q, k, v, causal=shape.causal)
                calls[f"  {peer.__name__.rpartition('.')[2]}"] = replay(whole)
            except Exception as problem:  # noqa: BLE001
                print(f"    {peer.__name__}: {str(problem)[:100]}")
    pairs = (
        shape.query_len * shape.cache_len / (2 if shape.kind == "prefill" and shape.causal else 1)
    )
    flops = 2 * shape.batch * shape.heads * pairs * (shape.head_dim + shape.value_dim)
    read = 2 * (k.numel() + v.numel())
    print(f"{shape}", flush=True)
    for name, us in sorted(in_turn(calls).items(), key=lambda pair: pair[1]):
        rate = f"{flops / us / 1e6:6.0f} TFLOP/s"
        if shape.kind != "prefill":
            rate = f"{read / us / 1e6:6.2f} TB/s"
        print(f"  {us:9.1f} µs {rate} {name}", flush=True)


def main(words: list[str]) -> None:
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    began = time.monotonic()
    limit = next((float(word) for word in words if word.isdigit()), 40.0)
    kinds = [word for word in words if not word.isdigit()]
    shapes = [shape for shape in SHAPES if not kinds or shape.kind in kinds]
    properties = torch.cuda.get_device_properties(0)
    target = torch_fa2.architecture((properties.major, properties.minor))
    processors = properties.multi_processor_count
    jobs = {  # a kernel does not depend on the batch, nor on how many splits there are
        (shape._replace(batch=1), plan.config, plan.splits > 1): (shape, plan)
        for shape in shapes
        for config in candidates(shape, target)
        for plan in plans(shape, config, processors)
    }
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for problem in pool.imap_unordered(compile_one, jobs.values()):
            if problem is not None:
                print(f"    {problem}")
    print(f"{len(jobs)} compiled in {time.monotonic() - began:.0f} s", flush=True)
    for shape in shapes:
        if time.monotonic() - began > limit:
            print(f"left out: {shape}")
            continue
        measure(shape, target, processors)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
