"""Absorbed latent attention over a paged cache by our Hopper kernels: TMA, wgmma, one launch."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import NamedTuple

import torch

from zenrepro.ops import nvrtc
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, LATENT, PAGE, ROTARY, ROW

SOURCE, FP8_SOURCE = "cuda/mla_decode_hopper.cu", "cuda/mla_decode_hopper_fp8.cu"
THREADS, FP8_THREADS = 384, 512
TILE = 64  # query rows that a block serves
SMALL_TILE = 32  # the same with an FP8 cache, where it has no more
SHARED_BYTES, FP8_SHARED_BYTES = 232256, 232448  # the last: all that a block can have
LOG2_E = math.log2(math.e)


class Problem(ctypes.Structure):
    """The kernels' struct of the same name."""

    _fields_ = [
        ("block_table", ctypes.c_void_p),
        ("cache_seqlens", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("parts", ctypes.c_void_p),
        ("part_sums", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("batch", ctypes.c_int),
        ("table_width", ctypes.c_int),
        ("table_stride", ctypes.c_int),
        ("pool_pages", ctypes.c_int),
        ("heads", ctypes.c_int),
        ("query_len", ctypes.c_int),
        ("scale_log2", ctypes.c_float),
        ("q", ctypes.c_void_p),
    ]


class Build(NamedTuple):
    """A kernel as it is compiled and launched."""

    source: str
    defines: nvrtc.Defines
    shared_bytes: int
    threads: int


class Workspace(NamedTuple):
    """Room for the parts of split sequences, and counters that are zero between calls."""

    parts: torch.Tensor  # fp32 [2 x blocks, 64, 512]
    part_sums: torch.Tensor  # fp32 [2 x blocks, 64, 2]
    counters: torch.Tensor  # int32 [2 x sequences x tiles]


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float | None = None,
    workspace: Workspace | None = None,
) -> torch.Tensor:
    """q [B, T, H, 576] bf16, cache [P, 64, 576] bf16 or uint8 [P, 64, 656], block_table int32
    [B, pages], cache_seqlens int32 [B] -> [B, T, H, 512] bf16; causal over the T tokens.

    Sums in fp32, bit-identical run to run on one kind of card; with an FP8 cache sums over one page
    are those of e4m3 products, which keep some 14 bits. Rows that see no key give zeros. Calls that
    run at the same time on two streams need a ``workspace`` each; without one, all calls on a
    device share one, which the first call outside graph capture makes.
    Raises ValueError for arguments that do not fit and for a device other than sm_90.
    """
    shape = check(q, cache, block_table, cache_seqlens, scale)
    out = q.new_empty(shape.batch, shape.query_len, shape.heads, LATENT)
    if workspace is None:
        workspace = shared_workspace(q.device, shape.batch * tiles_of(shape))
    launch(q, cache, block_table, cache_seqlens, shape.scale, workspace, out)
    return out


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
        contiguous=("q", "cache_seqlens"),
        framework="torch",
    )
    if q.dtype != torch.bfloat16:
        raise ValueError(f"q: wants bfloat16, got {q.dtype}")
    for name, array in (("cache", cache), ("block_table", block_table)):
        if array.stride(-1) != 1:
            raise ValueError(
                f"{name}: wants its last dimension without gaps, got strides {array.stride()}"
            )
    for name, array in (("q", q), ("cache", cache)):
        if array.data_ptr() % 16:
            raise ValueError(f"{name}: wants an address that is a multiple of 16 bytes")
    row, page = (n * cache.element_size() for n in cache.stride()[1::-1])
    if row % 16 or page % 16:
        raise ValueError(
            f"cache: wants rows and pages that start on 16 bytes, got strides {cache.stride()}"
        )
    if not q.is_cuda or torch.cuda.get_device_capability(q.device) != (9, 0):
        where = q.device.type
        if q.is_cuda:
            where = "sm_{}{}".format(*torch.cuda.get_device_capability(q.device))
        raise ValueError(f"q: wants a CUDA tensor on sm_90, got one on {where}")
    return shape


