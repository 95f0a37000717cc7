"""How to cut latent decode in Triton: every candidate over the rows that it is held against.

    python tests/device/tune_mla_triton.py [SECONDS] [bf16 | fp8 | forms]

First compiles all candidates in processes of their own (a compilation takes seconds of a CPU, a
timing milliseconds), then checks and times them: CUDA graphs, the L2 emptied before each, median.
Prints a line a shape, the fastest first, and the configuration table's own choice marked ``*``.
``forms``: the three forms of the projection at prefill and decode lengths, and the projections at
the ends of decode against torch.bmm around it. Stops after SECONDS (default 40).
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from zenrepro.ops.mla import forms, torch_fused, torch_triton
from zenrepro.ops.mla.sizes import LATENT, NOPE, PAGE, QUERY, ROW, SCALE, VALUE

Cut = torch_triton.Configuration
BUILDERS, SAMPLES = 16, 12
# batch, heads, cache length
SHAPES = (
    (128, 16, 4096), (128, 24, 4096), (32, 24, 4096), (64, 40, 4096), (64, 64, 4096),
    (64, 64, 16384), (64, 128, 4096), (8, 16, 32768), (1, 16, 131072),
    (1, 24, 4096), (4, 24, 4096), (8, 24, 4096), (1, 64, 4096), (2, 64, 4096), (4, 64, 4096),
    (8, 64, 4096), (1, 128, 4096), (4, 128, 4096), (1, 128, 32768),
)  # fmt: skip
HOPPER = {
    False: (
        Cut(16, 64, 4, 2, 2), Cut(16, 64, 4, 2, 2, 1), Cut(16, 64, 8, 2, 1),
        Cut(16, 32, 4, 3, 2, 1), Cut(32, 64, 4, 2, 2), Cut(32, 64, 4, 2, 2, 1),
        Cut(32, 64, 8, 2, 1, 1), Cut(64, 64, 8, 2, 1, 1), Cut(64, 64, 8, 2, 1, 2),
    ),
    True: (
        Cut(16, 64, 4, 2, 2), Cut(16, 32, 4, 2, 2, 1), Cut(16, 32, 4, 2, 2, 2),
        Cut(32, 64, 4, 2, 2, 1), Cut(64, 64, 8, 2, 1, 1), Cut(64, 64, 8, 2, 1, 2),
    ),
}  # fmt: skip
AMPERE = {
    False: (
        Cut(16, 32, 8, 4, 1), Cut(16, 32, 4, 2, 2), Cut(16, 64, 4, 2, 1),
        Cut(32, 32, 4, 2, 2), Cut(32, 32, 8, 3, 1), Cut(32, 32, 8, 2, 1),
    ),
    True: (
        Cut(16, 32, 4, 2, 2), Cut(16, 64, 4, 2, 2), Cut(32, 32, 8, 3, 1),
        Cut(32, 32, 4, 2, 2), Cut(32, 32, 8, 2, 1),
    ),
}  # fmt: skip


def candidates() -> list[tuple[bool, Cut]]:
    """(FP8, how to cut) of everything worth a try on this card."""
    known = HOPPER if torch.cuda.get_device_capability() == (9, 0) else AMPERE
    return [(fp8, cut) for fp8, cuts in known.items() for cut in cuts]


def of(rows: int, fp8: bool) -> list[Cut]:
    """Those for so many query rows: no tile more than half empty, no more than eight."""
    every = [cut for of_fp8, cut in candidates() if of_fp8 == fp8]
    return [cut for cut in every if rows > cut.rows // 2 and rows <= 8 * cut.rows]


def drawn(batch: int, heads: int, length: int, fp8: bool, pages: int | None = None) -> Any:
    """q, cache, table and lengths; ``pages`` shared by all sequences where a pool of their own
    would only cost time."""
    width = -(-length // PAGE)
    torch.manual_seed(0)
    count = pages or batch * width
    latent = torch.empty(count, PAGE, ROW, device="cuda", dtype=torch.bfloat16).normal_()
    cache = latent
    if fp8:
        cache = torch.empty(count, PAGE, 656, device="cuda", dtype=torch.uint8)
        for i in range(0, count, 1024):
            some = latent[i : i + 1024, :, :LATENT].float().unflatten(-1, (4, 128))
            scale = some.abs().amax(-1) / 448
            cache[i : i + 1024, :, :512] = (
                (some / scale[..., None]).to(torch.float8_e4m3fn).flatten(-2).view(torch.uint8)
            )
            cache[i : i + 1024, :, 512:528] = scale.contiguous().view(torch.uint8)
        cache[:, :, 528:] = latent[:, :, LATENT:].contiguous().view(torch.uint8)
    places = torch.randperm(count, device="cuda") if pages is None else None
    if places is None:
        places = torch.randint(0, count, (batch * width,), device="cuda")
    table = places[: batch * width].view(batch, width).int()
    q = torch.randn(batch, 1, heads, ROW, device="cuda").bfloat16()
    return q, cache, table, torch.full((batch,), length, dtype=torch.int32, device="cuda")


def right(q: Any, cache: Any, table: Any, b: int) -> Any:
    """fp32 output of one sequence."""
    rows = cache[table[b].long()].flatten(0, 1)
    if cache.dtype == torch.uint8:
        latent = rows[:, :512].contiguous().view(torch.float8_e4m3fn).float().unflatten(1, (4, 128))
        scale = rows[:, 512:528].contiguous().view(torch.float32)
        rotary = rows[:, 528:].contiguous().view(torch.bfloat16).float()
        rows = torch.cat(((latent * scale[..., None]).flatten(1), rotary), 1)
    rows = rows.float()
    return (q[b, 0].float() @ rows.T * SCALE).softmax(-1) @ rows[:, :LATENT]


def timed(call: Callable[[], Any], flush: torch.Tensor) -> float:
    """Median microseconds of a captured call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(SAMPLES)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    del held
    return statistics.median(begin.elapsed_time(end) for begin, end in events) * 1e3


