"""One way to call torch's scaled_dot_product_attention with exactly one of its backends."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from zenrepro.ops.attention import arguments
from zenrepro.ops.entry import UnsupportedError

if TYPE_CHECKING:
    import torch

# How torch and cuDNN say that a kernel does not take these arguments.
_REFUSALS = ("No available kernel", "No viable backend", "No valid execution plans")


def attention(
    backend: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """[B, T, H, D] in, [B, T, H, Dv] out, by ``SDPBackend.<backend>`` and no other.

    Raises ValueError for wrong arguments and UnsupportedError with torch's own reasons when the
    backend refuses them.
    """
    from torch.nn.attention import SDPBackend

    shape = arguments.check(q, k, v, causal=causal, scale=scale, framework="torch")
    choice = getattr(SDPBackend, backend)
    given = _arguments(q, shape, causal)
    try:
        return _call(choice, q, k, v, given)
    except RuntimeError as error:
        if not any(words in str(error) for words in _REFUSALS):
            raise
        raise UnsupportedError(_reasons(choice, q, k, v, given)) from error


def _arguments(q: torch.Tensor, shape: arguments.Shape, causal: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"scale": shape.scale, "enable_gqa": shape.heads != shape.kv_heads}
    if not causal or shape.query_len == 1:  # one query, aligned at the bottom, sees every key
        return given
    if shape.query_len == shape.cache_len:
        return given | {"is_causal": True}
    # `is_causal` aligns at the top left. The bias object reaches the kernels' own bottom-right
    # masks where there are any; on the CPU a plain mask does as well.
    import torch
    from torch.nn.attention.bias import causal_lower_right

    if q.is_cuda and not given["enable_gqa"]:
        return given | {"attn_mask": causal_lower_right(shape.query_len, shape.cache_len)}
    seen = torch.ones(shape.query_len, shape.cache_len, dtype=torch.bool, device=q.device)
    return given | {"attn_mask": seen.tril(shape.cache_len - shape.query_len)}


def _call(
    choice: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: dict[str, Any]
) -> torch.Tensor:
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    with sdpa_kernel([choice]):
        out = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **given
        )
    return out.transpose(1, 2)


def _reasons(
    choice: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: dict[str, Any]
) -> str:
    """Torch prints why it refuses as warnings: ask again and collect them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _call(choice, q, k, v, given)
        except RuntimeError as error:
            said = [str(warning.message).split("(Triggered")[0].strip() for warning in caught]
            hidden = ("not used because", "runtime disabled")  # headings; the backends not asked
            useful = [text for text in said if not any(words in text for words in hidden)]
            return " ".join(" ".join(useful or [str(error)]).split())
    return "torch refused it once and took it the second time"
