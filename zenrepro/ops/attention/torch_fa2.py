"""FlashAttention-2 in Triton: any CUDA card from Ampere on (A100, Orin, Hopper).

The kernels are in ``kernels/triton/attention.py``; here arguments are checked, a configuration is
looked up in a literal table and the keys are split over the SMs where there are few query rows
(flash-decoding). Outputs are bit-identical from run to run on one kind of device.

Run on an H200 (sm_90); for sm_80, sm_86 and sm_87 compiled, and run in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from zenrepro.ops import device_code
from zenrepro.ops.attention import arguments

if TYPE_CHECKING:
    import torch

LOG2_E = 1.4426950408889634
FORMATS = ("bf16", "fp16", "fp32")
WIDEST = 256  # of keys and values
PACKED_ROWS = 64  # queries x heads of a group up to this share one tile
MOST_SPLITS = 128
SPLIT_KEYS = 256  # a split has at least so many
MOST_STRIDE = 2**24  # of tokens: inside a tile of 128, offsets are of 32 bits


class Config(NamedTuple):
    """Tile sizes and compiler options of one launch.

    ``block_m`` of a decode is that of 16 rows or fewer. ``programs``: how many an SM is to have,
    for choosing the splits. ``ahead``, ``q_registers`` and ``tma`` as in the kernel.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    programs: int = 1
    ahead: bool = False
    q_registers: bool = False
    tma: bool = False