def build(part: int) -> None:
    """Compile a part of all (shape, cut) pairs; the cache on disk hands them to the timing."""
    done, turn = set(), 0
    for fp8 in (False, True):
        for batch, heads, length in SHAPES:
            for cut in of(heads, fp8):
                key = (fp8, torch_triton.room(batch), cut)
                if key in done:
                    continue
                done.add(key)
                turn += 1
                if turn % BUILDERS == part:
                    run(drawn(batch, heads, length, fp8, pages=64), cut)
    torch.cuda.synchronize()


def described(q: torch.Tensor, cache: torch.Tensor, table: torch.Tensor) -> Any:
    return torch_triton.arguments.Decode(
        q.shape[0], 1, q.shape[2], cache.shape[0], table.shape[1], cache.dtype == torch.uint8, SCALE
    )


def run(given: Any, cut: Cut) -> Any:
    q, cache, table, lengths = given
    multiprocessors = torch_triton.machine(q.device)[1]
    plan = torch_triton.schedule(cut, described(q, cache, table), multiprocessors)
    return torch_triton.launch(q, cache, table, lengths, SCALE, cut, plan)


def tune(fp8: bool, until: float) -> None:
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for shape in SHAPES:
        if time.monotonic() > until:
            print(f"out of time before {shape}")
            return
        compare(*shape, fp8, flush)
        torch.cuda.empty_cache()


def compare(batch: int, heads: int, length: int, fp8: bool, flush: torch.Tensor) -> None:
    """A line: every candidate's microseconds on one shape, checked."""
    given = drawn(batch, heads, length, fp8)
    wanted = right(*given[:3], batch - 1)
    shape = described(*given[:3])
    chosen, _ = torch_triton.chosen(shape, *torch_triton.machine(given[0].device))
    found = []
    for cut in of(heads, fp8):
        call = functools.partial(run, given, cut)
        try:
            out = call()[batch - 1, 0].float()
            wrong = float((out - wanted).norm() / wanted.norm())
            found.append((timed(call, flush), cut, wrong))
        except Exception as error:  # noqa: BLE001  (one that cannot run must not stop the rest)
            print(f"    {tuple(cut)}: {type(error).__name__}: {str(error)[:120]}")
    least = batch * length * (656 if fp8 else 1152) / 4.3e6
    words = [
        f"{us:.1f}{'*' if cut == chosen else ''} {','.join(map(str, cut))}"
        + (f" WRONG {wrong:.0e}" if wrong > 6e-3 else "")
        for us, cut, wrong in sorted(found, key=lambda x: x[0])
    ]
    kind = "fp8" if fp8 else "bf16"
    print(f"{kind} B{batch} H{heads} S{length}, bytes allow {least:.0f} us: {' | '.join(words)}")
    sys.stdout.flush()


