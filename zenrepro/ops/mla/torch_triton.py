"""Absorbed latent attention over a paged cache by our Triton kernel: any CUDA card from sm_80."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from zenrepro.ops import device_code
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, LATENT, PAGE

LOG2_E = math.log2(math.e)


class Configuration(NamedTuple):
    """How the kernel is cut: query rows and keys a tile, order of the products, warps, stages of
    loads in flight, and how many programs share a multiprocessor."""

    rows: int
    keys: int
    keys_first: bool
    warps: int
    stages: int
    programs: int


# By compute capability, then whether the cache is FP8: (most query rows of a sequence, how to cut),
# smallest first; the last serves all. What limits them: shared memory of a block (163 KB on sm_80
# and sm_87, 99 KB on sm_86, sm_89 and sm_120, 227 KB on sm_90) and 64 K registers.
SMALL_SHARED: dict[bool, tuple[tuple[int, Configuration], ...]] = {
    False: (
        (16, Configuration(16, 32, False, 8, 2, 1)),
        (0, Configuration(32, 32, False, 8, 2, 1)),
    ),
    True: ((16, Configuration(16, 32, False, 8, 2, 1)), (0, Configuration(32, 32, False, 8, 2, 1))),
}
AMPERE: dict[bool, tuple[tuple[int, Configuration], ...]] = {
    False: (
        (16, Configuration(16, 32, False, 4, 3, 1)),
        (0, Configuration(32, 32, False, 8, 3, 1)),
    ),
    True: ((16, Configuration(16, 32, False, 8, 3, 1)), (0, Configuration(32, 32, False, 8, 3, 1))),
}
HOPPER: dict[bool, tuple[tuple[int, Configuration], ...]] = {
    False: (
        (16, Configuration(16, 32, False, 4, 4, 1)),
        (0, Configuration(64, 64, False, 8, 2, 1)),
    ),
    True: ((16, Configuration(16, 32, False, 8, 3, 1)), (0, Configuration(32, 32, False, 8, 3, 1))),
}
CONFIGURATIONS: dict[tuple[int, int], dict[bool, tuple[tuple[int, Configuration], ...]]] = {
    (8, 0): AMPERE, (8, 6): SMALL_SHARED, (8, 7): AMPERE, (8, 9): SMALL_SHARED, (9, 0): HOPPER,
    (10, 0): AMPERE, (10, 3): AMPERE, (12, 0): SMALL_SHARED, (12, 1): SMALL_SHARED,
}  # fmt: skip
INTERPRETER_MULTIPROCESSORS = 4  # a small machine, so that small sequences are split too


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
    capability, multiprocessors = machine(q.device)
    cut = configuration(capability, shape.query_len * shape.heads, shape.fp8)
    count = splits(cut, shape, multiprocessors)
    return launch(q, cache, block_table, cache_seqlens, shape.scale, cut, count)


def check(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float | None,
) -> arguments.Decode:
    """The op's checks, and what this kernel wants besides. Raises ValueError."""
    shape = arguments.check_decode(
        q, cache, block_table=block_table, cache_seqlens=cache_seqlens, scale=scale
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


def configuration(capability: tuple[int, int], rows: int, fp8: bool) -> Configuration:
    """How to cut ``rows`` query rows of a sequence (T x H). A card that the table does not name
    gets what needs least shared memory."""
    table = CONFIGURATIONS.get(capability, SMALL_SHARED)[fp8]
    return next((cut for most, cut in table if rows <= most), table[-1][1])


def splits(cut: Configuration, shape: arguments.Decode, multiprocessors: int) -> int:
    """Into how many parts each sequence is cut, from what the host knows: the table's width."""
    jobs = shape.batch * -(-shape.query_len * shape.heads // cut.rows)
    return split_count(jobs, -(-shape.width * PAGE // cut.keys), multiprocessors * cut.programs)


@functools.lru_cache(maxsize=1024)
def split_count(jobs: int, tiles: int, slots: int) -> int:
    """The count that ends first: ``jobs`` sequences of ``tiles`` tiles on ``slots`` programs at a
    time. A split costs SETUP tiles of its own and, once there are two, a part to combine."""
    best, best_cost = 1, math.inf
    for count in range(1, min(tiles, max(1, 2 * slots // jobs)) + 1):
        rounds = -(-jobs * count // slots)
        cost = rounds * (-(-tiles // count) + SETUP)
        cost += (COMBINE + COMBINE_PART * jobs * count / slots) if count > 1 else 0.0
        if cost < best_cost:
            best, best_cost = count, cost
    return best


# In units of one tile's time: filling the pipeline, starting the combination, a part's traffic.
SETUP, COMBINE, COMBINE_PART = 1.0, 2.0, 0.5


def launch(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float,
    cut: Configuration,
    count: int,
) -> torch.Tensor:
    """The kernels on checked arguments: ``count`` splits, combined where there are two or more."""
    batch, tokens, heads, _ = q.shape
    out = q.new_empty(batch, tokens, heads, LATENT)
    if count == 1:
        attend(q, cache, block_table, cache_seqlens, scale, cut, 1, out.view(batch, 1, -1, LATENT))
        return out
    parts = q.new_empty(batch, count, tokens * heads, LATENT, dtype=torch.float32)
    lse = q.new_empty(batch, count, tokens * heads, dtype=torch.float32)
    attend(q, cache, block_table, cache_seqlens, scale, cut, count, parts, lse)
    combine(parts, lse, out.view(batch, -1, LATENT))
    return out


def attend(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float,
    cut: Configuration,
    count: int,
    parts: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> None:
    """Write ``parts`` [B, count, T x H, 512]; with ``lse`` they are fp32 parts of a sequence."""
    kernels = device_code.triton_module("mla_decode")
    batch, tokens, heads, _ = q.shape
    fp8 = cache.dtype == torch.uint8
    latent, rotary, scales = pieces(cache)
    kernels.decode[(-(-tokens * heads // cut.rows), count, batch)](
        q, latent, rotary, scales, block_table, cache_seqlens,
        parts, parts if lse is None else lse,
        q.stride(0), q.stride(1), q.stride(2),
        latent.stride(0), latent.stride(1), rotary.stride(0), rotary.stride(1),
        scales.stride(0), scales.stride(1), block_table.stride(0),
        parts.stride(0), parts.stride(1), parts.stride(2),
        *((0, 0) if lse is None else lse.stride()[:2]),
        block_table.shape[1], cache.shape[0], tokens, heads, count, scale * LOG2_E,
        ROWS=cut.rows, KEYS=cut.keys, KEYS_FIRST=cut.keys_first,
        FP8=fp8, PACKED=fp8 and not interpreted(), PARTIAL=lse is not None,
        STAGES=cut.stages, DEPENDENT=False, INTERPRETED=interpreted(), num_warps=cut.warps,
    )  # fmt: skip


def pieces(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of the cache's latent, rotary part and scales (the latent again where it has none)."""
    if cache.dtype != torch.uint8:
        return cache, cache[:, :, LATENT:], cache
    latent, scales = cache[:, :, :LATENT], cache[:, :, LATENT : LATENT + 16]
    rotary = cache[:, :, LATENT + 16 : FP8_ROW_BYTES]
    return latent, rotary.view(torch.bfloat16), scales.view(torch.float32)


def combine(parts: torch.Tensor, lse: torch.Tensor, out: torch.Tensor) -> None:
    """Parts fp32 [B, splits, R, 512] and their base-2 lse [B, splits, R] -> out [B, R, 512]."""
    kernels = device_code.triton_module("mla_decode")
    batch, count, rows, _ = parts.shape
    columns = 512 if batch * rows >= 1024 else 128
    kernels.combine[(rows, batch, LATENT // columns)](
        parts, lse, out, *parts.stride()[:3], *lse.stride()[:2], *out.stride()[:2], count,
        SPLITS=max(2, 1 << (count - 1).bit_length()), CHUNK=8 if columns == 512 else 16,
        COLUMNS=columns, DEPENDENT=False, INTERPRETED=interpreted(), num_warps=4,
    )  # fmt: skip
