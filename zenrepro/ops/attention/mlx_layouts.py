"""Variable lengths and paged caches as masks over rectangles, for mlx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx


def varlen_mask(
    queries: int, keys: int, cu_seqlens_q: mx.array, cu_seqlens_k: mx.array, causal: bool
) -> mx.array:
    """[Tq, Tk]: which keys each query sees. Sequences see nothing of each other."""
    import mlx.core as mx

    q, k = mx.arange(queries), mx.arange(keys)
    # A row's sequence is the number of sequences that end at or before it.
    of_q = (q[:, None] >= cu_seqlens_q[1:]).sum(-1)
    of_k = (k[:, None] >= cu_seqlens_k[1:]).sum(-1)
    seen = of_q[:, None] == of_k
    if causal:  # aligned at the bottom right: counted from each sequence's end
        last = cu_seqlens_q.shape[0] - 1
        behind_q = cu_seqlens_q[mx.minimum(of_q + 1, last)] - q
        behind_k = cu_seqlens_k[mx.minimum(of_k + 1, last)] - k
        seen = seen & (behind_k >= behind_q[:, None])
    return seen


def varlen_values(v: mx.array, cu_seqlens_k: mx.array) -> mx.array:
    """v [Tk, Hkv, Dv], zeros behind the last sequence: NaN may lie there, and 0 x NaN is NaN."""
    import mlx.core as mx

    held = (mx.arange(v.shape[0]) < cu_seqlens_k[-1])[:, None, None]
    return mx.where(held, v, mx.array(0, v.dtype))


def gathered(
    k_cache: mx.array,
    v_cache: mx.array,
    block_table: mx.array,
    cache_seqlens: mx.array,
    query_len: int,
    causal: bool,
) -> tuple[mx.array, mx.array, mx.array]:
    """k [B, S, Hkv, D] and v [B, S, Hkv, Dv] of all pages that the tables have room for, and which
    keys each query sees [B, T, S]. Values behind a sequence's end are zeros: 0 x NaN is NaN."""
    import mlx.core as mx

    B, width = block_table.shape
    S = width * k_cache.shape[1]
    pages = mx.clip(block_table, 0, k_cache.shape[0] - 1)
    k = k_cache[pages].reshape(B, S, *k_cache.shape[2:])
    v = v_cache[pages].reshape(B, S, *v_cache.shape[2:])
    places = mx.arange(S)
    held = places < cache_seqlens[:, None]
    v = mx.where(held[:, :, None, None], v, mx.array(0, v.dtype))
    seen = mx.broadcast_to(held[:, None], (B, query_len, S))
    if causal:
        last = cache_seqlens[:, None] - query_len + mx.arange(query_len)
        seen = seen & (places <= last[:, :, None])
    return k, v, seen
