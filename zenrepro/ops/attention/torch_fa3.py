"""FlashAttention-3 for Hopper: our CUDA kernel, ``kernels/cuda/attention_hopper.cu``.

Shah et al. 2024, FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision
(arXiv 2407.08608), algorithm 2, for dense, packed variable-length and paged inputs. Head sizes up
to 128, or 192 with values of 128, multiples of 8; others than 64, 128 and 192 run at the next.
fp8_e4m3 (section 3.3, without its block scales and its rotation) dense only.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import TYPE_CHECKING

from zenrepro.ops import nvrtc
from zenrepro.ops.attention import arguments, tile_counters
from zenrepro.ops.attention.fa3_variant import Variant, split, variant

if TYPE_CHECKING:
    import torch

SOURCE, KERNEL = "cuda/attention_hopper.cu", "attention_hopper"
VALUES_SOURCE, VALUES_KERNEL = "cuda/values_e4m3.cu", "values_e4m3"
FORMATS = ("bf16", "fp16", "fp8_e4m3")
_L2_BYTES = 32 * 2**20  # keys and values that are meant to stay in L2 (an H200 has 50 MiB)


class _Arguments(ctypes.Structure):
    """The kernel's ``Arguments``."""

    _fields_ = [
        ("output", ctypes.c_uint64),
        ("cu_seqlens_q", ctypes.c_uint64),
        ("cu_seqlens_k", ctypes.c_uint64),
        ("block_table", ctypes.c_uint64),
        ("cache_seqlens", ctypes.c_uint64),
        ("counters", ctypes.c_uint64),
        ("partials", ctypes.c_uint64),
        ("output_batch_stride", ctypes.c_int64),
        ("output_row_stride", ctypes.c_int64),
        ("output_head_stride", ctypes.c_int64),
        ("batch", ctypes.c_int),
        ("heads", ctypes.c_int),
        ("group", ctypes.c_int),
        ("query_len", ctypes.c_int),
        ("cache_len", ctypes.c_int),
        ("query_rows", ctypes.c_int),
        ("key_rows", ctypes.c_int),
        ("pages", ctypes.c_int),
        ("page_size", ctypes.c_int),
        ("table_width", ctypes.c_int),
        ("value_dim", ctypes.c_int),
        ("row_blocks", ctypes.c_int),
        ("heads_at_once", ctypes.c_int),
        ("split_tiles", ctypes.c_int),
        ("parts", ctypes.c_int),
        ("scale_log2", ctypes.c_float),
        ("value_scale", ctypes.c_float),
    ]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    value_scale: float = 1.0,
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype, bf16 from
    fp8_e4m3.

    fp32 scores, sums and accumulators (of fp8, what the matrix units keep: some 14 bits a term);
    weights are rounded to q's dtype before the second product. Scales of fp8 tensors: q's and k's
    go into ``scale``, v's is ``value_scale``; its V is first transposed, in a second kernel.
    Bit-identical run to run. Any strides that are multiples of 16 bytes, last dimension
    contiguous. Raises ValueError.
    """
    import torch

    shape = arguments.check(q, k, v, causal=causal, scale=scale, formats=FORMATS, framework="torch")
    arguments.check_served(shape, q, device="cuda")
    form = _dtype(q)
    chosen = variant(shape.head_dim, shape.value_dim, causal=causal, varlen=False, dtype=form)
    out = q.new_empty(
        shape.batch, shape.query_len, shape.heads, shape.value_dim,
        dtype=torch.bfloat16 if form == "fp8_e4m3" else q.dtype,
    )  # fmt: skip
    run(chosen, q, k, v, out, scale=shape.scale, value_scale=value_scale)
    return out


def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None = None,
) -> torch.Tensor:
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv], offsets int32 [B + 1] -> [Tq, H, Dv].

    As ``attention``; causal is aligned at the bottom right of every sequence. Queries that see no
    key give zeros. Raises ValueError.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, formats=("bf16", "fp16"),
        framework="torch",
    )  # fmt: skip
    arguments.check_served(shape, q, device="cuda")
    chosen = variant(shape.head_dim, shape.value_dim, causal=causal, varlen=True, dtype=_dtype(q))
    out = q.new_empty(shape.queries, shape.heads, shape.value_dim)
    if shape.queries == 0 or max_seqlen_q == 0:
        return out
    if shape.keys == 0:
        return out.zero_()
    run(
        chosen, q[None], k[None], v[None], out[None], scale=shape.scale,
        offsets=(cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()),
        longest=(max_seqlen_q, max_seqlen_k),
    )  # fmt: skip
    return out


def attention_paged(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    causal: bool,
    scale: float | None = None,
) -> torch.Tensor:
    """q [B, T, H, D], caches [P, page, Hkv, D or Dv], block_table int32 [B, pages], cache_seqlens
    int32 [B] -> [B, T, H, Dv].

    For queries by the hundred (a prompt's next chunk): a tile has 128 rows of one head (192 at head
    sizes up to 64), and no sequence is split. As ``attention``. Pages of 16, 32, 64 or a multiple
    of 128 tokens. Queries that see no key give zeros. Raises ValueError.
    """
    shape = arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale, formats=("bf16", "fp16"), framework="torch",
    )  # fmt: skip
    arguments.check_served(shape, q, device="cuda")
    chosen = variant(shape.head_dim, shape.value_dim, causal=causal, varlen=True, dtype=_dtype(q))
    rows = min(shape.page_size, chosen.block_n)
    if rows % 16 or chosen.block_n % rows or shape.page_size % rows:
        raise ValueError(
            f"k_cache: wants pages of 16, 32, 64 or a multiple of {chosen.block_n} tokens, "
            f"got {shape.page_size}"
        )
    out = q.new_empty(shape.batch, shape.query_len, shape.heads, shape.value_dim)
    run(
        chosen._replace(varlen=False, page_rows=rows), q, k_cache, v_cache, out, scale=shape.scale,
        pages=(block_table.contiguous(), cache_seqlens.contiguous()),
    )  # fmt: skip
    return out


def run(
    chosen: Variant,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    value_scale: float = 1.0,
    offsets: tuple[torch.Tensor, torch.Tensor] | None = None,
    longest: tuple[int, int] | None = None,
    pages: tuple[torch.Tensor, torch.Tensor] | None = None,
    heads_at_once: int | None = None,
) -> None:
    """Launch one variant into ``out`` [B, T, H, Dv]; with ``offsets``, B = 1 and rows are packed;
    with ``pages`` (a table and lengths), k and v are [P, page, Hkv, D].

    Raises ValueError for strides that TMA does not take.
    """
    import torch

    arguments.check_strides(q=q, k=k, v=v)
    batch, query_rows, heads, _ = q.shape
    key_rows, kv_heads, value_dim = k.shape[1], k.shape[2], v.shape[3]
    query_len, cache_len = longest or (query_rows, key_rows)
    if pages:
        cache_len = pages[0].shape[1] * key_rows
    sequences = offsets[0].shape[0] - 1 if offsets else batch
    row_blocks = -(-query_len // chosen.rows)
    group = heads // kv_heads
    if heads_at_once is None:
        # Heads that share keys count once. Without a mask one head's tiles, in step, read its keys
        # once for several multiprocessors; with one, tiles of all lengths, the longest first.
        pair_bytes = max(cache_len, 1) * (chosen.head_dim + chosen.value_dim) * q.element_size()
        heads_at_once = (max(1, _L2_BYTES // pair_bytes) if chosen.causal else 1) * group
    tiles = sequences * heads * row_blocks
    given = _Arguments(
        output=out.data_ptr(),
        cu_seqlens_q=offsets[0].data_ptr() if offsets else 0,
        cu_seqlens_k=offsets[1].data_ptr() if offsets else 0,
        block_table=pages[0].data_ptr() if pages else 0,
        cache_seqlens=pages[1].data_ptr() if pages else 0,
        output_batch_stride=out.stride(0),
        output_row_stride=out.stride(1),
        output_head_stride=out.stride(2),
        batch=sequences,
        heads=heads,
        group=group,
        query_len=query_len,
        cache_len=cache_len,
        query_rows=query_rows,
        key_rows=key_rows,
        pages=k.shape[0],
        page_size=key_rows,
        table_width=pages[0].shape[1] if pages else 0,
        value_dim=value_dim,
        row_blocks=row_blocks,
        heads_at_once=min(heads_at_once, sequences * heads),
        scale_log2=scale * math.log2(math.e),
        value_scale=value_scale,
    )
    blocks = min(tiles, _processors(q.device.index))
    given.split_tiles, given.parts = split(chosen, tiles, blocks, cache_len)
    with torch.cuda.device(q.device):
        stream = torch.cuda.current_stream().cuda_stream
        counters = tile_counters.take(q.device.index, stream)
        given.counters = counters.data_ptr()
        if given.split_tiles:
            floats = chosen.warpgroups * (chosen.value_dim // 2 + 4) * 128
            partials = torch.empty(
                given.split_tiles * given.parts, floats, dtype=torch.float32, device=q.device
            )
            given.partials = partials.data_ptr()
        key_box = chosen.page_rows or chosen.block_n
        if chosen.dtype == "E4M3":
            transposed = _transposed(v, stream)
            width = 128 if chosen.block_n % 128 == 0 else 64
            values = nvrtc.tensor_map(
                transposed.data_ptr(), "uint8", transposed.shape[::-1],
                transposed.stride()[2::-1], (width, chosen.value_dim, 1, 1),
                swizzle=width,
            )  # fmt: skip
        else:
            values = _tiles(v, key_box)
        kernel = nvrtc.function(SOURCE, KERNEL, defines=chosen.defines)
        nvrtc.launch(
            kernel,
            (blocks, 1, 1),
            (chosen.threads, 1, 1),
            chosen.shared_bytes,
            stream,
            [_tiles(q, 64), _tiles(k, key_box), values, given],
        )


def _tiles(x: torch.Tensor, rows: int) -> nvrtc.TensorMap:
    """The tensor map of x [B, T, H, D]: boxes of ``rows`` tokens by 128 bytes of D, of one head."""
    batch, tokens, heads, dim = x.shape
    size = x.element_size()
    dense = (heads * dim, dim, tokens * heads * dim)  # where the extent is 1, any stride will do
    strides = [
        (x.stride(axis) if x.shape[axis] > 1 else dense[i]) * size
        for i, axis in enumerate((1, 2, 0))
    ]
    strides = [-(-stride // 16) * 16 for stride in strides]
    return nvrtc.tensor_map(
        x.data_ptr(),
        "uint8" if size == 1 else _dtype(x),
        (dim, tokens, heads, batch),
        strides,
        (128 // size, rows, 1, 1),
    )


def _transposed(v: torch.Tensor, stream: int) -> torch.Tensor:
    """fp8 v [B, S, Hkv, Dv] as bytes [B, Hkv, Dv, S padded to 128], keys in the kernel's order."""
    import torch

    batch, keys, kv_heads, dim = v.shape
    padded = -(-keys // 128) * 128
    out = torch.empty(batch, kv_heads, dim, padded, dtype=torch.uint8, device=v.device)
    nvrtc.launch(
        nvrtc.function(VALUES_SOURCE, VALUES_KERNEL),
        (padded // 128, kv_heads, batch),
        (256, 1, 1),
        128 * (dim + 4),
        stream,
        [
            ctypes.c_void_p(v.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int64(v.stride(0)),
            ctypes.c_int64(v.stride(1)),
            ctypes.c_int64(v.stride(2)),
            ctypes.c_int(keys),
            ctypes.c_int(padded),
            ctypes.c_int(dim),
        ],
    )
    return out


def _dtype(x: torch.Tensor) -> str:
    return {
        "torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float8_e4m3fn": "fp8_e4m3",
    }[str(x.dtype)]  # fmt: skip


@cache
def _processors(device: int) -> int:
    import torch

    return int(torch.cuda.get_device_properties(device).multi_processor_count)
