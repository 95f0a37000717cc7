"""DeepSeek's FlashMLA: the peer of latent decode on Hopper.

Looked for in this order: the shared library that the variable ZENREPRO_FLASHMLA_LIBRARY names, the
package ``flash_mla``, the library inside an installed (or just unpacked) ``vllm``. Its tile
scheduling and the combination of splits are launches of their own and part of each call; a serving
engine keeps the former for all layers of a step.

An FP8 cache is served by its sparse kernel, the one that reads rows of 656 bytes, told to attend
to every row. The row numbers that it wants are made in each call, as the scheduling is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.installed import refusals
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import LATENT, PAGE

if TYPE_CHECKING:
    import torch

VARIABLE = "ZENREPRO_FLASHMLA_LIBRARY"
# What makes a row available: ``Needs.one_of``.
PLACES = (f"${VARIABLE}", "flash_mla", "vllm._flashmla_C")
# The sparse kernel takes its row numbers in blocks of this many.
_ROWS = 64


def decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """q [B, T, H, 576], cache [P, 64, 576] or uint8 [P, 64, 656], block_table int32 [B, pages],
    cache_seqlens int32 [B] -> [B, T, H, 512], bf16 (fp16 without FP8).

    Raises ValueError; UnsupportedError where the library refuses.
    """
    shape = arguments.check_decode(
        q,
        cache,
        block_table=block_table,
        cache_seqlens=cache_seqlens,
        scale=scale,
        framework="torch",
    )
    if not q.is_cuda:
        raise ValueError(f"q: wants a cuda tensor, got one on {q.device}")
    # Its checks run before it launches anything.
    with refusals(RuntimeError, NotImplementedError):
        if not shape.fp8:
            return _dense()(q, cache, cache_seqlens, block_table, shape.scale)
        rows = row_numbers(shape.query_len, shape.pages, block_table, cache_seqlens)
        return _sparse()(q, cache, rows, shape.scale)


def row_numbers(
    query_len: int, pages: int, block_table: torch.Tensor, cache_seqlens: torch.Tensor
) -> torch.Tensor:
    """[B, T, rows] int32: the cache's rows that each query sees, -1 for those that it does not."""
    import torch

    places = torch.arange(PAGE, dtype=torch.int32, device=block_table.device)
    rows = (block_table.clamp(0, pages - 1) * PAGE)[..., None] + places  # [B, pages, 64]
    rows = rows.flatten(1)[:, None]
    last = torch.arange(1 - query_len, 1, dtype=torch.int32, device=block_table.device)
    seen = (cache_seqlens[:, None] + last)[..., None]  # [B, T, 1]
    order = torch.arange(rows.shape[-1], dtype=torch.int32, device=block_table.device)
    return torch.where(order < seen, rows, -1).contiguous()


@functools.cache
def _dense() -> Callable[..., torch.Tensor]:
    package = _load()
    if package is not None:

        def by_package(q: Any, cache: Any, lengths: Any, table: Any, scale: float) -> torch.Tensor:
            plan, splits = package.get_mla_metadata(lengths, q.shape[1] * q.shape[2], 1)
            out, _ = package.flash_mla_with_kvcache(
                q, cache[:, :, None], table, lengths, LATENT, plan, splits, scale, causal=True
            )
            return out  # type: ignore[no-any-return]

        return by_package
    import torch

    def by_operator(q: Any, cache: Any, lengths: Any, table: Any, scale: float) -> torch.Tensor:
        operator = torch.ops._flashmla_C.dense_decode_fwd
        out = operator(q, cache[:, :, None], LATENT, lengths, table, scale, True, None, None, None)
        return out[0]  # type: ignore[no-any-return]

    return by_operator


@functools.cache
def _sparse() -> Callable[..., torch.Tensor]:
    package = _load()
    if package is not None:

        def by_package(q: Any, cache: Any, rows: Any, scale: float) -> torch.Tensor:
            plan, splits = package.get_mla_metadata()
            out, _ = package.flash_mla_with_kvcache(
                q, cache[:, :, None], None, None, LATENT, plan, splits, scale,
                is_fp8_kvcache=True, indices=rows,
            )  # fmt: skip
            return out  # type: ignore[no-any-return]

        return by_package
    import torch

    def by_operator(q: Any, cache: Any, rows: Any, scale: float) -> torch.Tensor:
        operator = torch.ops._flashmla_C.sparse_decode_fwd
        given = (q, cache[:, :, None], rows, None, None, None, None, None, None, None)
        return operator(*given, LATENT, scale, None)[0]  # type: ignore[no-any-return]

    return by_operator


@functools.cache
def _load() -> Any:
    """Load the library; the package where there is one, else None: its operators are called."""
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise UnsupportedError(f"{VARIABLE} names {named}, which is not a file")
        _load_library(named)
        return None
    if importlib.util.find_spec("flash_mla") is not None:
        return importlib.import_module("flash_mla")
    vllm = importlib.util.find_spec("vllm")  # found, not imported: it would bring all of vLLM
    for folder in (vllm.submodule_search_locations or []) if vllm is not None else []:
        library = Path(folder) / "_flashmla_C.abi3.so"
        if library.is_file():
            _load_library(str(library))
            return None
    raise UnsupportedError(f"no FlashMLA in any of {', '.join(PLACES)}")


def _load_library(path: str) -> None:
    import torch

    torch.ops.load_library(path)
