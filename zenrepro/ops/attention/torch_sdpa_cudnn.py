"""torch scaled_dot_product_attention, cudnn backend: cuDNN's fused attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import torch_sdpa

if TYPE_CHECKING:
    import torch


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Accumulates in fp32. Raises ValueError; UnsupportedError when torch refuses this backend.
    """
    return torch_sdpa.attention("CUDNN_ATTENTION", q, k, v, causal=causal, scale=scale)
