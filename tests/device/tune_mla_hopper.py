"""How latent decode on Hopper does, and which of its switches pay, against the installed peers.

    python tests/device/tune_mla_hopper.py [SECONDS] [bf16 | fp8] [NAME=VALUE,...]...

Each argument NAME=VALUE,... is a variant to build beside the shipped one (switches of the sources;
one that a source does not have changes nothing there). All variants are compiled in parallel
first; then each shape's are checked against fp32, and timed in turn with FlashMLA and
FlashAttention-3 (ZENREPRO_FLASHMLA_LIBRARY and ZENREPRO_FA3_LIBRARY name them): CUDA graphs,
median, the L2 emptied before each by writing one buffer and reading another (one that is only
written leaves lines which go back to memory during the call: some 5 us of it). A line a shape.
Stops after SECONDS (default 40).
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from zenrepro.ops import nvrtc
from zenrepro.ops.mla import torch_fa3_package, torch_flash_mla, torch_hopper
from zenrepro.ops.mla.sizes import LATENT, PAGE, ROW, SCALE

SAMPLES, ROUNDS = 15, 2
# batch, query tokens, heads, cache length; a length < 0 is the mean of lengths 10 to 190 % of it
SHAPES = (
    (128, 1, 16, 4096), (128, 1, 24, 4096), (64, 1, 64, 4096), (64, 1, 64, 16384),
    (64, 1, 128, 4096), (8, 1, 16, 32768), (1, 1, 16, 131072), (64, 1, 40, 4096),
    (32, 1, 24, 4096), (64, 4, 16, 4096), (128, 1, 16, -4096),
)  # fmt: skip
DEFAULT = {
    "bf16": ("FIRST=0", "LAZY=0", "LAZY=8"),
    "fp8": ("CODE_STAGES=2", "VALUE_SLOTS=4", "SIDE_LEAD=0", "WIDTH=64", "START_COST=6"),
}


def variants(names: list[str]) -> dict[str, nvrtc.Defines]:
    found: dict[str, nvrtc.Defines] = {"shipped": ()}
    for name in names:
        pairs = [pair.partition("=")[::2] for pair in name.split(",")]
        found[name] = tuple((key, int(value)) for key, value in pairs)
    return found


def drawn(batch: int, tokens: int, heads: int, length: int, fp8: bool) -> Any:
    torch.manual_seed(0)
    lengths = torch.full((batch,), abs(length), dtype=torch.int32)
    if length < 0:
        lengths = torch.linspace(0.1, 1.9, batch).mul(-length).int()[torch.randperm(batch)]
    width = -(-int(lengths.max()) // PAGE)
    pages = batch * width
    rows = torch.empty(pages, PAGE, ROW, device="cuda", dtype=torch.bfloat16).normal_()
    cache = rows
    if fp8:
        cache = torch.empty(pages, PAGE, 656, device="cuda", dtype=torch.uint8)
        for i in range(0, pages, 1024):
            some = rows[i : i + 1024, :, :LATENT].float().unflatten(-1, (4, 128))
            scales = some.abs().amax(-1) / 448
            codes = (some / scales[..., None]).to(torch.float8_e4m3fn).flatten(-2)
            cache[i : i + 1024, :, :512] = codes.view(torch.uint8)
            cache[i : i + 1024, :, 512:528] = scales.contiguous().view(torch.uint8)
        cache[:, :, 528:] = rows[:, :, LATENT:].contiguous().view(torch.uint8)
    table = torch.randperm(pages, device="cuda").view(batch, width).int()
    q = torch.randn(batch, tokens, heads, ROW, device="cuda").bfloat16()
    return q, cache, table, lengths.cuda(), rows


def right(q: Any, cache: Any, table: Any, lengths: Any, b: int) -> Any:
    """fp32 output of one sequence's last token."""
    length = int(lengths[b])
    rows = cache[table[b, : -(-length // PAGE)].long()].flatten(0, 1)[:length]
    if cache.dtype == torch.uint8:
        latent = rows[:, :512].contiguous().view(torch.float8_e4m3fn).float().unflatten(1, (4, 128))
        scale = rows[:, 512:528].contiguous().view(torch.float32)
        rotary = rows[:, 528:].contiguous().view(torch.bfloat16).float()
        rows = torch.cat(((latent * scale[..., None]).flatten(1), rotary), 1)
    rows = rows.float()
    return (q[b, -1].float() @ rows.T * SCALE).softmax(-1) @ rows[:, :LATENT]


def capture(call: Callable[[], Any]) -> Any:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = call()
    return graph, held


def timed(graph: Any, flush: torch.Tensor) -> float:
    """Median microseconds."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(SAMPLES)]
    for begin, end in events:
        flush[0].zero_()
        flush[1].amax()
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) * 1e3


def calls(given: Any, built: dict[str, nvrtc.Defines]) -> dict[str, Callable[[], Any]]:
    """Every variant, and the peers on the same values in bf16: FP8 is measured against those."""
    q, cache, table, lengths, rows = given
    workspace = torch_hopper.shared_workspace(q.device, 4096)
    out = torch.empty(*q.shape[:3], LATENT, device="cuda", dtype=torch.bfloat16)
    found: dict[str, Callable[[], Any]] = {}
    for name, defines in built.items():

        def ours(tuning: nvrtc.Defines = defines) -> Any:
            torch_hopper.launch(q, cache, table, lengths, SCALE, workspace, out, tuning)
            return out

        found[name] = ours
    peers = {
        "flash_mla": ("ZENREPRO_FLASHMLA_LIBRARY", torch_flash_mla.decode),
        "fa3": ("ZENREPRO_FA3_LIBRARY", torch_fa3_package.decode),
    }
    for name, (variable, decode) in peers.items():
        if os.environ.get(variable):
            given_too = {"block_table": table, "cache_seqlens": lengths, "scale": SCALE}
            found[name] = functools.partial(decode, q, rows, **given_too)
    return found


def compare(shape: tuple[int, int, int, int], fp8: bool, built: Any, flush: torch.Tensor) -> None:
    batch, tokens, heads, length = shape
    given = drawn(*shape, fp8)
    wanted = [right(*given[:4], b) for b in (0, batch - 1)]
    graphs, note = {}, {}
    for name, call in calls(given, built).items():
        try:
            out = call()
            bad = max(
                float((out[b, -1].float() - w).norm() / w.norm())
                for b, w in zip((0, batch - 1), wanted, strict=True)
            )
            # Peers read bf16 where ours read FP8: their outputs are of other values.
            note[name] = f" WRONG {bad:.0e}" if not bad < (0.1 if fp8 else 6e-3) else ""
            graphs[name] = capture(call)
        except Exception as error:  # noqa: BLE001  (one that cannot run must not stop the rest)
            print(f"    {name}: {type(error).__name__}: {str(error)[:120]}")
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, (graph, _) in graphs.items():
            times.setdefault(name, []).append(timed(graph, flush))
    total = int(given[3].sum())
    least = max(
        total * (656 if fp8 else 1152) / 4.3e6, total * tokens * heads * 2 * (ROW + LATENT) / 690e6
    )
    words = " | ".join(f"{name} {min(us):.1f}{note[name]}" for name, us in times.items())
    kind = "fp8" if fp8 else "bf16"
    print(
        f"{kind} B{batch} T{tokens} H{heads} S{length}, bound {least:.0f} us: {words}", flush=True
    )


def compile_all(built: dict[str, dict[str, nvrtc.Defines]]) -> None:
    wanted = {
        torch_hopper.build(rows, kind == "fp8", defines)
        for rows in (32, 64, 128)
        for kind, those in built.items()
        for defines in those.values()
    }
    begin = time.monotonic()
    with ThreadPoolExecutor() as pool:  # the compiler runs without the interpreter's lock
        list(pool.map(lambda b: nvrtc.compile(b.source, defines=b.defines), wanted))
    print(f"{len(wanted)} variants compiled in {time.monotonic() - begin:.0f} s", flush=True)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    words = sys.argv[1:]
    seconds = float(words.pop(0)) if words and words[0].replace(".", "").isdigit() else 40.0
    kinds = [word for word in words if word in ("bf16", "fp8")] or ["bf16", "fp8"]
    named = [word for word in words if "=" in word]
    built = {kind: variants(named or list(DEFAULT[kind])) for kind in kinds}
    compile_all(built)
    until = time.monotonic() + seconds
    flush = torch.zeros(2, 2**26, dtype=torch.int32, device="cuda")
    for kind in kinds:
        for shape in SHAPES:
            if time.monotonic() > until:
                print(f"out of time before {kind} {shape}")
                return
            compare(shape, kind == "fp8", built[kind], flush)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
