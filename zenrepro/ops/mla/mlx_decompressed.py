"""Decompressed latent attention with mlx: rows expanded, then mx.fast's attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import LATENT, ROTARY

if TYPE_CHECKING:
    import mlx.core as mx


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

    The softmax is fp32; keys and values are rounded to q's dtype. Raises ValueError.
    """
    import mlx.core as mx

    B, T, S, H, causal, factor = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="mlx"
    )
    c = latent[:, None, :, :LATENT]
    shared = mx.broadcast_to(latent[:, None, :, LATENT:], (B, H, S, ROTARY))
    keys = mx.concatenate([c @ w_uk.transpose(0, 2, 1), shared], axis=-1)
    out = mx.fast.scaled_dot_product_attention(
        q.transpose(0, 2, 1, 3),
        keys,
        c @ w_uv.transpose(0, 2, 1),
        scale=factor,
        mask="causal" if causal and T > 1 else None,
    )
    return out.transpose(0, 2, 1, 3)
