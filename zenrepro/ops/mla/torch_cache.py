"""The latent cache's pool as a torch tensor: allocating it, writing rows, the FP8 format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.cache import LARGEST
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, GROUP, LATENT, PAGE, ROTARY, ROW, SCALES

if TYPE_CHECKING:
    import torch


def allocate(
    pages: int, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A pool of ``pages`` pages of 64 zeroed rows: [P, 64, 576] in ``dtype``, or the FP8 format's
    uint8 [P, 64, 656] without one. Raises ValueError for fewer than one page."""
    import torch

    if pages < 1:
        raise ValueError(f"pages: wants at least one, got {pages}")
    width = FP8_ROW_BYTES if dtype is None else ROW
    # Zeros and not empty: a kernel may read rows past a sequence's end, and 0 x NaN is NaN.
    return torch.zeros(pages, PAGE, width, dtype=dtype or torch.uint8, device=device)


def append(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> None:
    """Write rows [N, 576] to slots int64 [N] (page * 64 + row) of cache [P, 64, 576 or 656].

    Quantises where the cache is FP8. A slot outside the cache is an error, or writes nothing while
    a CUDA graph is captured, when slots cannot be read. Slots must differ. Raises ValueError.
    """
    import torch

    if rows.dim() != 2 or rows.shape[1] != ROW:
        raise ValueError(f"rows: wants [N, {ROW}], got {tuple(rows.shape)}")
    if slots.dtype != torch.int64 or tuple(slots.shape) != (rows.shape[0],):
        raise ValueError(
            f"slots: wants int64 [{rows.shape[0]}], one a row, got {slots.dtype} "
            f"{tuple(slots.shape)}"
        )
    fp8 = cache.dtype == torch.uint8
    if tuple(cache.shape[1:]) != (PAGE, FP8_ROW_BYTES if fp8 else ROW) or not cache.is_contiguous():
        raise ValueError(
            f"cache: wants contiguous [P, {PAGE}, {FP8_ROW_BYTES if fp8 else ROW}], "
            f"got {tuple(cache.shape)} with strides {cache.stride()}"
        )
    for name, array in (("rows", rows), ("slots", slots)):
        if array.device != cache.device:
            raise ValueError(f"{name}: wants the cache's device {cache.device}, got {array.device}")
    if not fp8 and rows.dtype != cache.dtype:
        raise ValueError(f"rows: wants the cache's dtype {cache.dtype}, got {rows.dtype}")
    last = cache.shape[0] * PAGE - 1
    known = arguments.values(slots)
    if known is not None:
        for slot in known[(known < 0) | (known > last)][:1]:
            raise ValueError(f"slots: wants 0 to {last}, got {slot}")
    if not len(rows):
        return
    flat = cache.view(-1, cache.shape[2])
    written = quantise(rows) if fp8 else rows
    if known is None:
        # A row with a slot outside repeats the first row that has one inside.
        inside = (slots >= 0) & (slots <= last)
        first = inside.to(torch.int32).argmax()
        source = torch.where(inside, torch.arange(len(rows), device=slots.device), first)
        slots = slots[source].clamp(0, last)
        written = torch.where(inside.any(), written[source], flat[slots])
    flat[slots] = written


def quantise(rows: torch.Tensor) -> torch.Tensor:
    """Rows [..., 576] -> uint8 [..., 656], bit for bit as ``cache.quantise``."""
    import torch

    lead = rows.shape[:-1]
    groups = rows[..., :LATENT].float().unflatten(-1, (SCALES, GROUP))
    scales = groups.abs().amax(-1) / LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (groups / scales[..., None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    parts = (
        codes.reshape(*lead, LATENT).view(torch.uint8),
        scales.contiguous().view(torch.uint8),
        rows[..., LATENT:].to(torch.bfloat16).contiguous().view(torch.uint8),
    )
    return torch.cat(parts, dim=-1)


def dequantise(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [..., 656] -> rows [..., 576], products in fp32 and rounded to ``dtype`` once."""
    import torch

    lead = packed.shape[:-1]
    middle = LATENT + 4 * SCALES
    values = packed[..., :LATENT].view(torch.float8_e4m3fn).float().unflatten(-1, (SCALES, GROUP))
    scales = packed[..., LATENT:middle].contiguous().view(torch.float32)
    rotary = packed[..., middle:].contiguous().view(torch.bfloat16)
    latent = (values * scales[..., None]).reshape(*lead, LATENT)
    assert rotary.shape[-1] == ROTARY
    return torch.cat((latent.to(dtype), rotary.to(dtype)), dim=-1)
