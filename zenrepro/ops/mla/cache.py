"""The paged cache of latent rows: pages of 64 rows, who owns them, and what a row looks like.

Nothing here needs a framework: the pool itself is an array of the caller's framework, and
``torch_cache``, ``jax_cache`` and ``mlx_cache`` write rows into one. A row is 576 numbers of one
dtype, or 656 bytes: 512 latent numbers in FP8 e4m3 (1-4-3 bits, largest 448, no infinity;
Micikevicius et al. 2022, arXiv 2209.05433), 4 fp32 scales, one for each 128 of them, 64 rotary
numbers in bf16. Little-endian throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, GROUP, LATENT, PAGE, ROTARY, ROW, SCALES
from zenrepro.ops.precision import rounded

LARGEST = 448.0  # of e4m3


class Pages:
    """Which pages of a pool each sequence holds, and how many rows of them it has filled."""

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise ValueError(f"pages: wants at least one, got {pages}")
        self._free = list(range(pages - 1, -1, -1))  # the lowest is taken first
        self._held: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def append(self, sequence: int, tokens: int) -> NDArray[np.int64]:
        """Slots of the next ``tokens`` rows of a sequence, new or known: page * 64 + row.

        Takes pages as they are needed. Raises MemoryError, having taken none, when they run out,
        and ValueError for fewer than one token.
        """
        if tokens < 1:
            raise ValueError(f"tokens: wants at least one, got {tokens}")
        held, length = self._held.get(sequence, []), self._lengths.get(sequence, 0)
        wanted = -(-(length + tokens) // PAGE) - len(held)
        if wanted > len(self._free):
            raise MemoryError(
                f"sequence {sequence} wants {wanted} more pages of {PAGE} rows, "
                f"{len(self._free)} are free"
            )
        held = held + [self._free.pop() for _ in range(wanted)]
        self._held[sequence], self._lengths[sequence] = held, length + tokens
        rows = np.arange(length, length + tokens)
        return np.asarray(held, np.int64)[rows // PAGE] * PAGE + rows % PAGE

    def shorten(self, sequence: int, length: int) -> None:
        """Drop the rows from ``length`` on, as when drafted tokens are rejected, and their pages.

        Raises ValueError for a sequence that is not there or is not that long.
        """
        have = self._lengths.get(sequence)
        if have is None or not 0 <= length <= have:
            raise ValueError(f"length: sequence {sequence} has {have} rows, got {length}")
        keep = -(-length // PAGE)
        self._free += reversed(self._held[sequence][keep:])
        del self._held[sequence][keep:]
        self._lengths[sequence] = length

    def release(self, sequence: int) -> None:
        """Give all of a sequence's pages back. Raises ValueError for one that is not there."""
        self.shorten(sequence, 0)
        del self._held[sequence], self._lengths[sequence]

    def block_table(self, sequences: Sequence[int], width: int | None = None) -> NDArray[np.int32]:
        """int32 [B, width] of the sequences' pages, -1 where there is none.

        ``width`` defaults to the longest's pages. Raises ValueError when they do not fit.
        """
        held = [self._held[sequence] for sequence in sequences]
        longest = max(1, *(len(pages) for pages in held))
        if width is not None and width < longest:
            raise ValueError(f"width: wants at least {longest} pages, got {width}")
        out = np.full((len(held), width or longest), -1, np.int32)
        for b, pages in enumerate(held):
            out[b, : len(pages)] = pages
        return out

    def lengths(self, sequences: Sequence[int]) -> NDArray[np.int32]:
        """int32 [B]: rows of each sequence."""
        return np.array([self._lengths[sequence] for sequence in sequences], np.int32)


def quantise(rows: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Latent rows [..., 576] -> [..., 656] bytes of the FP8 format.

    The scale of a group is its largest magnitude / 448, 1 for a group of zeros, in fp32.
    Raises ValueError for another width.
    """
    if rows.shape[-1] != ROW:
        raise ValueError(f"rows: wants width {ROW}, got {rows.shape[-1]}")
    wide = rows.astype(np.float32)
    groups = wide[..., :LATENT].reshape(*rows.shape[:-1], SCALES, GROUP)
    scales = np.abs(groups).max(-1) / np.float32(LARGEST)
    scales = np.where(scales > 0, scales, np.float32(1)).astype("<f4")
    codes = encode(groups / scales[..., None])
    out = np.empty((*rows.shape[:-1], FP8_ROW_BYTES), np.uint8)
    out[..., :LATENT] = codes.reshape(*rows.shape[:-1], LATENT)
    out[..., LATENT : LATENT + 4 * SCALES] = np.ascontiguousarray(scales).view(np.uint8)
    bits = np.ascontiguousarray(rounded(wide[..., LATENT:], "bf16")).view(np.uint32) >> 16
    out[..., LATENT + 4 * SCALES :] = bits.astype("<u2").view(np.uint8)
    return out


def dequantise(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[..., 656] bytes of the FP8 format -> latent rows fp32 [..., 576]; exact but for the fp32
    product of a number and its scale. Raises ValueError for another width."""
    if packed.shape[-1] != FP8_ROW_BYTES:
        raise ValueError(f"packed: wants width {FP8_ROW_BYTES}, got {packed.shape[-1]}")
    lead = packed.shape[:-1]
    values = decode(packed[..., :LATENT]).reshape(*lead, SCALES, GROUP)
    scales = np.ascontiguousarray(packed[..., LATENT : LATENT + 4 * SCALES]).view("<f4")
    bits = np.ascontiguousarray(packed[..., LATENT + 4 * SCALES :]).view("<u2")
    out = np.empty((*lead, ROW), np.float32)
    out[..., :LATENT] = (values * scales[..., None]).reshape(*lead, LATENT)
    out[..., LATENT:] = (bits.astype(np.uint32) << 16).view(np.float32).reshape(*lead, ROTARY)
    return out


def _table() -> NDArray[np.float32]:
    """The values of the 128 codes without a sign; the last is NaN."""
    code = np.arange(128)
    exponent, fraction = code >> 3, (code & 7) / 8
    normal = (1 + fraction) * 2.0 ** (exponent - 7.0)
    out = np.where(exponent > 0, normal, fraction * 2.0**-6).astype(np.float32)
    out[127] = np.nan
    return out


_VALUES = _table()
_MIDDLES = ((_VALUES[:126].astype(np.float64) + _VALUES[1:127]) / 2).astype(np.float32)  # exact


def encode(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """e4m3 codes, to nearest, ties to even; beyond 448 is 448, NaN is NaN."""
    wide = values.astype(np.float32)
    size = np.minimum(np.abs(wide), np.float32(LARGEST))
    low = np.searchsorted(_MIDDLES, size, side="left")
    high = np.searchsorted(_MIDDLES, size, side="right")  # another only on a tie
    code = np.where(low % 2 == 0, low, high)
    code = np.where(np.isnan(wide), 127, code)
    return (code | (np.signbit(wide).astype(np.int64) << 7)).astype(np.uint8)


def decode(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers of e4m3 codes."""
    out: NDArray[np.float32] = _VALUES[codes & 127]
    return np.where(codes & 128, -out, out)
