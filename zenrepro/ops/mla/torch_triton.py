"""Absorbed latent attention over a paged cache by our Triton kernel: any CUDA card from sm_80."""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from zenrepro.ops import device_code
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, LATENT, PAGE, SCALES

LOG2_E = math.log2(math.e)


class Configuration(NamedTuple):
    """How the kernel is cut: query rows and keys a tile, warps, stages of the loads
    (2 with ``mma`` is one buffer, 2 with ``wgmma`` is two), programs that share a
    multiprocessor, how many tiles before its use the L2 is asked for one (0: never)."""

    rows: int
    keys: int
    warps: int
    stages: int
    programs: int
    ahead: int = 0


class Schedule(NamedTuple):
    """How a batch's tiles are dealt out: ``programs`` for each tile of rows, runs of ``least``
    tiles or more."""

    programs: int
    least: int


Table = dict[bool, tuple[tuple[int, Configuration], ...]]

# By compute capability, then whether the cache is FP8: (most query rows of a sequence, how to cut),
# smallest first; the last serves all. HOPPER was timed on an H200 (tests/device/tune_mla_triton.py,
# docs/decisions/mla-triton.md). The others were chosen by what the compiler answers, not by
# measurement:
# - shared memory of a block (163 KB on sm_80 and sm_87, 99 KB on sm_86, sm_89 and sm_120, 227 KB on
#   sm_90), 64 K registers a multiprocessor, next to no spills inside the loop;
# - loads that go on while a tile is computed: by a second program, or by a second buffer;
# - few warps, since with ``mma`` each reads all of the queries from shared memory for every tile.
AMPERE: Table = {
    False: (
        (16, Configuration(16, 32, 4, 2, 2)),
        (0, Configuration(32, 32, 4, 2, 2)),
    ),
    True: ((16, Configuration(16, 32, 4, 2, 2)), (0, Configuration(32, 32, 4, 2, 2))),
}
SMALL_SHARED: Table = {
    False: (
        (16, Configuration(16, 32, 8, 3, 1)),
        (0, Configuration(32, 32, 8, 2, 1)),
    ),
    True: ((16, Configuration(16, 32, 4, 2, 2)), (0, Configuration(32, 32, 8, 3, 1))),
}
HOPPER: Table = {
    False: (
        (16, Configuration(16, 64, 4, 2, 2)),
        (32, Configuration(32, 64, 4, 2, 2, 1)),
        (0, Configuration(64, 64, 8, 2, 1, 1)),
    ),
    True: (
        (16, Configuration(16, 32, 4, 2, 2, 1)),
        (32, Configuration(32, 64, 4, 2, 2, 1)),
        (0, Configuration(64, 64, 8, 2, 1, 2)),
    ),
}
# Where the whole batch has no more than two tiles of 16 rows and 64 keys for a multiprocessor:
# small tiles, so that more of them have one (19.6 in place of 26.7 µs at 1 x 24 heads x 4096).
FEW: dict[tuple[int, int], dict[bool, Configuration]] = {
    (9, 0): {False: Configuration(16, 64, 8, 2, 1), True: Configuration(16, 32, 4, 2, 2, 1)}
}
CONFIGURATIONS: dict[tuple[int, int], Table] = {
    (8, 0): AMPERE, (8, 6): SMALL_SHARED, (8, 7): AMPERE, (8, 9): SMALL_SHARED, (9, 0): HOPPER,
    (10, 0): AMPERE, (10, 3): AMPERE, (12, 0): SMALL_SHARED, (12, 1): SMALL_SHARED,
}  # fmt: skip
EXPANDED_ROWS = 64  # a tile from which on FP8 is expanded in shared memory, not in registers
LEAST_TILES = 2  # of a program's run: below, its part costs as much as its tiles
INTERPRETER_MULTIPROCESSORS = 4  # a small machine, so that small sequences are cut too


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """q [B, T, H, 576], cache [P, 64, 576] or uint8 [P, 64, 656], block_table int32 [B, pages],
    cache_seqlens int32 [B] -> [B, T, H, 512] in q's dtype; causal over the T tokens.

    bf16 or fp16 (bf16 with an FP8 cache), products and sums in fp32, bit-identical run to run.
    Rows that see no key give zeros. Raises ValueError for arguments that do not fit.
    """
    shape = check(q, cache, block_table, cache_seqlens, scale)
    with on(q.device):
        return launch(
            q, cache, block_table, cache_seqlens, shape.scale, *chosen(shape, *machine(q.device))
        )


