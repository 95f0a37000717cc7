"""Runs the latent attention kernels in Triton's interpreter, or compiles them; answers in JSON.

    python mla_triton_driver.py '[{...}, ...]'

A process of its own: whether Triton interprets is decided when it is imported. A line of standard
output for each request, as ``WORK`` below has them.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

REQUESTS = json.loads(sys.argv[1]) if __name__ == "__main__" else []
if any(request["work"] != "compile" for request in REQUESTS):
    os.environ["TRITON_INTERPRET"] = "1"
warnings.filterwarnings("ignore", category=RuntimeWarning)  # numpy: log2(0), inf - inf, masked

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from zenrepro import backends  # noqa: E402
from zenrepro.ops import device_code  # noqa: E402
from zenrepro.ops.gate import relative_error  # noqa: E402
from zenrepro.ops.mla import TABLE, reference, torch_fused, torch_triton  # noqa: E402
from zenrepro.ops.mla import cache as cache_format  # noqa: E402
from zenrepro.ops.mla.cases import CASES, CONTRACT, bound  # noqa: E402
from zenrepro.ops.mla.problem import Problem  # noqa: E402
from zenrepro.ops.mla.sizes import NOPE, PAGE, QUERY, ROW, SCALE, VALUE  # noqa: E402

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def contract(case: str, dtype: str) -> dict[str, Any]:
    """A case of the op's contract through the table's row and the op's own gate."""
    found = next(c for c in (*CASES["smoke"], *CONTRACT) if c.name == case)
    row = "torch.fused" if found.phase == "prefill" else "torch.triton"
    problem = Problem(backends.open("torch", "cpu"), found, dtype, 0)
    verdict = problem.judge(problem.call(next(e for e in TABLE if e.name == row)))
    return {"passed": verdict.passed, "reason": verdict.reason, "error": verdict.error}