# (batch, queries, cache length, heads) of the ablation.
FORMS = (
    (4, 4096, 4096, 32), (8, 1, 4096, 24), (8, 64, 4096, 24), (8, 128, 4096, 24),
    (8, 256, 4096, 24), (8, 1024, 4096, 24), (32, 1, 4096, 24),
)  # fmt: skip


def time_forms(until: float) -> None:
    """Milliseconds of each form, beside what counting allows at 690 TFLOP/s and 4.3 TB/s."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for sizes in FORMS:
        if time.monotonic() > until:
            print(f"out of time before {sizes}")
            return
        shape = forms.Shape(*sizes)
        calls = form_calls(shape)
        found = {name: f"{timed(call, flush) / 1e3:.3f}" for name, call in calls.items()}
        least = {
            form: f"{forms.seconds(form, shape, 690e12, 4.3e12) * 1e3:.3f}" for form in forms.FORMS
        }
        print(f"{shape}: ms {found}; counted {least}", flush=True)
        del calls
        torch.cuda.empty_cache()


def form_calls(shape: forms.Shape) -> dict[str, Callable[[], Any]]:
    """What can run of the forms. Decompressed attention is torch's, which has the mask only where
    all tokens are queries, or one is."""
    batch, queries, length, heads, _ = shape
    q = torch.randn(batch, queries, heads, QUERY, device="cuda").bfloat16()
    latent = torch.randn(batch, length, ROW, device="cuda").bfloat16()
    w_uk, w_uv = (
        (torch.randn(heads, rows, LATENT, device="cuda") * LATENT**-0.5).bfloat16()
        for rows in (NOPE, VALUE)
    )
    cache = latent.view(-1, PAGE, ROW)
    table = torch.arange(len(cache), device="cuda", dtype=torch.int32).view(batch, -1)
    given = {
        "block_table": table,
        "cache_seqlens": torch.full((batch,), length, dtype=torch.int32, device="cuda"),
    }

    def decompressed() -> Any:
        nope = torch.einsum("bsc,hnc->bshn", latent[..., :LATENT], w_uk)
        rotary = latent[:, :, None, LATENT:].expand(-1, -1, heads, -1)
        keys = torch.cat((nope, rotary), -1).transpose(1, 2)
        values = torch.einsum("bsc,hvc->bshv", latent[..., :LATENT], w_uv).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, is_causal=queries == length
        )

    def absorbed_by_bmm() -> Any:
        nope = torch.einsum("bthn,hnc->bthc", q[..., :NOPE], w_uk)
        out = torch_triton.decode(torch.cat((nope, q[..., NOPE:]), -1), cache, **given)
        return torch.einsum("bthc,hvc->bthv", out, w_uv)

    calls: dict[str, Callable[[], Any]] = {
        "fused": lambda: torch_fused.prefill(q, latent, w_uk, w_uv, causal=True)
    }
    if queries in (1, length):
        calls["decompressed"] = decompressed
    if queries <= 8:
        calls["absorbed, bmm"] = absorbed_by_bmm
        calls["absorbed, at the ends"] = lambda: torch_fused.decode_projected(
            q, cache, w_uk, w_uv, **given
        )
    return calls


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["build"]:
        build(int(arguments[1]))
        return
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU here")
    seconds = float(arguments[0]) if arguments else 40.0
    until = time.monotonic() + seconds
    what = arguments[1:] or ["bf16", "fp8", "forms"]
    if {"bf16", "fp8"} & set(what):
        builders = [
            subprocess.Popen([sys.executable, __file__, "build", str(i)]) for i in range(BUILDERS)
        ]
        for builder in builders:
            builder.wait()
    for kind in ("bf16", "fp8"):
        if kind in what:
            tune(kind == "fp8", until)
    if "forms" in what:
        time_forms(until)


if __name__ == "__main__":
    main(sys.argv[1:])
