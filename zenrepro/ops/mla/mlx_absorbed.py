"""Absorbed latent attention with mlx: pages gathered, then mx.fast's attention over the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla import arguments, mlx_cache
from zenrepro.ops.mla.sizes import LATENT, NOPE, PAGE

if TYPE_CHECKING:
    import mlx.core as mx


def decode(
    q: mx.array,
    cache: mx.array,
    *,
    block_table: mx.array,
    cache_seqlens: mx.array,
    scale: float | None = None,
) -> mx.array:
    """q [B, T, H, 576], cache [P, 64, 576] or uint8 [P, 64, 656], block_table int32 [B, pages],
    cache_seqlens int32 [B] -> [B, T, H, 512] in q's dtype.

    The softmax is fp32; rows of an FP8 cache are rounded to q's dtype. Raises ValueError.
    """
    import mlx.core as mx

    shape = arguments.check_decode(
        q, cache, block_table=block_table, cache_seqlens=cache_seqlens, scale=scale, framework="mlx"
    )
    T, length = shape.query_len, shape.width * PAGE
    rows = cache[mx.clip(block_table, 0, shape.pages - 1)].reshape(shape.batch, length, -1)
    if shape.fp8:
        rows = mlx_cache.dequantise(rows, q.dtype)
    place = mx.arange(length)
    # What lies beyond a sequence may be NaN, and 0 x NaN is NaN.
    rows = mx.where((place < cache_seqlens[:, None])[..., None], rows, mx.zeros_like(rows))
    seen = cache_seqlens[:, None] - mx.arange(T - 1, -1, -1)  # rows that query t sees
    # A query that sees no row is given the first, so that its softmax is one, and then zeros.
    visible = (place < mx.maximum(seen, 1)[..., None])[:, None]
    out = mx.fast.scaled_dot_product_attention(
        q.transpose(0, 2, 1, 3),
        rows[:, None],
        rows[:, None, :, :LATENT],
        scale=shape.scale,
        mask=visible,
    )
    out = out.transpose(0, 2, 1, 3)
    return mx.where((seen > 0)[..., None, None], out, mx.zeros_like(out))


def prefill(
    q: mx.array,
    latent: mx.array,
    w_uk: mx.array,
    w_uv: mx.array,
    *,
    causal: bool,
    scale: float | None = None,
) -> mx.array:
    """q [B, T, H, 192], latent [B, S, 576], w_uk and w_uv [H, 128, 512] -> [B, T, H, 128].

    The softmax is fp32. MLX aligns its causal mask at the bottom right. Raises ValueError.
    """
    import mlx.core as mx

    _, T, _, _, causal, factor = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="mlx"
    )
    heads = q.transpose(0, 2, 1, 3)
    absorbed = mx.concatenate([heads[..., :NOPE] @ w_uk, heads[..., NOPE:]], axis=-1)
    out = mx.fast.scaled_dot_product_attention(
        absorbed,
        latent[:, None],
        latent[:, None, :, :LATENT],
        scale=factor,
        mask="causal" if causal and T > 1 else None,
    )
    return (out @ w_uv.transpose(0, 2, 1)).transpose(0, 2, 1, 3)
