"""torch scaled_dot_product_attention, flash backend.

On CUDA that is FlashAttention-2; on a CPU it is torch's own blocked kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments, torch_sdpa
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import torch


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Accumulates in fp32. Raises ValueError; UnsupportedError when torch refuses this backend.
    """
    return torch_sdpa.attention("FLASH_ATTENTION", q, k, v, causal=causal, scale=scale)


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
    """q [Tq, H, D], k and v [Tk, Hkv, D], offsets int32 [B + 1] -> [Tq, H, D].

    On CUDA the operator behind ``torch.nn.attention.varlen``; on a CPU, whose kernel knows
    rectangles alone, one sequence after the other. Queries that see no key give zeros. Raises
    ValueError; UnsupportedError when torch refuses.
    """
    import torch

    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, framework="torch",
    )  # fmt: skip
    if q.is_cuda:
        with refusals(RuntimeError):
            result = torch.ops.aten._flash_attention_forward(
                q, k, v, cu_seqlens_q, cu_seqlens_k, shape.max_query_len, shape.max_cache_len,
                0.0, causal, False, scale=shape.scale,
            )  # fmt: skip
        found: torch.Tensor = result[0]
        return found
    out = q.new_zeros(shape.queries, shape.heads, shape.value_dim)
    starts, begins = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(shape.batch):
        first, last = starts[b], starts[b + 1]
        keys = slice(begins[b], begins[b + 1])
        if causal:  # the queries before those see nothing
            first = max(first, last - (keys.stop - keys.start))
        if first < last and keys.start < keys.stop:
            part = attention(
                q[None, first:last], k[None, keys], v[None, keys], causal=causal, scale=scale
            )
            out[first:last] = part[0]
    return out