def chosen(
    shape: arguments.Decode, capability: tuple[int, int], multiprocessors: int
) -> tuple[Configuration, Schedule]:
    """How to cut a call, and how to deal its tiles out."""
    rows = shape.query_len * shape.heads
    few = shape.batch * shape.width * -(-rows // 16) <= 2 * multiprocessors
    cut = configuration(capability, rows, shape.fp8, few)
    return cut, schedule(cut, shape, multiprocessors)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float | None,
) -> arguments.Decode:
    """The op's checks, and what this kernel wants besides. Raises ValueError."""
    shape = arguments.check_decode(
        q,
        cache,
        block_table=block_table,
        cache_seqlens=cache_seqlens,
        scale=scale,
        framework="torch",
    )
    wanted = (torch.bfloat16,) if shape.fp8 else (torch.bfloat16, torch.float16)
    if q.dtype not in wanted:
        words = "bfloat16 with an FP8 cache" if shape.fp8 else "bfloat16 or float16"
        raise ValueError(f"q: wants {words}, got {q.dtype}")
    for name, array in (("q", q), ("cache", cache), ("block_table", block_table)):
        if array.stride(-1) != 1:
            raise ValueError(
                f"{name}: wants its last dimension without gaps, got strides {array.stride()}"
            )
    if shape.fp8 and (cache.stride(0) % 16 or cache.stride(1) % 16 or cache.data_ptr() % 16):
        raise ValueError(
            f"cache: wants rows of FP8 that start on 16 bytes, got strides {cache.stride()}"
        )
    if not q.is_cuda and not interpreted():
        raise ValueError(f"q: wants a CUDA tensor, got one on {q.device}")
    return shape


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU (TRITON_INTERPRET=1)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def machine(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability and multiprocessors; a small Ampere card where kernels are interpreted."""
    if device.type != "cuda":
        return (8, 0), INTERPRETER_MULTIPROCESSORS
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def configuration(
    capability: tuple[int, int], rows: int, fp8: bool, few: bool = False
) -> Configuration:
    """How to cut ``rows`` query rows of a sequence (T x H); ``few``: tiles, see FEW. A card that
    the table does not name gets what needs least shared memory."""
    if few and capability in FEW:
        return FEW[capability][fp8]
    table = CONFIGURATIONS.get(capability, SMALL_SHARED)[fp8]
    return next((cut for most, cut in table if rows <= most), table[-1][1])


def schedule(cut: Configuration, shape: arguments.Decode, multiprocessors: int) -> Schedule:
    """As many programs as run at a time, fewer where the tables' width leaves them no run. The
    runs themselves follow from the lengths, on the device."""
    tiles = shape.batch * -(-shape.width * PAGE // cut.keys)
    row_tiles = -(-shape.query_len * shape.heads // cut.rows)
    slots = max(1, multiprocessors * cut.programs // row_tiles)
    return Schedule(min(slots, -(-tiles // LEAST_TILES)), LEAST_TILES)


def launch(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float,
    cut: Configuration,
    plan: Schedule,
) -> torch.Tensor:
    """Both kernels on checked arguments."""
    out, parts, lse = attend(q, cache, block_table, cache_seqlens, scale, cut, plan)
    combine(parts, lse, cache_seqlens, out, block_table.shape[1], cut, plan)
    return out


def attend(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float,
    cut: Configuration,
    plan: Schedule,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first kernel: out [B, T, H, 512], written where one program walked a sequence alone;
    fp32 parts [slots, T x H, 512] of the others and lse [slots, T x H], base 2."""
    kernels = device_code.triton_module("mla_decode")
    batch, tokens, heads, _ = q.shape
    rows = tokens * heads
    out = q.new_empty(batch, tokens, heads, LATENT)
    slots = plan.programs + batch - 1
    parts = q.new_empty(slots, rows, LATENT, dtype=torch.float32)
    lse = q.new_empty(slots, rows, dtype=torch.float32)
    grid = (-(-rows // cut.rows), plan.programs)
    sizes = (
        block_table.stride(0), LATENT, batch, block_table.shape[1], cache.shape[0], tokens, heads,
        plan.least, scale * LOG2_E,
    )  # fmt: skip
    constants = {
        "ROWS": cut.rows, "KEYS": cut.keys, "STAGES": cut.stages, "BATCH": room(batch),
        "AHEAD": 0 if interpreted() else cut.ahead, "INTERPRETED": interpreted(),
        "num_warps": cut.warps,
    }  # fmt: skip
    results = (block_table, cache_seqlens, out, parts, lse)
    fp8 = cache.dtype == torch.uint8
    latent, rotary, scales = pieces(cache) if fp8 else (cache, cache, lse)  # the latter unread
    unit = 16 if fp8 else 1
    strides = (*q.stride()[:3], cache.stride(0) // unit, cache.stride(1) // unit)
    if fp8 and cut.rows < EXPANDED_ROWS:
        kernels.decode_fp8[grid](
            q, latent, rotary, scales, *results, *strides, *sizes, **constants,
            PACKED=not interpreted(),
        )  # fmt: skip
    else:
        kernels.decode[grid](
            q, latent, rotary, scales, *results, *strides, *sizes, **constants,
            EXPAND=fp8,
        )  # fmt: skip
    return out, parts, lse


def pieces(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of an FP8 cache: pairs of latent numbers, rotary part, scales."""
    latent, scales = cache[:, :, :LATENT], cache[:, :, LATENT : LATENT + 4 * SCALES]
    rotary = cache[:, :, LATENT + 4 * SCALES : FP8_ROW_BYTES]
    return latent.view(torch.uint16), rotary.view(torch.bfloat16), scales.view(torch.float32)


def combine(
    parts: torch.Tensor,
    lse: torch.Tensor,
    cache_seqlens: torch.Tensor,
    out: torch.Tensor,
    pages: int,
    cut: Configuration,
    plan: Schedule,
) -> None:
    """Parts and lse of ``attend`` -> the sequences of ``out`` that it did not write."""
    kernels = device_code.triton_module("mla_decode")
    batch, tokens, heads, _ = out.shape
    rows = tokens * heads
    # Few rows: more programs for each, so that every multiprocessor has one.
    columns, multiprocessors = LATENT, machine(out.device)[1]
    while columns > 32 and batch * rows * LATENT // columns < multiprocessors:
        columns //= 2
    kernels.combine[(rows, batch, LATENT // columns)](
        parts, lse, cache_seqlens, out, LATENT, batch, rows, pages, plan.programs, plan.least,
        KEYS=cut.keys, BATCH=room(batch), CHUNK=2048 // columns, COLUMNS=columns,
        INTERPRETED=interpreted(), num_warps=4,
    )  # fmt: skip


def room(batch: int) -> int:
    """A power of two that holds all sequences; one of few, since each is compiled for."""
    size = 16
    while size < batch:
        size *= 8
    return size
