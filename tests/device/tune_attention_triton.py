"""Configurations of the Triton attention, checked and timed against each other and torch's own.

    python tests/device/tune_attention_triton.py [seconds] [prefill] [packed] [decode] [paged]

Candidates are compiled by several processes first, then each shape's are checked against fp64 and
sampled in turn with torch's FlashAttention-2 and cuDNN, as CUDA graphs, with the L2 emptied before
each; the fastest first, the table's choice marked * (letters: ``short``). Stops starting shapes
after ``seconds`` (40). Runs on any card of the table; candidates that do not fit it are named.
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
LAST = 1024  # query rows of a head that are checked
BOUND = 8e-3  # of bf16 outputs against fp64, random inputs


class Shape(NamedTuple):
    kind: str  # prefill, packed (sequences end to end), decode, paged
    batch: int
    query_len: int
    cache_len: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    causal: bool


SHAPES = (
    *(
        Shape("prefill", 16384 // length, length, length, 32, 32, width, value, causal)
        for width, value in ((64, 64), (128, 128), (192, 128))
        for length in (1024, 4096, 16384)
        for causal in (False, True)
    ),
    Shape("packed", 8, 2048, 2048, 32, 32, 64, 64, True),
    Shape("packed", 8, 2048, 2048, 32, 8, 128, 128, True),
    Shape("packed", 8, 2048, 2048, 32, 32, 192, 128, True),
    *(
        Shape("decode", batch, 1, length, 32, kv, 128, 128, True)
        for batch, length, kv in (
            (1, 16384, 8), (4, 8192, 8), (12, 8192, 8), (32, 16384, 8), (32, 4096, 32),
            (64, 4096, 1),
        )
    ),
    Shape("decode", 16, 1, 4096, 16, 16, 64, 64, True),
    Shape("decode", 16, 1, 4096, 16, 16, 192, 128, True),
    Shape("paged", 32, 1, 4096, 32, 8, 128, 128, True),
    Shape("paged", 4, 1, 8192, 32, 8, 128, 128, True),
    Shape("paged", 1, 1, 131072, 32, 8, 128, 128, True),
)  # fmt: skip
PAGE = 64


def candidates(shape: Shape, target: str) -> list[Config]:
    """The table's own first."""
    width = torch_fa2.width(shape.head_dim, shape.value_dim)
    kind = {"packed": "pointers", "paged": "decode"}.get(shape.kind, shape.kind)
    if kind == "pointers" and target != "sm_90":
        kind = "prefill"
    found = [torch_fa2.CONFIGS[target, kind, width]]
    if kind == "decode":
        keys = ((32, 2, 4), (64, 2, 3), (64, 4, 3), (128, 4, 2), (128, 4, 3))
        found += [Config(16, n, warps, depth) for n, warps, depth in keys]
        if target == "sm_90" and shape.kind == "decode":  # descriptors: not through a page table
            found += [Config(16, n, 4, 3, tma=True) for n in (64, 128)]
        return [found[0], *(config for config in found[1:] if config != found[0])]
    if target == "sm_90":
        tma = kind == "prefill"
        plain = ((64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 8, 3), (128, 128, 8, 2),
                 (128, 128, 8, 3))  # fmt: skip
        found += [Config(*sizes, tma=tma) for sizes in plain]
        early = ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2))
        found += [Config(*sizes, ahead=True, tma=tma) for sizes in early]
        held = ((64, 64, 4, 2), (128, 64, 8, 3), (128, 64, 8, 4))
        found += [Config(*sizes, ahead=True, q_registers=True, tma=tma) for sizes in held]
    else:
        sizes = ((128, 64, 4, 3), (128, 64, 8, 3), (128, 32, 4, 3), (128, 32, 8, 4), (64, 64, 4, 3))
        found += [
            Config(m, n, warps, depth, ahead=ahead)
            for (m, n, warps, depth), ahead in itertools.product(sizes, (False, True))
        ]
    return list(dict.fromkeys(found))