# By architecture, kind and width. Kinds: prefill; "pointers", a prefill on sm_90 whose keys the
# copy engine cannot fetch (packed or paged sequences, odd strides); decode. Widths: 64, 128, 192
# (keys to 192 wide, values to 128) and 256. sm_86 stands for cards with about 100 KB of shared
# memory a block.
# sm_90 was timed on an H200, but for width 256 (tests/device/tune_attention_triton.py): lengths
# 1024 to 16384, causal and not, decodes of 1 to 64 sequences. What won nearly everywhere was 64
# rows and 4 warps: two programs share a multiprocessor, and the softmax of one runs beside the
# products of the other. That beats one program of 128 rows, however its own steps overlap. Decodes
# want splits for one program a multiprocessor, though three fit: they wait for memory, and parts
# cost. The other architectures were chosen by counting and have not been timed. None spills
# registers in its loop (tests).
CONFIGS: dict[tuple[str, str, int], Config] = {
    ("sm_90", "prefill", 64): Config(64, 128, 4, 2, 2, tma=True),
    ("sm_90", "prefill", 128): Config(64, 64, 4, 3, 2, tma=True),
    ("sm_90", "prefill", 192): Config(64, 64, 4, 2, 2, ahead=True, q_registers=True, tma=True),
    ("sm_90", "prefill", 256): Config(128, 64, 8, 2, tma=True),
    ("sm_90", "pointers", 64): Config(64, 64, 4, 3, 2),
    ("sm_90", "pointers", 128): Config(64, 64, 4, 3, 2),
    ("sm_90", "pointers", 192): Config(128, 128, 8, 2),
    ("sm_90", "pointers", 256): Config(128, 32, 8, 3),
    ("sm_80", "prefill", 64): Config(128, 64, 4, 3, 2),
    ("sm_80", "prefill", 128): Config(128, 64, 8, 3),
    ("sm_80", "prefill", 192): Config(128, 32, 8, 3),
    ("sm_80", "prefill", 256): Config(64, 32, 8, 3),
    ("sm_86", "prefill", 64): Config(128, 32, 4, 3, 2),
    ("sm_86", "prefill", 128): Config(128, 32, 8, 3),
    ("sm_86", "prefill", 192): Config(128, 32, 8, 2),
    ("sm_86", "prefill", 256): Config(64, 32, 8, 2),
    ("sm_90", "decode", 64): Config(16, 128, 4, 3),
    ("sm_90", "decode", 128): Config(16, 64, 4, 3),
    ("sm_90", "decode", 192): Config(16, 64, 4, 3),
    ("sm_90", "decode", 256): Config(16, 32, 4, 3),
    ("sm_80", "decode", 64): Config(16, 128, 4, 3, 2),
    ("sm_80", "decode", 128): Config(16, 64, 4, 3, 2),
    ("sm_80", "decode", 192): Config(16, 32, 4, 3, 2),
    ("sm_80", "decode", 256): Config(16, 32, 4, 3, 1),
    ("sm_86", "decode", 64): Config(16, 64, 4, 3, 2),
    ("sm_86", "decode", 128): Config(16, 32, 4, 3, 2),
    ("sm_86", "decode", 192): Config(16, 32, 4, 2, 1),
    ("sm_86", "decode", 256): Config(16, 32, 4, 2, 1),
}
# fp32 products run on the ordinary cores (no tf32): small tiles, every architecture alike.
FP32 = {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 192: Config(16, 32, 4, 1),
        256: Config(16, 32, 4, 1)}  # fmt: skip


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    bf16, fp16, fp32; widths up to 256; fp32 accumulation. Bit-identical run to run. Raises
    ValueError.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, formats=FORMATS, framework="torch")
    _check_served(shape, q=q, k=k, v=v)
    call = Call(
        "dense", shape.batch, shape.query_len, shape.cache_len, shape.heads, shape.kv_heads,
        shape.head_dim, shape.value_dim, causal, shape.scale,
    )  # fmt: skip
    out = q.new_empty((*q.shape[:3], shape.value_dim))
    launch(call, plan_for(call, q, k, v), q, k, v, out)
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
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv], cu_seqlens int32 [B + 1] -> [Tq, H, Dv].

    Causal is aligned at each sequence's bottom right; rows that see no key give zeros. Otherwise as
    ``attention``.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, formats=FORMATS, framework="torch",
    )  # fmt: skip
    _check_served(shape, q=q, k=k, v=v)
    call = Call(
        "varlen", shape.batch, shape.max_query_len, shape.max_cache_len, shape.heads,
        shape.kv_heads, shape.head_dim, shape.value_dim, causal, shape.scale,
        starts_q=cu_seqlens_q.contiguous(), starts_k=cu_seqlens_k.contiguous(),
        queries=shape.queries, keys=shape.keys,
    )  # fmt: skip
    out = q.new_empty((*q.shape[:2], shape.value_dim))
    if shape.queries and shape.max_query_len:
        launch(call, plan_for(call, q, k, v), q, k, v, out)
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
    """q [B, T, H, D], k_cache [P, page, Hkv, D], v_cache [P, page, Hkv, Dv], block_table int32
    [B, pages], cache_seqlens int32 [B] -> [B, T, H, Dv].

    The queries are the last T tokens of their sequences. Otherwise as ``attention``.
    """
    shape = arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale, formats=FORMATS, framework="torch",
    )  # fmt: skip
    _check_served(shape, q=q, k_cache=k_cache, v_cache=v_cache)
    if block_table.shape[1] > 1 and block_table.stride(1) != 1:
        block_table = block_table.contiguous()
    call = Call(
        "paged", shape.batch, shape.query_len, shape.table_width * shape.page_size, shape.heads,
        shape.kv_heads, shape.head_dim, shape.value_dim, causal, shape.scale,
        lengths=cache_seqlens.contiguous(), table=block_table, page=shape.page_size,
        pages=shape.pages,
    )  # fmt: skip
    out = q.new_empty((*q.shape[:3], shape.value_dim))
    launch(call, plan_for(call, q, k_cache, v_cache), q, k_cache, v_cache, out)
    return out


