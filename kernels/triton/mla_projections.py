"""The up-projections of latent attention around an absorbed decode: one product a head each.

``absorb`` also lays the query out as the attention wants it. Source: DeepSeek-AI 2024, DeepSeek-V2,
sec. 2.1 (absorption).
"""

import triton
import triton.language as tl

from zenrepro.ops.device_code import triton_module

LATENT = tl.constexpr(512)
ROTARY = tl.constexpr(64)
NOPE = tl.constexpr(128)
VALUE = tl.constexpr(128)
narrowed, product = (getattr(triton_module("arithmetic"), name) for name in ("narrowed", "product"))


@triton.jit(do_not_specialize=["rows", "tokens", "heads"])
def absorb(
    q,
    w_uk,
    out,
    q_batch,
    q_token,
    q_head,
    uk_head,
    uk_row,
    rows,
    tokens,
    heads,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (heads, row tiles, 512 / COLUMNS): q [B, T, H, 192] -> absorbed [B x T, H, 576].

    The first 128 columns times W_UK[h], the rotary 64 as they are. Row r is token r % tokens of
    sequence r // tokens: a tile of many sequences reads its head's weights once.
    """
    head = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_there = (row < rows)[:, None]
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    nope_column = tl.arange(0, NOPE)
    rotary_column = tl.arange(0, ROTARY)
    q_rows = q + (row // tokens).to(tl.int64) * q_batch + (row % tokens) * q_token + head * q_head
    nope = tl.load(q_rows[:, None] + nope_column[None, :], mask=row_there, other=0.0)
    weight = tl.load(w_uk + head * uk_head + nope_column[:, None] * uk_row + column[None, :])
    absorbed = product(nope, weight, None, INTERPRETED)
    out_rows = (out + (row.to(tl.int64) * heads + head) * (LATENT + ROTARY))[:, None]
    tl.store(
        out_rows + column[None, :],
        narrowed(absorbed, out.dtype.element_ty, INTERPRETED),
        mask=row_there,
    )
    if tl.program_id(2) == 0:
        rotary = tl.load(q_rows[:, None] + NOPE + rotary_column[None, :], mask=row_there, other=0.0)
        tl.store(out_rows + LATENT + rotary_column[None, :], rotary, mask=row_there)


@triton.jit(do_not_specialize=["rows", "heads"])
def project(
    latent,
    w_uv,
    out,
    uv_head,
    uv_row,
    rows,
    heads,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (heads, row tiles, 128 / COLUMNS): latent [rows, H, 512] times W_UV[h] transposed -> out
    [rows, H, 128]."""
    head = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_there = (row < rows)[:, None]
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    latent_column = tl.arange(0, LATENT)
    place = row.to(tl.int64) * heads + head
    weight = tl.load(w_uv + head * uv_head + column[:, None] * uv_row + latent_column[None, :])
    summed = tl.load(
        latent + place[:, None] * LATENT + latent_column[None, :], mask=row_there, other=0.0
    )
    projected = product(summed, weight.T, None, INTERPRETED)
    tl.store(
        out + place[:, None] * VALUE + column[None, :],
        narrowed(projected, out.dtype.element_ty, INTERPRETED),
        mask=row_there,
    )
