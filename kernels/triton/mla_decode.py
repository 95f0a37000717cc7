"""Absorbed latent attention over a paged cache, split over the sequence, and the combination.

One program holds a tile of query rows (row r is token r // heads, head r % heads of one sequence)
and walks its share of the sequence's pages with a running softmax in base 2. A page's latent tile
is loaded once: all 576 columns are the key, the first 512 are the value too.

``KEYS_FIRST`` computes the transposed products (scores [keys, rows], output [values, rows]):
Hopper's matrix instruction wants 64 rows on the left, which a few heads do not fill but keys and
values do.

Sources: DeepSeek-AI 2024, DeepSeek-V2, sec. 2.1 (latent attention, absorption); Dao et al. 2023,
Flash-Decoding (split over the sequence).
"""

import triton
import triton.language as tl

LATENT = tl.constexpr(512)
ROTARY = tl.constexpr(64)
NOPE = tl.constexpr(128)
VALUE = tl.constexpr(128)
PAGE = tl.constexpr(64)
GROUP = tl.constexpr(128)  # latent columns that share one scale of the FP8 cache


@triton.jit
def e4m3_to_bf16(x):
    """uint8 of e4m3 -> bf16, exactly, by bits: for cards without FP8 units.

    Sign to the top, exponent and fraction to bf16's place; that reads the exponent with bf16's bias
    of 127 in place of 7, so the value is 2**120 times too small: one exact multiplication mends it,
    subnormal numbers included. NaN (all ones below the sign) is not told apart: caches hold none.
    """
    wide = x.to(tl.uint16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 4)
    small = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
    return (small * 1.329227995784916e36).to(tl.bfloat16)


