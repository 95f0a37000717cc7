"""FlashInfer (flashinfer-python) as installed: a peer. It compiles kernels on first use.

Its schedule is planned on the host. For rectangles the plan follows from the shape, and is kept;
for variable lengths and pages it follows from the lengths, so planning is part of each call: no
CUDA graph can hold that, and it waits for the device. A serving engine plans once for all layers
of a step: ``plan_varlen`` and ``plan_paged`` give what it would keep.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from zenrepro.ops.attention import arguments
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import torch

FORMATS = ("fp16", "bf16")
WORKSPACE_BYTES = 2**28
_REFUSALS = (ValueError, NotImplementedError, RuntimeError)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Raises ValueError; UnsupportedError when the library refuses.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, formats=FORMATS, framework="torch")
    arguments.check_served(shape, q, device="cuda")
    with refusals(*_REFUSALS):
        planned = _plan_dense(shape, causal, q.dtype, q.device)
        flat = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        out: torch.Tensor = planned.run(*flat)
    return out.view(*q.shape[:3], shape.value_dim)


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

    Raises ValueError; UnsupportedError when the library refuses.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, formats=FORMATS, framework="torch",
    )  # fmt: skip
    arguments.check_served(shape, q, device="cuda")
    with refusals(*_REFUSALS):
        planned = plan_varlen(shape, causal, q.dtype, cu_seqlens_q, cu_seqlens_k)
        out: torch.Tensor = planned.run(q, k, v)
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

    Raises ValueError; UnsupportedError when the library refuses.
    """
    shape = arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale, formats=FORMATS, framework="torch",
    )  # fmt: skip
    arguments.check_served(shape, q, device="cuda")
    with refusals(*_REFUSALS):
        planned = plan_paged(shape, causal, q.dtype, block_table, cache_seqlens)
        out: torch.Tensor = planned.run(q.flatten(0, 1), (k_cache, v_cache))
    return out.view(*q.shape[:3], shape.value_dim)


@functools.lru_cache(maxsize=8)
def _plan_dense(
    shape: arguments.Shape, causal: bool, dtype: torch.dtype, device: torch.device
) -> Any:
    import torch

    starts = torch.arange(shape.batch + 1, dtype=torch.int32, device=device)
    return plan_varlen(shape, causal, dtype, starts * shape.query_len, starts * shape.cache_len)


def plan_varlen(
    shape: arguments.Shape | arguments.VarlenShape,
    causal: bool,
    dtype: torch.dtype,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
) -> Any:
    """The library's wrapper, planned; ``run(q, k, v)`` may be called for every layer."""
    wrapper = _library().BatchPrefillWithRaggedKVCacheWrapper(_workspace(cu_seqlens_q.device))
    wrapper.plan(
        cu_seqlens_q, cu_seqlens_k, shape.heads, shape.kv_heads, shape.head_dim,
        head_dim_vo=shape.value_dim, causal=causal, sm_scale=shape.scale, q_data_type=dtype,
        kv_data_type=dtype,
    )  # fmt: skip
    return wrapper


def plan_paged(
    shape: arguments.PagedShape,
    causal: bool,
    dtype: torch.dtype,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
) -> Any:
    """The library's wrapper, planned; ``run(q, (k_cache, v_cache))`` may be called for every
    layer. It wants the pages in one row, and the fill of each last page."""
    import torch

    size = shape.page_size
    used = (cache_seqlens + size - 1) // size
    starts = torch.zeros(shape.batch + 1, dtype=torch.int32, device=block_table.device)
    starts[1:] = used.cumsum(0)
    places = torch.arange(shape.table_width, device=block_table.device)
    pages = block_table[places < used[:, None]]
    last = torch.where(used > 0, cache_seqlens - (used - 1) * size, 0).int()
    offsets = torch.arange(shape.batch + 1, dtype=torch.int32, device=block_table.device)
    wrapper = _library().BatchPrefillWithPagedKVCacheWrapper(_workspace(block_table.device))
    wrapper.plan(
        offsets * shape.query_len, starts, pages, last, shape.heads, shape.kv_heads,
        shape.head_dim, size, head_dim_vo=shape.value_dim, causal=causal, sm_scale=shape.scale,
        q_data_type=dtype, kv_data_type=dtype,
    )  # fmt: skip
    return wrapper


def _library() -> Any:
    return importlib.import_module("flashinfer")


@functools.cache
def _workspace(device: torch.device) -> torch.Tensor:
    import torch

    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