class Call(NamedTuple):
    """One call of any layout. ``query_len`` and ``cache_len`` are the longest ones."""

    layout: str
    batch: int
    query_len: int
    cache_len: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    causal: bool
    scale: float
    starts_q: Any = None
    starts_k: Any = None
    queries: int = 0
    keys: int = 0
    lengths: Any = None
    table: Any = None
    page: int = 0
    pages: int = 1

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Tokens of all sequences."""
        return self.queries if self.layout == "varlen" else self.batch * self.query_len


class Plan(NamedTuple):
    """How a call is cut: the configuration, its tiles and splits."""

    config: Config
    packed: bool
    tiles: int
    splits: int


def width(head_dim: int, value_dim: int) -> int:
    """The column of ``CONFIGS`` for these widths."""
    if max(head_dim, value_dim) <= 64:
        return 64
    if max(head_dim, value_dim) <= 128:
        return 128
    return 192 if value_dim <= 128 and head_dim <= 192 else 256


def halves(head_dim: int) -> tuple[int, int]:
    """Two powers of two (the second may be 0) that hold ``head_dim``: 192 is 128 and 64."""
    whole = max(16, 1 << (head_dim - 1).bit_length())
    first = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - first
    if rest <= 0:
        return first, 0
    second = max(16, 1 << (rest - 1).bit_length())
    return (whole, 0) if first + second >= whole else (first, second)


def architecture(capability: tuple[int, int]) -> str:
    """The row of ``CONFIGS`` for a compute capability: by shared memory and matrix instructions."""
    if capability[0] == 9:
        return "sm_90"
    if capability in ((8, 0), (8, 7)) or capability[0] in (10, 11):
        return "sm_80"
    return "sm_86"


def plan(call: Call, architecture: str, processors: int, *, fp32: bool, descriptors: bool) -> Plan:
    """Look the configuration up and choose the splits. ``descriptors``: the copy engine can fetch
    keys and values."""
    few = call.query_len * call.group <= PACKED_ROWS
    # Longer drafts of grouped heads fill a prefill's tiles by packing; long queries do without.
    packed = few or (call.group > 1 and call.query_len <= PACKED_ROWS)
    column = width(call.head_dim, call.value_dim)
    rows = call.query_len * (call.group if packed else 1)
    kind = "decode" if few else "prefill"
    if kind == "prefill" and architecture == "sm_90" and not descriptors:
        kind = "pointers"
    config = FP32[column] if fp32 else CONFIGS[architecture, kind, column]
    if few and not fp32:
        block_m = max(16, 1 << (rows - 1).bit_length())
        fewer = int(block_m == 64)  # such tiles take the registers of one more
        config = config._replace(block_m=block_m, programs=max(1, config.programs - fewer))
    tiles = -(-rows // config.block_m)
    programs = tiles * call.batch * (call.kv_heads if packed else call.heads)
    slots = processors * config.programs
    splits = 1
    if few or programs < slots:
        splits = choose_splits(programs, call.cache_len // SPLIT_KEYS, slots)
    return Plan(config, packed, tiles, splits)


def choose_splits(programs: int, most: int, slots: int) -> int:
    """The fewest splits, up to ``most``, that fill the device's ``slots`` about as well as any.

    The share that is filled is that of whole rounds of ``slots`` programs; a tenth less is given
    up for fewer partial results.
    """
    shares = []
    for splits in range(1, min(most, MOST_SPLITS) + 1):
        rounds = programs * splits / slots
        shares.append(rounds / math.ceil(rounds))
        if rounds > 4:  # well filled, whatever the rest
            break
    return next((i + 1 for i, share in enumerate(shares) if share >= 0.9 * max(shares)), 1)


def _check_served(shape: Any, **arrays: torch.Tensor) -> None:
    import triton

    q = next(iter(arrays.values()))
    if not triton.knobs.runtime.interpret:
        arguments.check_served(shape, q, device="cuda")
    if max(shape.head_dim, shape.value_dim) > WIDEST:
        raise ValueError(
            f"q: wants heads of at most {WIDEST}, got {shape.head_dim} and {shape.value_dim}"
        )
    arguments.check_strides(alignment_bytes=q.element_size(), **arrays)
    for name, array in arrays.items():
        if array.stride(-3) >= MOST_STRIDE:
            raise ValueError(
                f"{name}: wants fewer than {MOST_STRIDE} elements from token to token, "
                f"got {array.stride(-3)}"
            )


@functools.cache
def _device(index: int | None) -> tuple[str, int]:
    """Row of ``CONFIGS`` and number of SMs."""
    if index is None:  # Triton's interpreter
        return "sm_80", 4
    import torch

    properties = torch.cuda.get_device_properties(index)
    return architecture((properties.major, properties.minor)), properties.multi_processor_count


def plan_for(call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan:
    """``plan`` on q's device."""
    import torch

    target, processors = _device(q.device.index if q.is_cuda else None)
    descriptors = call.layout == "dense" and describable(k, v)
    return plan(call, target, processors, fp32=q.dtype == torch.float32, descriptors=descriptors)


