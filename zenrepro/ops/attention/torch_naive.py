"""Attention in plain torch with the scores stored: the report's baseline.

Written as the formula: two matrix products around a softmax, every intermediate in the inputs'
dtype and in device memory. Grouped heads share their keys without a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments

if TYPE_CHECKING:
    import torch


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Products accumulate in fp32; scores and weights are rounded to q's dtype. Raises ValueError.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="torch")
    hidden = _future(shape.query_len, shape.cache_len, q.device) if causal else None
    return _formula(q, k, v, hidden, shape.scale)


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

    One sequence after the other. It reads the offsets on the host, so no CUDA graph holds it.
    Queries that see no key give zeros. Raises ValueError.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, framework="torch",
    )  # fmt: skip
    out = q.new_zeros(shape.queries, shape.heads, shape.value_dim)
    starts, begins = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(shape.batch):
        rows, keys = slice(starts[b], starts[b + 1]), slice(begins[b], begins[b + 1])
        T, S = rows.stop - rows.start, keys.stop - keys.start
        if T == 0 or S == 0:
            continue
        hidden = _future(T, S, q.device) if causal else None
        one = _formula(q[None, rows], k[None, keys], v[None, keys], hidden, shape.scale)
        out[rows] = one[0]
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

    The pages are copied next to each other first, all that the table has room for. Queries that
    see no key give zeros. Raises ValueError.
    """
    import torch

    shape = arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale, framework="torch",
    )  # fmt: skip
    B, T, S = shape.batch, shape.query_len, shape.table_width * shape.page_size
    pages = block_table.clamp(0, shape.pages - 1)
    k = k_cache[pages].reshape(B, S, shape.kv_heads, shape.head_dim)
    v = v_cache[pages].reshape(B, S, shape.kv_heads, shape.value_dim)
    places = torch.arange(S, device=q.device)
    absent = places >= cache_seqlens[:, None]  # [B, S]
    # What lies behind a sequence's end may be anything, NaN too, and 0 x NaN is NaN.
    v = v.masked_fill(absent[:, :, None, None], 0.0)
    hidden = absent[:, None, None, :]
    if causal:
        last = cache_seqlens[:, None] - T + torch.arange(T, device=q.device)  # [B, T]
        hidden = hidden | (places > last[:, :, None])[:, None]
    return _formula(q, k, v, hidden, shape.scale)


def _future(T: int, S: int, device: torch.device) -> torch.Tensor:
    """[T, S]: keys that lie after each query, aligned at the bottom right."""
    import torch

    return torch.ones(T, S, dtype=torch.bool, device=device).triu(S - T + 1)


def _formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None, scale: float
) -> torch.Tensor:
    B, T, H, D = q.shape
    S, Hkv, Dv = k.shape[1], k.shape[2], v.shape[3]
    grouped = q.transpose(1, 2).reshape(B, Hkv, (H // Hkv) * T, D)
    scores = (grouped @ k.permute(0, 2, 3, 1)) * scale
    scores = scores.view(B, H, T, S)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1)
    if hidden is not None and (hidden.dim() > 2 or T > S):  # rows may exist that see no key
        weights = weights.masked_fill(hidden, 0.0)
    out = weights.view(B, Hkv, (H // Hkv) * T, S) @ v.transpose(1, 2)
    return out.view(B, H, T, Dv).transpose(1, 2)