def plans(shape: Shape, config: Config, processors: int) -> list[Plan]:
    """The tiles; for a decode with the splits for 1, 2 and 3 programs a processor, the table's
    own first."""
    call = described(shape)
    packed = shape.query_len * call.group <= torch_fa2.PACKED_ROWS
    rows = shape.query_len * (call.group if packed else 1)
    if packed:
        config = config._replace(block_m=max(16, 1 << (rows - 1).bit_length()))
    tiles = -(-rows // config.block_m)
    splits = {1}
    if packed:
        programs, most = tiles * shape.batch * shape.kv_heads, shape.cache_len // 256
        splits = {torch_fa2.choose_splits(programs, most, processors * each) for each in (1, 2, 3)}
    return [Plan(config, packed, tiles, count) for count in sorted(splits)]


def described(shape: Shape) -> Call:
    layout = {"paged": "paged", "packed": "varlen"}.get(shape.kind, "dense")
    return Call(layout, *shape[1:8], shape.causal, shape.head_dim**-0.5)


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
    asked: tuple[int, ...] = (shape.batch, shape.query_len)
    if shape.kind == "packed":
        starts = torch.arange(shape.batch + 1, device="cuda", dtype=torch.int32)
        asked, kept = (shape.batch * shape.query_len,), (shape.batch * shape.cache_len,)
        call = call._replace(
            starts_q=starts * shape.query_len, starts_k=starts * shape.cache_len,
            queries=asked[0], keys=kept[0],
        )  # fmt: skip
    q = torch.randn(*asked, shape.heads, shape.head_dim, **options)
    k = torch.randn(*kept, shape.kv_heads, shape.head_dim, **options)
    v = torch.randn(*kept, shape.kv_heads, shape.value_dim, **options)
    out = torch.empty(*asked, shape.heads, shape.value_dim, **options)
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
    if call.layout == "varlen":
        q, k, v, out = (x.unflatten(0, (call.batch, -1)) for x in arrays)
    for b, h in ((0, 0), (call.batch - 1, call.heads - 1)):
        near = [x[b, :, h // call.group] for x in (k, v)]
        if call.table is not None:
            pages = call.table[b].long()
            near = [x[pages, :, h // call.group].flatten(0, 1) for x in (k, v)]
        keys, values = (x.double() for x in near)
        scores = q[b, -LAST:, h].double() @ keys.T * call.scale
        hidden = torch.ones_like(scores, dtype=torch.bool)
        scores[hidden.triu(scores.shape[1] - scores.shape[0] + 1) & call.causal] = -torch.inf
        wanted = scores.softmax(-1) @ values
        worst = max(worst, float((out[b, -LAST:, h] - wanted).norm() / wanted.norm()))
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


def short(plan: Plan) -> str:
    """Rows, keys, warps, stages; a: ahead, q: queries in registers, t: descriptors; splits."""
    config = plan.config
    letters = "".join(
        letter
        for letter, on in zip("aqt", (config.ahead, config.q_registers, config.tma), strict=True)
        if on
    )
    splits = f" /{plan.splits}" if plan.splits > 1 else ""
    return f"{','.join(map(str, config[:4]))}{letters}{splits}"


def measure(shape: Shape, target: str, processors: int) -> None:
    call, arrays = drawn(shape)
    q, k, v, out = arrays
    calls: dict[str, Callable[[], None]] = {}
    for i, config in enumerate(candidates(shape, target)):
        for plan in plans(shape, config, processors):
            name = f"{'*' if i == 0 else ' '}{short(plan)}"
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
    if call.layout == "dense":
        for peer in (torch_sdpa_flash, torch_sdpa_cudnn):
            try:
                whole = functools.partial(peer.attention, q, k, v, causal=shape.causal)
                calls[peer.__name__.rpartition("_")[2]] = replay(whole)
            except Exception as problem:  # noqa: BLE001
                print(f"    {peer.__name__}: {str(problem)[:100]}")
    pairs = shape.query_len * shape.cache_len / (2 if shape.query_len > 1 and shape.causal else 1)
    flops = 2 * shape.batch * shape.heads * pairs * (shape.head_dim + shape.value_dim)
    read = 2 * (k.numel() + v.numel())
    found = sorted(in_turn(calls).items(), key=lambda pair: pair[1])
    least = found[0][1]
    rate = f"{flops / least / 1e6:.0f} TFLOP/s"
    if shape.query_len == 1:
        rate = f"{read / least / 1e6:.2f} TB/s"
    words = [f"{us:.1f} {name}" for i, (name, us) in enumerate(found) if i < 8 or name[0] != " "]
    kind, batch, queries, keys, heads, kv_heads, width, value, causal = shape
    print(
        f"{kind} {batch} x {queries} of {keys}, heads {heads}/{kv_heads} of {width}/{value}"
        f"{', causal' if causal else ''}: {rate}; us {' | '.join(words)}",
        flush=True,
    )


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
    jobs = {  # a kernel depends neither on batch and lengths, nor on how many splits there are
        (
            shape._replace(
                batch=1, query_len=0, cache_len=0, heads=shape.heads // shape.kv_heads, kv_heads=1
            ),
            plan.config,
            plan.splits > 1,
        ): (shape, plan)
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