@triton.jit
def e4m3_to_bf16_packed(x):
    """``e4m3_to_bf16`` four at a time: 9 instructions for 4 numbers (sm_80 and later)."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 low, high, lowbits, highbits, zero, factor;
        mov.b32 zero, 0;
        mov.b32 factor, 0x7B807B80;
        prmt.b32 low, $2, zero, 0x1404;
        prmt.b32 high, $2, zero, 0x3424;
        shr.u32 lowbits, low, 4;
        shr.u32 highbits, high, 4;
        and.b32 lowbits, lowbits, 0x07F007F0;
        and.b32 highbits, highbits, 0x07F007F0;
        lop3.b32 low, low, 0x80008000, lowbits, 0xEA;
        lop3.b32 high, high, 0x80008000, highbits, 0xEA;
        mov.b32 zero, 0x80008000;
        fma.rn.bf16x2 $0, low, factor, zero;
        fma.rn.bf16x2 $1, high, factor, zero;
        }
        """,
        "=r,=r,r",
        [x],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def product(a, b, acc, INTERPRETED: tl.constexpr):
    """``acc + a @ b`` in fp32. Triton's interpreter holds bf16 as bits and cannot multiply it."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def narrowed(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 -> ``dtype``, to nearest. Triton's interpreter truncates to bf16: it gets numbers whose
    lower half was rounded away before."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def page_id(block_table, tile, pages, page_limit, KEYS: tl.constexpr):
    """The page that holds ``tile``, kept inside the cache whatever the table says."""
    page = tl.load(block_table + tl.minimum(tile * KEYS // PAGE, pages - 1))
    return tl.minimum(tl.maximum(page, 0), page_limit - 1).to(tl.int64)


@triton.jit
def decode(
    q,
    cache,
    rotary,
    scales,
    block_table,
    seqlens,
    out,
    lse,
    q_batch,
    q_token,
    q_head,
    cache_page,
    cache_row,
    rotary_page,
    rotary_row,
    scales_page,
    scales_row,
    table_batch,
    out_batch,
    out_split,
    out_row,
    lse_batch,
    lse_split,
    pages,
    page_limit,
    tokens,
    heads,
    splits,
    scale_log2,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    FP8: tl.constexpr,
    PACKED: tl.constexpr,
    PARTIAL: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (row tiles, splits, batch). ``out`` is the result, or with PARTIAL fp32 parts normalised
    within their split, whose logarithms (base 2) of weight go to ``lse`` [batch, splits, rows]."""
    row_tile = tl.program_id(0)
    split = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    AXIS: tl.constexpr = 0 if KEYS_FIRST else 1  # the keys' axis of the scores

    length = tl.maximum(tl.load(seqlens + batch), 0)
    length = tl.minimum(length, pages * PAGE)
    tiles = tl.cdiv(length, KEYS)
    share = tl.cdiv(tiles, splits)
    first = tl.minimum(split * share, tiles)
    last = tl.minimum(first + share, tiles)

    row = row_tile * ROWS + tl.arange(0, ROWS)
    row_there = row < tokens * heads
    token = row // heads
    seen = length - tokens + token + 1  # keys that a row sees
    latent_column = tl.arange(0, LATENT)
    rotary_column = tl.arange(0, ROTARY)
    group_column = tl.arange(0, GROUP)
    q_rows = q + batch * q_batch + token * q_token + (row % heads) * q_head
    q_rotary = tl.load(
        q_rows[:, None] + LATENT + rotary_column[None, :], mask=row_there[:, None], other=0.0
    )
    if FP8:
        q0 = tl.load(q_rows[:, None] + group_column[None, :], mask=row_there[:, None], other=0.0)
        q1 = tl.load(
            q_rows[:, None] + GROUP + group_column[None, :], mask=row_there[:, None], other=0.0
        )
        q2 = tl.load(
            q_rows[:, None] + 2 * GROUP + group_column[None, :], mask=row_there[:, None], other=0.0
        )
        q3 = tl.load(
            q_rows[:, None] + 3 * GROUP + group_column[None, :], mask=row_there[:, None], other=0.0
        )
        acc0 = tl.zeros((GROUP, ROWS) if KEYS_FIRST else (ROWS, GROUP), tl.float32)
        acc1 = tl.zeros((GROUP, ROWS) if KEYS_FIRST else (ROWS, GROUP), tl.float32)
        acc2 = tl.zeros((GROUP, ROWS) if KEYS_FIRST else (ROWS, GROUP), tl.float32)
        acc3 = tl.zeros((GROUP, ROWS) if KEYS_FIRST else (ROWS, GROUP), tl.float32)
    else:
        q_latent = tl.load(
            q_rows[:, None] + latent_column[None, :], mask=row_there[:, None], other=0.0
        )
        acc = tl.zeros((LATENT, ROWS) if KEYS_FIRST else (ROWS, LATENT), tl.float32)

    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    table = block_table + batch * table_batch
    key_row = tl.arange(0, KEYS)
    page = page_id(table, first, pages, page_limit, KEYS)

    for tile in tl.range(first, last, num_stages=STAGES):
        key = tile * KEYS + key_row
        key_there = (key < length)[:, None]
        in_page = key % PAGE
        rotary_rows = rotary + page * rotary_page + in_page * rotary_row
        latent_rows = cache + page * cache_page + in_page * cache_row
        k_rotary = tl.load(rotary_rows[:, None] + rotary_column[None, :], mask=key_there, other=0.0)
        if FP8:
            scale_rows = scales + page * scales_page + in_page * scales_row
            s0 = tl.load(scale_rows, mask=key < length, other=0.0)
            s1 = tl.load(scale_rows + 1, mask=key < length, other=0.0)
            s2 = tl.load(scale_rows + 2, mask=key < length, other=0.0)
            s3 = tl.load(scale_rows + 3, mask=key < length, other=0.0)
            b0 = tl.load(latent_rows[:, None] + group_column[None, :], mask=key_there, other=0)
            b1 = tl.load(
                latent_rows[:, None] + GROUP + group_column[None, :], mask=key_there, other=0
            )
            b2 = tl.load(
                latent_rows[:, None] + 2 * GROUP + group_column[None, :], mask=key_there, other=0
            )
            b3 = tl.load(
                latent_rows[:, None] + 3 * GROUP + group_column[None, :], mask=key_there, other=0
            )
            if PACKED:
                k0 = e4m3_to_bf16_packed(b0)
                k1 = e4m3_to_bf16_packed(b1)
                k2 = e4m3_to_bf16_packed(b2)
                k3 = e4m3_to_bf16_packed(b3)
            else:
                k0 = e4m3_to_bf16(b0)
                k1 = e4m3_to_bf16(b1)
                k2 = e4m3_to_bf16(b2)
                k3 = e4m3_to_bf16(b3)
            # A token's scale is one number for 128 columns: it multiplies the products' result,
            # not each element, and on the way back the weights.
            if KEYS_FIRST:
                scores = product(k_rotary, q_rotary.T, None, INTERPRETED)
                scores += product(k0, q0.T, None, INTERPRETED) * s0[:, None]
                scores += product(k1, q1.T, None, INTERPRETED) * s1[:, None]
                scores += product(k2, q2.T, None, INTERPRETED) * s2[:, None]
                scores += product(k3, q3.T, None, INTERPRETED) * s3[:, None]
            else:
                scores = product(q_rotary, k_rotary.T, None, INTERPRETED)
                scores += product(q0, k0.T, None, INTERPRETED) * s0[None, :]
                scores += product(q1, k1.T, None, INTERPRETED) * s1[None, :]
                scores += product(q2, k2.T, None, INTERPRETED) * s2[None, :]
                scores += product(q3, k3.T, None, INTERPRETED) * s3[None, :]
        else:
            k_latent = tl.load(
                latent_rows[:, None] + latent_column[None, :], mask=key_there, other=0.0
            )
            if KEYS_FIRST:
                scores = product(k_rotary, q_rotary.T, None, INTERPRETED)
                scores = product(k_latent, q_latent.T, scores, INTERPRETED)
            else:
                scores = product(q_rotary, k_rotary.T, None, INTERPRETED)
                scores = product(q_latent, k_latent.T, scores, INTERPRETED)
        page = page_id(table, tile + 1, pages, page_limit, KEYS)

        visible = tl.expand_dims(key, 1 - AXIS) < tl.expand_dims(seen, AXIS)
        scores = tl.where(visible, scores * scale_log2, float("-inf"))
        raised = tl.maximum(maximum, tl.max(scores, AXIS))
        base = tl.where(raised == float("-inf"), 0.0, raised)  # a row that has seen no key yet
        weights = tl.exp2(scores - tl.expand_dims(base, AXIS))
        rescale = tl.exp2(maximum - base)
        total = total * rescale + tl.sum(weights, AXIS)
        maximum = raised
        rescale = tl.expand_dims(rescale, AXIS)
        if FP8:
            if KEYS_FIRST:
                acc0 = product(
                    k0.T,
                    narrowed(weights * s0[:, None], tl.bfloat16, INTERPRETED),
                    acc0 * rescale,
                    INTERPRETED,
                )
                acc1 = product(
                    k1.T,
                    narrowed(weights * s1[:, None], tl.bfloat16, INTERPRETED),
                    acc1 * rescale,
                    INTERPRETED,
                )
                acc2 = product(
                    k2.T,
                    narrowed(weights * s2[:, None], tl.bfloat16, INTERPRETED),
                    acc2 * rescale,
                    INTERPRETED,
                )
                acc3 = product(
                    k3.T,
                    narrowed(weights * s3[:, None], tl.bfloat16, INTERPRETED),
                    acc3 * rescale,
                    INTERPRETED,
                )
            else:
                acc0 = product(
                    narrowed(weights * s0[None, :], tl.bfloat16, INTERPRETED),
                    k0,
                    acc0 * rescale,
                    INTERPRETED,
                )
                acc1 = product(
                    narrowed(weights * s1[None, :], tl.bfloat16, INTERPRETED),
                    k1,
                    acc1 * rescale,
                    INTERPRETED,
                )
                acc2 = product(
                    narrowed(weights * s2[None, :], tl.bfloat16, INTERPRETED),
                    k2,
                    acc2 * rescale,
                    INTERPRETED,
                )
                acc3 = product(
                    narrowed(weights * s3[None, :], tl.bfloat16, INTERPRETED),
                    k3,
                    acc3 * rescale,
                    INTERPRETED,
                )
        else:
            if KEYS_FIRST:
                acc = product(
                    k_latent.T,
                    narrowed(weights, k_latent.dtype, INTERPRETED),
                    acc * rescale,
                    INTERPRETED,
                )
            else:
                acc = product(
                    narrowed(weights, k_latent.dtype, INTERPRETED),
                    k_latent,
                    acc * rescale,
                    INTERPRETED,
                )

    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
    inverse = tl.expand_dims(tl.where(total > 0.0, 1.0 / total, 0.0), AXIS)
    place = out + batch * out_batch + split * out_split
    rows = tl.expand_dims(place + row.to(tl.int64) * out_row, AXIS)
    there = tl.expand_dims(row_there, AXIS)
    if PARTIAL:
        tl.store(
            lse + batch * lse_batch + split * lse_split + row,
            maximum + tl.log2(total),
            mask=row_there,
        )
        there = there & (last > first)
    if FP8:
        column = tl.expand_dims(group_column, 1 - AXIS)
        tl.store(
            rows + column, narrowed(acc0 * inverse, out.dtype.element_ty, INTERPRETED), mask=there
        )
        tl.store(
            rows + GROUP + column,
            narrowed(acc1 * inverse, out.dtype.element_ty, INTERPRETED),
            mask=there,
        )
        tl.store(
            rows + 2 * GROUP + column,
            narrowed(acc2 * inverse, out.dtype.element_ty, INTERPRETED),
            mask=there,
        )
        tl.store(
            rows + 3 * GROUP + column,
            narrowed(acc3 * inverse, out.dtype.element_ty, INTERPRETED),
            mask=there,
        )
    else:
        column = tl.expand_dims(latent_column, 1 - AXIS)
        tl.store(
            rows + column, narrowed(acc * inverse, out.dtype.element_ty, INTERPRETED), mask=there
        )


