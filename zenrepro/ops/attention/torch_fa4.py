"""FlashAttention-4 (flash-attn-4, in the CuTe DSL) as its authors publish it: a peer.

It compiles a kernel for each kind of call when it first sees one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zenrepro.ops.attention import arguments
from zenrepro.ops.installed import refusals

if TYPE_CHECKING:
    import torch

FORMATS = ("fp16", "bf16")
# It states what it takes by assertions.
_REFUSALS = (AssertionError, NotImplementedError, ValueError)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float | None = None
) -> torch.Tensor:
    """q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, Dv] -> [B, T, H, Dv] in q's dtype.

    Raises ValueError; UnsupportedError when the library refuses.
    """
    shape = arguments.check(q, k, v, causal=causal, scale=scale, formats=FORMATS, framework="torch")
    arguments.check_served(shape, q, device="cuda")
    with refusals(*_REFUSALS):
        return _out(_library().flash_attn_func(q, k, v, softmax_scale=shape.scale, causal=causal))


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
        return _out(
            _library().flash_attn_varlen_func(
                q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
                max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
                softmax_scale=shape.scale, causal=causal,
            )
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
    with refusals(*_REFUSALS):
        return _out(
            _library().flash_attn_varlen_func(
                q, k_cache, v_cache, page_table=block_table, seqused_k=cache_seqlens,
                softmax_scale=shape.scale, causal=causal,
            )
        )  # fmt: skip


def _library() -> Any:
    return importlib.import_module("flash_attn.cute")


def _out(result: Any) -> torch.Tensor:
    """Some of its versions give the log-sum-exp too."""
    out: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return out