def decode(
    lengths: list[int],
    heads: int,
    *,
    queries: int = 1,
    dtype: str = "fp16",
    fp8: bool = False,
    cut: list[Any] | None = None,
    programs: int | None = None,
    magnitude: float = 1.0,
    projected: bool = False,
    twice: bool = False,
) -> dict[str, Any]:
    """Decode with every byte that is no sequence's own poisoned: spare pages, the rest of the last
    page, table entries past the end. ``cut`` and ``programs`` replace the table's choice."""
    rng = np.random.default_rng(sum(lengths) + heads)
    kind = TYPES[dtype]
    batch, width = len(lengths), max(1, *(-(-length // PAGE) for length in lengths))
    pages = sum(-(-length // PAGE) for length in lengths) + 2
    order = iter(rng.permutation(pages))
    table = np.full((batch, width), -7, np.int32)
    pool = np.full((pages, PAGE, ROW), np.nan, np.float32)
    for b, length in enumerate(lengths):
        for s in range(length):
            if s % PAGE == 0:
                table[b, s // PAGE] = next(order)
            pool[table[b, s // PAGE], s % PAGE] = rng.standard_normal(ROW) * magnitude
    if fp8:
        stored: Any = cache_format.quantise(pool)  # NaN stays NaN: in codes, scales, rotary part
        cache = torch.from_numpy(stored)
    else:
        cache = torch.from_numpy(pool).to(kind)
        stored = cache.float().numpy()
    indices = {"block_table": table, "cache_seqlens": np.array(lengths, np.int32)}
    given = {name: torch.from_numpy(array) for name, array in indices.items()}
    wide = QUERY if projected else ROW
    q = torch.from_numpy(rng.standard_normal((batch, queries, heads, wide))).to(kind)
    host = q.float().numpy()
    if projected:
        w_uk, w_uv = (
            torch.from_numpy(rng.standard_normal((heads, rows, 512)) * 512**-0.5).to(kind)
            for rows in (NOPE, VALUE)
        )
        run: Callable[[], torch.Tensor] = lambda: torch_fused.decode_projected(  # noqa: E731
            q, cache, w_uk, w_uv, **given
        )
        up, down = w_uk.float().numpy(), w_uv.float().numpy()
        absorbed = reference.absorb(host, up)
        wide_cache = stored if fp8 else stored.astype(np.float64)
        wanted = reference.expand(reference.decode(absorbed, wide_cache, **indices), down)
        rounded = _rounded(absorbed, dtype)
        plain = reference.same_precision_decode(rounded, stored, **indices, dtype=dtype)
        plain = _rounded(reference.expand(plain, down), dtype)
    else:
        shape = torch_triton.check(q, cache, scale=None, **given)
        chosen = torch_triton.configuration((8, 0), queries * heads, fp8)
        if cut is not None:
            chosen = torch_triton.Configuration(*cut)
        plan = torch_triton.schedule(chosen, shape, torch_triton.INTERPRETER_MULTIPROCESSORS)
        if programs is not None:
            plan = torch_triton.Schedule(programs, 1)
        run = lambda: torch_triton.launch(  # noqa: E731
            q, cache, given["block_table"], given["cache_seqlens"], SCALE, chosen, plan
        )
        wanted = reference.decode(host, stored, **indices)
        plain = reference.same_precision_decode(host, stored, **indices, dtype=dtype)
    with poisoned_memory():
        out = run()
        repeats = torch.equal(out, run()) if twice else None
    unseen = [
        bool((out[b, t] == 0).all())
        for b, length in enumerate(lengths)
        for t in range(queries)
        if length - queries + t + 1 < 1
    ]
    return {
        **measured(out, wanted, plain, dtype),
        "repeats": repeats,
        "zeros": all(unseen),
    }


def clamped(table: list[list[int]], lengths: list[int]) -> dict[str, Any]:
    """Pages and lengths that the host could not check (a graph is captured): a pool between NaN is
    never left. Here the kernels run without the checks."""
    around = torch.full((6, PAGE, ROW), float("nan"), dtype=torch.float16)
    pool = around[2:4].normal_()
    out = torch_triton.launch(
        torch.randn(len(lengths), 2, 3, ROW).half(), pool,
        torch.tensor(table, dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32), SCALE,
        torch_triton.Configuration(16, 32, 4, 2, 1), torch_triton.Schedule(3, 1),
    )  # fmt: skip
    return {"passed": bool(torch.isfinite(out).all())}


def prefill(
    batch: int, queries: int, length: int, heads: int, *, causal: bool, dtype: str = "fp16"
) -> dict[str, Any]:
    """The tile loop's projection against both forms, with strided arguments."""
    rng = np.random.default_rng(queries + length)
    kind = TYPES[dtype]

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        wide = torch.from_numpy(rng.standard_normal((*shape[:-1], shape[-1] + 8)) * scale)
        return wide.to(kind)[..., : shape[-1]]

    q, latent = drawn(batch, queries, heads, QUERY), drawn(batch, length, ROW)
    w_uk, w_uv = (drawn(heads, rows, 512, scale=512**-0.5) for rows in (NOPE, VALUE))
    given = [x.float().numpy() for x in (q, latent, w_uk, w_uv)]
    wanted = reference.prefill(*given, causal=causal)
    plain = reference.same_precision_prefill(*given, causal=causal, dtype=dtype)
    with poisoned_memory():
        out = torch_fused.prefill(q, latent, w_uk, w_uv, causal=causal)
    return measured(out, wanted, plain, dtype)


def measured(out: torch.Tensor, wanted: Any, plain: Any, dtype: str) -> dict[str, Any]:
    error = relative_error(out.float().numpy(), wanted)
    limit = bound(dtype, relative_error(plain, wanted))
    return {"passed": bool(error <= limit), "error": error, "bound": limit}


def _rounded(array: Any, dtype: str) -> np.ndarray:
    return torch.from_numpy(np.asarray(array, np.float64)).to(TYPES[dtype]).float().numpy()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every tensor that is allocated without values starts as NaN."""
    empty = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *shape: Any, **options: Any) -> torch.Tensor:
        made = empty(self, *shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with mock.patch.object(torch.Tensor, "new_empty", poisoned):
        yield


def defect(kernel: str, old: str, new: str, run: dict[str, Any]) -> dict[str, Any]:
    """A request with ``old`` replaced by ``new`` in the kernel's source, where it stands once."""
    text = device_code.path(f"triton/{kernel}.py").read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{kernel}: {old!r} stands {text.count(old)} times")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{kernel}_with_defect.py"
        file.write_text(text.replace(old, new))
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        load = device_code.triton_module
        with mock.patch.object(
            device_code, "triton_module", lambda name: module if name == kernel else load(name)
        ):
            return WORK[run.pop("work")](**run)


kernels = device_code.triton_module("mla_decode")
pairs_of, schedule = device_code.triton_module("e4m3").e4m3_pairs, kernels.schedule
sequences, share = kernels.sequences, kernels.share


@triton.jit
def _take_apart(words, low, high, COUNT: tl.constexpr, PACKED: tl.constexpr):
    index = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    lower, upper = pairs_of(tl.load(words + index), PACKED)
    tl.store(low + index, lower)
    tl.store(high + index, upper)


@triton.jit
def _deal(seqlens, walked, run_length, batch, programs, KEYS: tl.constexpr, BATCH: tl.constexpr):
    program = tl.program_id(0)
    each, tiles, starts, ends, run = schedule(seqlens, batch, 100, programs, 1, KEYS, BATCH)
    tl.store(run_length, run)
    begin, end = sequences(ends, run, program)
    for sequence in tl.range(begin, end):
        first, last, _ = share(each, tiles, starts, run, program, sequence)
        place = walked + (program * batch + sequence) * 2
        tl.store(place, first)
        tl.store(place + 1, last)


def dealt(lengths: list[int], programs: int, keys: int = 32) -> dict[str, Any]:
    """Which tiles each program walks: every one once, in order, no program more than a run."""
    batch = len(lengths)
    walked = torch.zeros(programs, batch, 2, dtype=torch.int32)
    run = torch.zeros(1, dtype=torch.int32)
    _deal[(programs,)](
        torch.tensor(lengths, dtype=torch.int32), walked, run, batch, programs,
        KEYS=keys, BATCH=torch_triton.room(batch),
    )  # fmt: skip
    pieces: list[list[int]] = [[] for _ in lengths]
    slots, loads = [], [0] * programs
    for program in range(programs):
        for sequence in range(batch):
            first, last = walked[program, sequence].tolist()
            if last > first:
                pieces[sequence] += range(first, last)
                slots.append(program + sequence)
                loads[program] += last - first
    whole = [list(range(-(-length // keys))) for length in lengths]
    right = pieces == whole and len(set(slots)) == len(slots) and max(loads) <= int(run)
    fair = max(-(-sum(map(len, whole)) // programs), 1)
    return {"passed": right and int(run) <= fair + fair // 8 + 1, "loads": loads}


def codes(device: str = "cpu", packed: bool = False) -> dict[str, Any]:
    """All 65536 pairs of e4m3 codes through the kernel's conversion; NaN codes aside."""
    words = np.arange(2**16, dtype=np.uint16)
    results = [torch.empty(2**16, dtype=torch.bfloat16, device=device) for _ in range(2)]
    _take_apart[(32,)](torch.from_numpy(words).to(device), *results, COUNT=2**11, PACKED=packed)
    wrong = 0
    for part, result in zip((words & 0xFF, words >> 8), results, strict=True):
        right = cache_format.decode(part.astype(np.uint8))
        known = np.isfinite(right)
        wrong += int((result.float().cpu().numpy()[known] != right[known]).sum())
    return {"passed": wrong == 0, "wrong": wrong}


# Compiling ---------------------------------------------------------------------------------------

POINTERS = {
    "block_table": "*i32", "seqlens": "*i32", "parts": "*fp32", "lse": "*fp32", "scales": "*fp32",
}  # fmt: skip
UNALIGNED = ("row_16", "tokens", "heads", "batch", "pages", "page_limit", "least", "table_batch",
             "queries", "length", "rows", "programs")  # fmt: skip


def compiled(capability: int, kernel: str, cut: list[Any], fp8: bool = False) -> dict[str, Any]:
    """Resources of a kernel as the table's configuration launches it, and what its inner loop
    holds: numbers of machine instructions by name."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if kernel == "mla_prefill":
        function = device_code.triton_module(kernel).prefill
        chosen: Any = torch_fused.Configuration(*cut)
        constants: dict[str, Any] = {"CHUNK": chosen.chunk, "CAUSAL": True}
    else:
        module = device_code.triton_module(kernel)
        chosen = torch_triton.Configuration(*cut)
        by_pairs = fp8 and chosen.rows < torch_triton.EXPANDED_ROWS
        function = module.decode_fp8 if by_pairs else module.decode
        constants = {"BATCH": 128, "AHEAD": chosen.ahead} | (
            {"PACKED": True} if by_pairs else {"EXPAND": fp8}
        )
    constants |= {
        "ROWS": chosen.rows, "KEYS": chosen.keys, "STAGES": chosen.stages, "INTERPRETED": False,
    }  # fmt: skip
    signature, aligned = {}, {}
    arrays = ("q", "cache", "rotary", "latent", "w_uk", "w_uv", "out")
    for i, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        plain = "*u16" if fp8 and name == "cache" else "*bf16"
        signature[name] = plain if name in arrays else POINTERS.get(name, "i32")
        if name == "scale_log2":
            signature[name] = "fp32"
        elif name not in UNALIGNED and not (fp8 and name == "cache_row"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    options = {"num_warps": chosen.warps}
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    listing = disassembled(built.asm["cubin"])
    return {
        "shared_bytes": built.metadata.shared,
        "registers": registers(built.asm["cubin"]),
        "loop": inner_loop(listing),
    }


def tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def run_on(cubin: bytes, *command: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [*command, file.name], capture_output=True, text=True, check=True
        ).stdout


def disassembled(cubin: bytes) -> str:
    return run_on(cubin, tool("nvdisasm"), "-c")


def registers(cubin: bytes) -> int:
    found = re.search(r"REG:(\d+)", run_on(cubin, tool("cuobjdump"), "-res-usage"))
    assert found is not None
    return int(found[1])


def inner_loop(listing: str) -> dict[str, int]:
    """Instructions of the innermost loop that holds matrix products, by name."""
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif step := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z]\w*)(.*)", line):
            code.append((step[1], step[2]))
    loops = []
    for i, (name, rest) in enumerate(code):
        target = re.search(r"(\.L_\w+)", rest) if name == "BRA" else None
        if target and labels.get(target[1], i) < i:
            body = [name for name, _ in code[labels[target[1]] : i + 1]]
            if {"HMMA", "HGMMA"} & set(body):
                loops.append(body)
    return dict(collections.Counter(min(loops, key=len))) if loops else {}


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "contract": contract, "decode": decode, "prefill": prefill, "defect": defect, "codes": codes,
    "dealt": dealt,
    "clamped": clamped,
    "compile": compiled,
}  # fmt: skip

if __name__ == "__main__":
    for request in REQUESTS:
        print(json.dumps(WORK[request.pop("work")](**request)), flush=True)