def tiles_of(shape: arguments.Decode) -> int:
    """Tiles of query rows of one sequence."""
    return -(-shape.query_len * shape.heads // TILE)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Blocks that run at the same time: one a multiprocessor."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def make_workspace(device: torch.device, counters: int = 1 << 16) -> Workspace:
    """A workspace for calls of at most ``counters`` sequences x tiles. Some 35 MB on an H200."""
    blocks = multiprocessors(device)
    return Workspace(
        torch.empty(2 * blocks, TILE, LATENT, dtype=torch.float32, device=device),
        torch.empty(2 * blocks, TILE, 2, dtype=torch.float32, device=device),
        torch.zeros(2 * counters, dtype=torch.int32, device=device),
    )


_workspaces: dict[torch.device, Workspace] = {}
_outgrown: list[Workspace] = []  # a captured graph may still write there


def shared_workspace(device: torch.device, counters: int) -> Workspace:
    """The device's own. During graph capture, one that only the graph has if none is there yet:
    what is allocated then belongs to the graph."""
    found = _workspaces.get(device)
    if found is None or found.counters.numel() < 2 * counters:
        larger = make_workspace(device, max(counters, 1 << 16))
        if not torch.cuda.is_current_stream_capturing():
            if found is not None:
                _outgrown.append(found)
            _workspaces[device] = larger
        found = larger
    return found


def build(rows: int, fp8: bool, tuning: nvrtc.Defines = ()) -> Build:
    """What serves ``rows`` query rows a sequence; ``tuning`` are the source's switches, and come
    last.

    FIRST and LAZY are for several tiles: all but a page's first reader find it in the L2, so
    products and what they wait for, not bytes, take the time. 64 sequences of 4096 keys, 128 heads,
    on an H200: 144.6 us with neither (a build before this one), 134.4 to 135.7 with FIRST=4, 128.4
    to 129.8 with LAZY=8 besides.

    FP8: 512 threads, of which 256 multiply; 125.6 us at 128 sequences of 4096 keys, 16 heads, on an
    H200, and 104.8 at 64, 64 heads (a build of 8 instructions more). Tiles of 32 rows: 3 pages of
    codes, 6 quarters of values, which are one product each. Tiles of 64 rows, with their queries
    twice as large: 2 pages, and products of 64 columns.
    """
    if fp8:
        tile = SMALL_TILE if rows <= SMALL_TILE else TILE
        source, shared_bytes, threads = FP8_SOURCE, FP8_SHARED_BYTES, FP8_THREADS
        given: dict[str, str | int] = {"TILE_ROWS": tile}
    else:
        source, shared_bytes, threads = SOURCE, SHARED_BYTES, THREADS
        several = rows > TILE
        given = {"FIRST": 4 if several else 0, "LAZY": 8 if several else 0}
    # What the kernel asserts, so that it and this file cannot part.
    given |= {
        "WANTED_SHARED_BYTES": shared_bytes,
        "WANTED_PROBLEM_BYTES": ctypes.sizeof(Problem),
        **dict(tuning),
    }
    return Build(source, tuple(given.items()), shared_bytes, threads)


def launch(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor,
    tuning: nvrtc.Defines = (),
) -> None:
    """The kernel on checked arguments; ``tuning`` as of ``build``."""
    batch, tokens, heads, _ = q.shape
    rows = tokens * heads
    tiles = -(-rows // TILE)
    fp8 = cache.dtype == torch.uint8
    page_stride, row_stride = (n * cache.element_size() for n in cache.stride()[:2])
    problem = Problem(
        block_table.data_ptr(), cache_seqlens.data_ptr(), out.data_ptr(),
        workspace.parts.data_ptr(), workspace.part_sums.data_ptr(),
        workspace.counters.data_ptr(), batch, block_table.shape[1], block_table.stride(0),
        cache.shape[0], heads, tokens, scale * LOG2_E, q.data_ptr(),
    )  # fmt: skip
    at, strides, pages = cache.data_ptr(), (row_stride, page_stride), cache.shape[0]
    maps = (
        [
            # A quarter of a row's codes has one scale; codes, scales and the rotary part are
            # three tensors.
            _map(at, "uint8", (LATENT, PAGE, pages), strides, 128),
            _map(at + LATENT, "fp32", (4, PAGE, pages), strides, 4),
            _map(at + FP8_ROW_BYTES - 2 * ROTARY, "bf16", (ROTARY, PAGE, pages), strides, 64),
        ]
        if fp8
        else [
            _map(q.data_ptr(), "bf16", (ROW, rows, batch), (ROW * 2, rows * ROW * 2), 64),
            _map(at, "bf16", (ROW, PAGE, pages), strides, 64),
        ]
    )
    made = build(rows, fp8, tuning)
    with torch.cuda.device(q.device):
        nvrtc.launch(
            nvrtc.function(made.source, "mla_decode", arch="sm_90a", defines=made.defines),
            (multiprocessors(q.device) // tiles * tiles, 1, 1),
            (made.threads, 1, 1),
            made.shared_bytes,
            torch.cuda.current_stream(q.device).cuda_stream,
            [*maps, problem, ctypes.c_int(tiles)],
            cooperative=True,
        )


@functools.lru_cache(maxsize=256)
def _map(
    pointer: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], columns: int
) -> nvrtc.TensorMap:
    """``columns`` x 64 rows a copy; rows outside read as zeros.

    A copy is 128 bytes of each row, and so is a fetch into the L2: with fetches of 256 bytes 604 MB
    of cache took 160 us on an H200, so 151. The scales of an FP8 row are 16 bytes.
    """
    swizzle = 0 if dtype == "fp32" else 128
    box = (columns, 64, 1)
    return nvrtc.tensor_map(pointer, dtype, shape, strides, box, swizzle=swizzle, l2=swizzle)
