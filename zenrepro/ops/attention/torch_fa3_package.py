"""FlashAttention-3 as its authors (or vLLM) build it: the peer on Hopper.

Whatever scheduling it wants on the device is part of each call, as for a caller with one layer;
a serving engine computes it once for all layers of a step (``fa3_library.scheduler_metadata``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.attention import arguments, fa3_library

if TYPE_CHECKING:
    import torch

FORMATS = ("fp16", "bf16", "fp8_e4m3")


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype; bf16 from
    fp8_e4m3.

    Raises ValueError; UnsupportedError when the library refuses.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, formats=FORMATS, framework="torch")
    arguments.check_served(shape, q, device="cuda")
    return fa3_library.forward(q, k, v, scale=shape.scale, causal=causal)


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
    return fa3_library.forward(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, scale=shape.scale, causal=causal,
    )  # fmt: skip


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
    return fa3_library.forward(
        q, k_cache, v_cache, page_table=block_table, seqused_k=cache_seqlens, scale=shape.scale,
        causal=causal,
    )  # fmt: skip
