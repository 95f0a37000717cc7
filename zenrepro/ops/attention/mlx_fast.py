"""mx.fast.scaled_dot_product_attention: the library's own fused kernel where it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments

if TYPE_CHECKING:
    import mlx.core as mx


def attention(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool, scale: float | None = None
) -> mx.array:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    The softmax is fp32. MLX aligns its causal mask at the bottom right. Raises ValueError.
    """
    import mlx.core as mx

    shape = arguments.check(q, k, v, causal=causal, scale=scale)
    out = mx.fast.scaled_dot_product_attention(
        q.transpose(0, 2, 1, 3),
        k.transpose(0, 2, 1, 3),
        v.transpose(0, 2, 1, 3),
        scale=shape.scale,
        mask="causal" if causal and shape.query_len > 1 else None,
    )
    return out.transpose(0, 2, 1, 3)
