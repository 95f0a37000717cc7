"""The up-projections fused into attention: into the tile loop (prefill), at its ends (decode).

The report fuses "projection into the tile computation". ``prefill`` is that, word for word, at any
number of queries: keys and values of a tile are made from the latent inside the loop.
``decode_projected`` is what the algebra makes of it: W_UK moves into the query and W_UV behind the
weighted sum, each one a product over the batch's tokens and not over the cache, in a kernel of its
own. W_UV inside the combination of the parts was slower than torch.bmm behind it (88 against 54 µs
for 8 sequences of 4096 on an H200, 24 heads): one program a head cannot read all parts at the
memory's rate. ``forms`` counts what each form costs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from zenrepro.ops import device_code
from zenrepro.ops.mla import arguments, torch_triton
from zenrepro.ops.mla.sizes import LATENT, QUERY, ROW, VALUE


class Configuration(NamedTuple):
    """How the prefill kernel is cut: queries and keys a tile, latent columns at a time."""

    rows: int
    keys: int
    chunk: int
    warps: int
    stages: int


# By compute capability: (most queries, how to cut), smallest first; the last serves all. 128 rows,
# since each tile of rows projects every row that it sees anew.
AMPERE = ((16, Configuration(16, 64, 64, 8, 3)), (0, Configuration(128, 64, 64, 8, 2)))
SMALL_SHARED = ((16, Configuration(16, 64, 64, 8, 2)), (0, Configuration(128, 64, 64, 8, 2)))
HOPPER = ((16, Configuration(16, 64, 64, 8, 3)), (0, Configuration(128, 64, 64, 8, 3)))
CONFIGURATIONS: dict[tuple[int, int], tuple[tuple[int, Configuration], ...]] = {
    (8, 0): AMPERE, (8, 6): SMALL_SHARED, (8, 7): AMPERE, (8, 9): SMALL_SHARED, (9, 0): HOPPER,
    (10, 0): AMPERE, (10, 3): AMPERE, (12, 0): SMALL_SHARED, (12, 1): SMALL_SHARED,
}  # fmt: skip


def prefill(
    q: torch.Tensor,
    latent: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    *,
    causal: bool,
    scale: float | None = None,
) -> torch.Tensor:
    """q [B, T, H, 192], latent [B, S, 576], w_uk and w_uv [H, 128, 512] -> [B, T, H, 128].

    bf16 or fp16, products and sums in fp32, keys and values rounded once, bit-identical run to run.
    Causal is aligned at the bottom right. Raises ValueError for arguments that do not fit.
    """
    shape = arguments.check_prefill(
        q, latent, w_uk, w_uv, causal=causal, scale=scale, framework="torch"
    )
    _check_arrays({"q": q, "latent": latent, "w_uk": w_uk, "w_uv": w_uv})
    _check_device(q)
    capability, _ = torch_triton.machine(q.device)
    table = CONFIGURATIONS.get(capability, SMALL_SHARED)
    cut = next((cut for most, cut in table if shape.query_len <= most), table[-1][1])
    with torch_triton.on(q.device):
        return launch_prefill(q, latent, w_uk, w_uv, causal, shape.scale, cut)


def launch_prefill(
    q: torch.Tensor,
    latent: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    causal: bool,
    scale: float,
    cut: Configuration,
) -> torch.Tensor:
    """The kernel on checked arguments."""
    batch, queries, heads, _ = q.shape
    out = q.new_empty(batch, queries, heads, VALUE)
    kernels = device_code.triton_module("mla_prefill")
    kernels.prefill[(heads, -(-queries // cut.rows), batch)](
        q, latent, w_uk, w_uv, out,
        *q.stride()[:3], *latent.stride()[:2], *w_uk.stride()[:2], *w_uv.stride()[:2],
        *out.stride()[:3], queries, latent.shape[1], scale * torch_triton.LOG2_E,
        ROWS=cut.rows, KEYS=cut.keys, CHUNK=cut.chunk, CAUSAL=causal, STAGES=cut.stages,
        INTERPRETED=torch_triton.interpreted(), num_warps=cut.warps,
    )  # fmt: skip
    return out


def decode_projected(
    q: torch.Tensor,
    cache: torch.Tensor,
    w_uk: torch.Tensor,
    w_uv: torch.Tensor,
    *,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """q [B, T, H, 192] as projected, cache [P, 64, 576] or uint8 [P, 64, 656], w_uk and w_uv
    [H, 128, 512], block_table int32 [B, pages], cache_seqlens int32 [B] -> [B, T, H, 128].

    ``torch_triton.decode`` between its two projections, in four kernels: absorb, attend, combine,
    project. The absorbed query and the latent output are rounded once each. Raises ValueError.
    """
    _check_arrays({"q": q, "w_uk": w_uk, "w_uv": w_uv})
    if q.ndim != 4 or q.shape[3] != QUERY:
        raise ValueError(f"q: wants [B, T, H, {QUERY}], got {tuple(q.shape)}")
    batch, tokens, heads, _ = q.shape
    for name, weight in (("w_uk", w_uk), ("w_uv", w_uv)):
        if tuple(weight.shape) != (heads, VALUE, LATENT):
            raise ValueError(
                f"{name}: wants [H, {VALUE}, {LATENT}] with q's H = {heads}, "
                f"got {tuple(weight.shape)}"
            )
        if weight.dtype != q.dtype or weight.device != q.device:
            raise ValueError(
                f"{name}: wants {q.dtype} on {q.device} as q, got {weight.dtype} on {weight.device}"
            )
    _check_device(q)
    absorbed = q.new_empty(batch, tokens, heads, ROW)
    shape = torch_triton.check(absorbed, cache, block_table, cache_seqlens, scale)
    plan = torch_triton.chosen(shape, *torch_triton.machine(q.device))
    with torch_triton.on(q.device):
        absorb(q, w_uk, absorbed)
        latent = torch_triton.launch(
            absorbed, cache, block_table, cache_seqlens, shape.scale, *plan
        )
        return project(latent, w_uv)


def absorb(q: torch.Tensor, w_uk: torch.Tensor, out: torch.Tensor) -> None:
    """q [B, T, H, 192], w_uk [H, 128, 512] -> out [B, T, H, 576], contiguous: W_UK in the query."""
    kernels = device_code.triton_module("mla_projections")
    batch, tokens, heads, _ = q.shape
    rows, columns = row_tile(batch * tokens), 128
    kernels.absorb[(heads, -(-batch * tokens // rows), LATENT // columns)](
        q, w_uk, out, *q.stride()[:3], *w_uk.stride()[:2], batch * tokens, tokens, heads,
        ROWS=rows, COLUMNS=columns, INTERPRETED=torch_triton.interpreted(), num_warps=4,
    )  # fmt: skip


def project(latent: torch.Tensor, w_uv: torch.Tensor) -> torch.Tensor:
    """latent [B, T, H, 512], contiguous, w_uv [H, 128, 512] -> [B, T, H, 128]."""
    kernels = device_code.triton_module("mla_projections")
    batch, tokens, heads, _ = latent.shape
    out = w_uv.new_empty(batch, tokens, heads, VALUE)
    rows, columns = row_tile(batch * tokens), 32
    kernels.project[(heads, -(-batch * tokens // rows), VALUE // columns)](
        latent, w_uv, out, *w_uv.stride()[:2], batch * tokens, heads,
        ROWS=rows, COLUMNS=columns, INTERPRETED=torch_triton.interpreted(), num_warps=4,
    )  # fmt: skip
    return out


def row_tile(rows: int) -> int:
    """Rows that share a reading of a head's weights: all of a small batch's."""
    return 16 if rows <= 16 else 64


def _check_arrays(given: dict[str, torch.Tensor]) -> None:
    for name, array in given.items():
        if not isinstance(array, torch.Tensor):
            raise ValueError(f"{name}: wants a tensor, got {type(array).__name__}")
        if array.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"{name}: wants bfloat16 or float16, got {array.dtype}")
        if array.ndim and array.stride(-1) != 1:
            raise ValueError(
                f"{name}: wants its last dimension without gaps, got strides {array.stride()}"
            )


def _check_device(q: torch.Tensor) -> None:
    if not q.is_cuda and not torch_triton.interpreted():
        raise ValueError(f"q: wants a CUDA tensor, got one on {q.device}")
