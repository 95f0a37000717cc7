"""mx.fast.scaled_dot_product_attention: the library's own fused kernel where it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments, mlx_layouts

if TYPE_CHECKING:
    import mlx.core as mx


def attention(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool, scale: float | None = None
) -> mx.array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    The softmax is fp32. MLX aligns its causal mask at the bottom right. Raises ValueError.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="mlx")
    mask = "causal" if causal and shape.query_len > 1 else None
    return _fast(q, k, v, mask, shape.scale)


def attention_varlen(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    cu_seqlens_q: mx.array,
    cu_seqlens_k: mx.array,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float | None = None,
) -> mx.array:
    """q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv], offsets int32 [B + 1] -> [Tq, H, Dv].

    All rows against all, other sequences masked (a NaN among one's values reaches all). Queries
    that see no key give zeros. Raises ValueError.
    """
    shape = arguments.check_varlen(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, causal=causal, scale=scale, framework="mlx",
    )  # fmt: skip
    seen = mlx_layouts.varlen_mask(shape.queries, shape.keys, cu_seqlens_q, cu_seqlens_k, causal)
    v = mlx_layouts.varlen_values(v, cu_seqlens_k)
    return _masked(q[None], k[None], v[None], seen[None], shape.scale)[0]


def attention_paged(
    q: mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    *,
    block_table: mx.array,
    cache_seqlens: mx.array,
    causal: bool,
    scale: float | None = None,
) -> mx.array:
    """q [B, T, H, D], caches [P, page, Hkv, D or Dv], block_table int32 [B, pages], cache_seqlens
    int32 [B] -> [B, T, H, Dv].

    The pages are copied next to each other first. Queries that see no key give zeros. Raises
    ValueError.
    """
    shape = arguments.check_paged(
        q, k_cache, v_cache, block_table=block_table, cache_seqlens=cache_seqlens, causal=causal,
        scale=scale, framework="mlx",
    )  # fmt: skip
    k, v, seen = mlx_layouts.gathered(
        k_cache, v_cache, block_table, cache_seqlens, shape.query_len, causal
    )
    return _masked(q, k, v, seen, shape.scale)


def _masked(q: mx.array, k: mx.array, v: mx.array, seen: mx.array, scale: float) -> mx.array:
    import mlx.core as mx

    out = _fast(q, k, v, seen[:, None], scale)
    # What the library gives where a row sees no key differs from kernel to kernel.
    return mx.where(seen.any(-1)[..., None, None], out, mx.array(0, dtype=out.dtype))


def _fast(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, scale: float
) -> mx.array:
    import mlx.core as mx

    out = mx.fast.scaled_dot_product_attention(
        q.transpose(0, 2, 1, 3),
        k.transpose(0, 2, 1, 3),
        v.transpose(0, 2, 1, 3),
        scale=scale,
        mask=mask,
    )
    return out.transpose(0, 2, 1, 3)