@triton.jit
def combine(
    parts,
    lse,
    out,
    parts_batch,
    parts_split,
    parts_row,
    lse_batch,
    lse_split,
    out_batch,
    out_row,
    splits,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (rows, batch, 512 / COLUMNS): one row's parts, weighted by what each split saw.

    The order of the sum is the splits' order, whatever ran first. SPLITS is a power of two that
    holds them all.
    """
    row = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    every = tl.arange(0, SPLITS)
    seen = lse + batch * lse_batch + row
    weight = tl.load(seen + every * lse_split, mask=every < splits, other=float("-inf"))
    highest = tl.max(weight, 0)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.sum(tl.exp2(weight - highest), 0)
    acc = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, splits, CHUNK):
        split = start + tl.arange(0, CHUNK)
        share = tl.load(seen + split * lse_split, mask=split < splits, other=float("-inf"))
        share = tl.exp2(share - highest)
        # An empty split wrote no part: what lies there must not be read.
        part = tl.load(
            parts
            + batch * parts_batch
            + row * parts_row
            + (split * parts_split)[:, None]
            + column[None, :],
            mask=(share > 0.0)[:, None],
            other=0.0,
        )
        acc += tl.sum(part * share[:, None], 0)
    acc = tl.where(total > 0.0, acc / total, 0.0)
    tl.store(
        out + batch * out_batch + row * out_row + column,
        narrowed(acc, out.dtype.element_ty, INTERPRETED),
    )


@triton.jit
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


@triton.jit
def combine_project(
    parts,
    lse,
    w_uv,
    out,
    parts_batch,
    parts_split,
    parts_row,
    lse_batch,
    lse_split,
    uv_head,
    uv_row,
    rows,
    tokens,
    heads,
    splits,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTIAL: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (heads, row tiles): ``combine``, then times W_UV[h] transposed -> out [B x T, H, 128].

    Rows as in ``absorb``. Without PARTIAL there is one part, already weighted.
    """
    head = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_there = row < rows
    batch = (row // tokens).to(tl.int64)
    part_row = (row % tokens) * heads + head
    value_column = tl.arange(0, VALUE)
    chunk_column = tl.arange(0, CHUNK)
    part_rows = parts + batch * parts_batch + part_row * parts_row
    seen = lse + batch * lse_batch + part_row
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.full((ROWS,), 1.0, tl.float32)
    if PARTIAL:
        for split in range(splits):
            share = tl.load(seen + split * lse_split, mask=row_there, other=float("-inf"))
            highest = tl.maximum(highest, share)
        highest = tl.where(highest == float("-inf"), 0.0, highest)
        total = tl.zeros((ROWS,), tl.float32)
        for split in range(splits):
            share = tl.load(seen + split * lse_split, mask=row_there, other=float("-inf"))
            total += tl.exp2(share - highest)
    inverse = tl.where(total > 0.0, 1.0 / total, 0.0)
    result = tl.zeros((ROWS, VALUE), tl.float32)
    for start in range(0, LATENT, CHUNK):
        weight = tl.load(
            w_uv + head * uv_head + value_column[:, None] * uv_row + start + chunk_column[None, :]
        )
        acc = tl.zeros((ROWS, CHUNK), tl.float32)
        for split in range(splits):
            there = row_there
            if PARTIAL:
                share = tl.load(seen + split * lse_split, mask=row_there, other=float("-inf"))
                share = tl.exp2(share - highest) * inverse
                there = share > 0.0  # an empty split wrote no part
            part = tl.load(
                part_rows[:, None] + split * parts_split + start + chunk_column[None, :],
                mask=there[:, None],
                other=0.0,
            ).to(tl.float32)
            acc += part * share[:, None] if PARTIAL else part
        result = product(narrowed(acc, weight.dtype, INTERPRETED), weight.T, result, INTERPRETED)
    tl.store(
        out + ((row.to(tl.int64) * heads + head) * VALUE)[:, None] + value_column[None, :],
        narrowed(result, out.dtype.element_ty, INTERPRETED),
        mask=row_there[:, None],
    )
