"""The prefill and latent decode rows that kernels are held against, timed with every peer.

    python tests/device/time_attention.py [prefill] [decode] [fp8]

Each shape's implementations are sampled in turn, as CUDA graphs, with the L2 emptied before each.
Libraries: ZENREPRO_FA3_LIBRARY and ZENREPRO_FLASHMLA_LIBRARY, where no package is installed. Whole
calls are timed; ``planned`` is a library's call with the scheduling that it lets a caller compute
once for all layers of a step. A minute in all on an H200.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from zenrepro import hardware
from zenrepro.ops.attention import TABLE, fa3_library
from zenrepro.ops.attention.cases import prefill
from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.mla import torch_flash_mla
from zenrepro.ops.mla.table import TABLE as MLA

SAMPLES, MOST_SECONDS = 12, 100.0
# batch, heads, cache length, query tokens
DECODE = (
    (128, 16, 4096, 1), (128, 24, 4096, 1), (64, 40, 4096, 1), (64, 64, 4096, 1),
    (64, 64, 16384, 1), (64, 128, 4096, 1), (8, 16, 32768, 1), (1, 16, 131072, 1),
    (64, 64, 4096, 4),
)  # fmt: skip
# batch, length, heads, kv heads, head_dim, value_dim, causal
PREFILL = (
    (4, 4096, 32, 32, 128, 128, False), (4, 4096, 32, 32, 128, 128, True),
    (1, 16384, 32, 32, 128, 128, False), (1, 16384, 32, 32, 128, 128, True),
    (4, 4096, 32, 32, 192, 128, True), (1, 16384, 32, 32, 192, 128, True),
    (4, 4096, 32, 32, 64, 64, True), (4, 4096, 32, 8, 128, 128, True),
)  # fmt: skip


def graph(call: Callable[[], Any]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        held = call()
    captured.held = held  # type: ignore[attr-defined]  # the graph writes into it
    return captured.replay


def in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median microseconds of each, A B A B."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    ready = {}
    for name, call in calls.items():
        try:
            ready[name] = graph(call)
        except Exception as error:  # noqa: BLE001  (one that cannot run must not stop the others)
            print(f"    {name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}")
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for i in range(SAMPLES + 2):
        for name, replay in ready.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            if i > 1:
                taken[name].append(begin.elapsed_time(end) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def rows(table: Any, device: Any, conditions: dict[str, Any]) -> dict[str, Any]:
    return {
        entry.name: entry
        for entry in table
        if entry.backend == "torch" and entry.available(device, conditions).ok
    }


def time_prefill(device: Any, forms: tuple[str, ...] = ("bf16",)) -> None:
    for batch, length, heads, kv_heads, wide, out, causal in PREFILL:
        case = prefill(
            None, batch, length, heads, wide, kv_heads=kv_heads, value_dim=out, causal=causal
        )
        shapes = ((heads, wide), (kv_heads, wide), (kv_heads, out))
        drawn = [torch.randn(batch, length, *shape, device="cuda") for shape in shapes]
        for form in forms:
            form_type = torch.float8_e4m3fn if form == "fp8_e4m3" else torch.bfloat16
            given = [x.to(form_type) for x in drawn]
            calls = {}
            for name, entry in rows(TABLE, device, case.conditions(form)).items():
                if entry.algorithm == "naive" and (causal or length > 4096):
                    continue
                calls[name] = functools.partial(entry.load(), *given, causal=causal)
            flops = 2 * batch * heads * length * length * (wide + out) / (2 if causal else 1)
            found = {name: f"{flops / us / 1e6:.0f}" for name, us in in_turn(calls).items()}
            print(f"{case} {form}, TFLOP/s: {found}", flush=True)
        torch.cuda.empty_cache()


def latent(batch: int, heads: int, length: int, queries: int) -> tuple[Any, Any, dict[str, Any]]:
    width = -(-length // 64)
    cache = torch.empty(batch * width + 1, 64, 576, device="cuda", dtype=torch.bfloat16).normal_()
    table = torch.randperm(batch * width + 1, device="cuda")[: batch * width]
    q = torch.randn(batch, queries, heads, 576, device="cuda").bfloat16()
    lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    return q, cache, {"block_table": table.view(batch, width).int(), "cache_seqlens": lengths}


def time_decode(device: Any, *, fp8: bool) -> None:
    from zenrepro.ops.mla import torch_cache

    for batch, heads, length, queries in DECODE:
        q, cache, indices = latent(batch, heads, length, queries)
        stored = torch_cache.quantise(cache) if fp8 else cache
        calls: dict[str, Callable[[], Any]] = {}
        conditions = {"phase": "decode", "dtype": "bf16"} | ({"format": "fp8_e4m3"} if fp8 else {})
        found = rows(MLA, device, conditions)
        for name, entry in found.items():
            if entry.algorithm == "absorbed":
                continue  # the plain one stores its scores
            calls[name] = functools.partial(entry.load(), q, stored, **indices)
        if not fp8:
            calls |= planned(q, cache, indices, found)
        print(
            f"decode {batch} × {queries} over {length}, {heads} heads, "
            f"{'FP8' if fp8 else 'bf16'}, µs: "
            f"{ {name: round(us, 1) for name, us in in_turn(calls).items()} }",
            flush=True,
        )
        del q, cache, stored, calls
        torch.cuda.empty_cache()


def planned(q: Any, cache: Any, indices: dict[str, Any], found: Any) -> dict[str, Any]:
    """The libraries' calls with their scheduling computed before."""
    calls: dict[str, Callable[[], Any]] = {}
    batch, queries, heads, _ = q.shape
    scale = 192**-0.5
    length = indices["block_table"].shape[1] * 64
    if "torch.flash_mla" in found and torch_flash_mla._load() is None:
        operator = torch.ops._flashmla_C.dense_decode_fwd
        given = (q, cache[:, :, None], 512, indices["cache_seqlens"], indices["block_table"])
        _, _, plan, splits = operator(*given, scale, True, None, None, None)
        calls["flash_mla planned"] = lambda: operator(*given, scale, True, plan, splits, None)
    if "torch.fa3_package" in found:
        offsets = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * queries
        shared = {
            "seqused_k": indices["cache_seqlens"], "cu_seqlens_q": offsets,
            "max_seqlen_q": queries, "max_seqlen_k": length,
        }  # fmt: skip
        try:
            plan = fa3_library.scheduler_metadata(
                batch_size=batch, num_heads=heads, num_heads_k=1, headdim=64, headdim_v=512,
                qkv_dtype=q.dtype, page_size=64, max_seqlen_k_new=0, is_causal=True,
                has_softcap=False, **shared,
            )  # fmt: skip
        except UnsupportedError as error:
            print(f"    fa3_package planned: {error}")
            return calls
        flat = q.flatten(0, 1)
        calls["fa3_package planned"] = lambda: fa3_library.forward(
            flat[..., 512:], cache[:, :, None, 512:], cache[:, :, None, :512],
            q_v=flat[..., :512], page_table=indices["block_table"], scale=scale, causal=True,
            scheduler_metadata=plan, **shared,
        )  # fmt: skip
    return calls


def main(parts: list[str]) -> None:
    started = time.monotonic()
    if not torch.cuda.is_available():
        print("no CUDA GPU here")
        return
    device = hardware.probe("torch", "cuda:0")
    torch.manual_seed(0)
    wanted = parts or ["prefill", "decode", "fp8"]
    steps: list[Callable[[], None]] = []
    if "decode" in wanted:
        steps.append(lambda: time_decode(device, fp8=False))
    if "prefill" in wanted:
        steps.append(lambda: time_prefill(device))
    if "fp8" in wanted:
        steps += [lambda: time_decode(device, fp8=True)]
        steps += [lambda: time_prefill(device, ("fp8_e4m3",))]
    for step in steps:
        if time.monotonic() - started > MOST_SECONDS:
            print("out of time: the rest is not measured")
            break
        step()
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