def stages(config: Config, layout: str) -> int:
    """Steps in flight. Page numbers are loads of their own, as far ahead of those of keys and
    values as these are of their use."""
    return 2 * config.stages - 1 if layout == "paged" else config.stages


def launch(
    call: Call, chosen: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
) -> None:
    """Run ``chosen`` on checked arguments of any layout, into ``out``."""
    import torch

    kernels = device_code.triton_module("attention")
    config, packed, tiles, splits = chosen
    first, second = halves(call.head_dim)
    value_first = max(16, 1 << (call.value_dim - 1).bit_length())
    tma = config.tma
    keys = [k, k]
    values = v
    if tma:
        keys = [describe(k, config.block_n, columns) for columns in (first, second or first)]
        values = describe(v, config.block_n, value_first)
    depth = stages(config, call.layout)
    partial = lse = out
    if splits > 1:
        rows = call.rows * call.heads
        partial = torch.empty((splits, rows, call.value_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty((splits, rows), dtype=torch.float32, device=q.device)
    none = q  # arguments that the layout does not read
    # Triton launches on the current device, which need not be the tensors'.
    here = torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext()
    grid = (tiles * splits * call.batch * (call.kv_heads if packed else call.heads),)
    with here:
        kernels.attend[grid](
            q, *keys, values, out, partial, lse,
            none if call.starts_q is None else call.starts_q,
            none if call.starts_k is None else call.starts_k,
            none if call.lengths is None else call.lengths,
            none if call.table is None else call.table,
            *(stride for array in (q, k, v, out) for stride in _strides(array)),
            0 if call.table is None else call.table.stride(0),
            call.query_len, call.keys if call.layout == "varlen" else call.cache_len, call.heads,
            call.scale * LOG2_E, call.pages, 0 if call.table is None else call.table.shape[1],
            tiles, splits, call.rows,
            LAYOUT=call.layout, PAGE=call.page, CAUSAL=call.causal, GROUP=call.group,
            D=call.head_dim, D1=first, D2=second, DV=call.value_dim, DV1=value_first,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, PACK=packed, SPLIT=splits > 1,
            PEEL=not (packed or config.ahead), AHEAD=config.ahead,
            Q_REGISTERS=config.q_registers, TMA=tma, STAGES=depth,
            num_warps=config.warps, num_stages=depth,
            # Multiplications fused with additions, said here: Triton's default is going to change.
            enable_fp_fusion=True,
        )  # fmt: skip
        if splits > 1:
            kernels.combine[(call.rows * call.heads,)](
                partial, lse, out, *_strides(out), call.query_len, call.heads, call.rows, splits,
                VARLEN=call.layout == "varlen", DV=call.value_dim, DV1=value_first,
                SPLITS1=1 << (splits - 1).bit_length(), CHUNK=16, num_warps=4,
                enable_fp_fusion=True,
            )  # fmt: skip


def _strides(array: torch.Tensor) -> tuple[int, ...]:
    """Of batch, token and head; packed sequences have no batch."""
    strides = array.stride()[:-1]
    return strides if len(strides) == 3 else (0, *strides)


def describable(*arrays: torch.Tensor) -> bool:
    """Whether the copy engine can read these: 16-byte steps in every dimension but the last."""
    return all(
        array.data_ptr() % 16 == 0
        and array.shape[-1] * array.element_size() % 16 == 0
        and all(
            stride * array.element_size() % 16 == 0
            for size, stride in zip(array.shape[:-1], array.stride()[:-1], strict=True)
            if size > 1
        )
        for array in arrays
    )


def describe(array: torch.Tensor, rows: int, columns: int) -> Any:
    """A Triton tensor descriptor of [B, S, Hkv, D] seen as [B, Hkv, S, D], tiles [rows, columns].

    Rows past S read as zeros.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    B, S, H, D = array.shape
    by_batch, by_row, by_head = (
        stride if size > 1 else D
        for size, stride in zip(array.shape[:3], array.stride()[:3], strict=True)
    )
    return TensorDescriptor(
        array, [B, H, S, D], [by_batch, by_head, by_row, 1], [1, 1, rows, columns]
    )
