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
PAIRS = tl.constexpr(64)  # of latent columns that share one scale of the FP8 cache


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
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def e4m3_to_bf16(x):
    """uint32 with an e4m3 number in its uppermost byte -> bf16 of that number, exactly.

    Sign stays on top, exponent and fraction go to fp32's place; that reads the exponent with fp32's
    bias of 127 in place of 7, so the number is 2**120 too small: one exact product mends it,
    subnormal numbers included. NaN (all ones below the sign) reads as 480: caches hold none.
    """
    bits = (x & 0x80000000) | ((x >> 4) & 0x07F00000)
    return (bits.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(tl.bfloat16)


@triton.jit
def e4m3_pairs(x, PACKED: tl.constexpr):
    """uint16 of two e4m3 numbers -> bf16 of the lower, bf16 of the upper byte; both exact.

    For cards without FP8 units, and for Hopper, which cannot go from e4m3 to bf16 directly. PACKED
    does ``e4m3_to_bf16`` in bf16's place, two pairs at a time in 9 instructions, 2.25 a number.
    """
    if PACKED:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 lower, upper, minus_zero, factor;
            mov.b32 minus_zero, 0x80008000;
            mov.b32 factor, 0x7B807B80;
            shl.b32 lower, $2, 8;
            shr.u32 upper, $2, 4;
            and.b32 upper, upper, 0x07F007F0;
            lop3.b32 upper, $2, 0x80008000, upper, 0xEA;
            fma.rn.bf16x2 $1, upper, factor, minus_zero;
            shr.u32 upper, lower, 4;
            and.b32 upper, upper, 0x07F007F0;
            lop3.b32 lower, lower, 0x80008000, upper, 0xEA;
            fma.rn.bf16x2 $0, lower, factor, minus_zero;
            }
            """,
            "=&r,=&r,r",
            [x],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        wide = x.to(tl.uint32)
        low = e4m3_to_bf16(wide << 24)
        high = e4m3_to_bf16((wide & 0xFF00) << 16)
    return low, high


@triton.jit
def page_id(block_table, tile, pages, page_limit, KEYS: tl.constexpr):
    """The page that holds ``tile``, kept inside the cache whatever the table says."""
    page = tl.load(block_table + tl.minimum(tile * KEYS // PAGE, pages - 1))
    return tl.minimum(tl.maximum(page, 0), page_limit - 1).to(tl.int64)


@triton.jit
def scored(query, keys, acc, KEYS_FIRST: tl.constexpr, INTERPRETED: tl.constexpr):
    """``acc`` plus the products of query rows and keys: [rows, keys], or [keys, rows]."""
    if KEYS_FIRST:
        acc = product(keys, query.T, acc, INTERPRETED)
    else:
        acc = product(query, keys.T, acc, INTERPRETED)
    return acc


@triton.jit
def summed(weights, values, acc, KEYS_FIRST: tl.constexpr, INTERPRETED: tl.constexpr):
    """``acc`` plus the weighted sum of values: [rows, columns], or [columns, rows]."""
    weights = narrowed(weights, values.dtype, INTERPRETED)
    if KEYS_FIRST:
        acc = product(values.T, weights, acc, INTERPRETED)
    else:
        acc = product(weights, values, acc, INTERPRETED)
    return acc


@triton.jit
def softmax_step(scores, visible, maximum, total, scale_log2, AXIS: tl.constexpr):
    """One tile of the running softmax in base 2: weights, and by what earlier sums shrink."""
    scores = tl.where(visible, scores * scale_log2, float("-inf"))
    raised = tl.maximum(maximum, tl.max(scores, AXIS))
    base = tl.where(raised == float("-inf"), 0.0, raised)  # a row that has seen no key yet
    weights = tl.exp2(scores - tl.expand_dims(base, AXIS))
    rescale = tl.exp2(maximum - base)
    total = total * rescale + tl.sum(weights, AXIS)
    return weights, tl.expand_dims(rescale, AXIS), raised, total


@triton.jit
def schedule(seqlens, batch, pages, programs, least, KEYS: tl.constexpr, BATCH: tl.constexpr):
    """How a batch's tiles are dealt out: program p has p x run to (p + 1) x run of their row.

    Lengths that differ: one sequence after the other, so that all runs are equally long whatever
    the lengths. That cuts nearly every sequence once more than there are programs for it, and a cut
    costs a part to write and read; so where all sequences are about as long, each takes the same
    whole number of runs. A run is no shorter than ``least``. Gives each sequence's index, tiles,
    first place in the row, end there, and the run. BATCH is a power of two that holds them all.
    """
    each = tl.arange(0, BATCH)
    length = tl.load(seqlens + each, mask=each < batch, other=0)
    tiles = tl.cdiv(tl.minimum(tl.maximum(length, 0), pages * PAGE), KEYS)
    longest = tl.max(tiles, 0)
    run = tl.maximum(tl.cdiv(tl.sum(tiles, 0), programs), least)
    even = tl.maximum(tl.cdiv(longest, tl.maximum(programs // batch, 1)), least)
    aligned = (programs >= batch) & (even <= run + run // 8 + 1)
    places = tl.where(aligned & (each < batch), tl.cdiv(longest, even) * even, tiles)
    ends = tl.cumsum(places, 0)
    return each, tiles, ends - places, ends, tl.where(aligned, even, run)


@triton.jit
def share(each, tiles, starts, run, program, sequence):
    """Of a sequence: the tiles from, up to which a program walks it, and how many there are."""
    all_tiles = tl.sum(tl.where(each == sequence, tiles, 0), 0)
    start = tl.sum(tl.where(each == sequence, starts, 0), 0)
    first = tl.maximum(program * run - start, 0)
    last = tl.minimum((program + 1) * run - start, all_tiles)
    return first, last, all_tiles


@triton.jit
def sequences(ends, run, program):
    """The first sequence that a program walks, and one past the last."""
    first = tl.sum((ends <= program * run).to(tl.int32), 0)
    high = tl.minimum((program + 1) * run, tl.max(ends, 0))
    return first, tl.sum((ends < high).to(tl.int32), 0) + 1


@triton.jit(
    do_not_specialize=["table_batch", "batch", "pages", "page_limit", "tokens", "heads", "least"]
)
def decode(
    q,
    cache,
    block_table,
    seqlens,
    out,
    parts,
    lse,
    q_batch,
    q_token,
    q_head,
    cache_page,
    cache_row,
    table_batch,
    out_row,
    batch,
    pages,
    page_limit,
    tokens,
    heads,
    least,
    scale_log2,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
    STAGES: tl.constexpr,
    BATCH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (row tiles, programs). Sequences that one program walks alone go to ``out``
    [B, rows, 512]; of others a program's part, normalised, goes to ``parts`` fp32 [slots, rows,
    512] and the logarithm (base 2) of its weight to ``lse`` [slots, rows], in slot program +
    sequence. ``combine`` makes the rest of ``out``."""
    program = tl.program_id(1)
    each, tiles, starts, ends, run = schedule(
        seqlens, batch, pages, tl.num_programs(1), least, KEYS, BATCH
    )
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_there = row < tokens * heads
    token = row // heads
    column = tl.arange(0, LATENT)
    rotary_column = LATENT + tl.arange(0, ROTARY)
    AXIS: tl.constexpr = 0 if KEYS_FIRST else 1  # the keys' axis of the scores
    begin, end = sequences(ends, run, program)
    for sequence in tl.range(begin, end):
        first, last, all_tiles = share(each, tiles, starts, run, program, sequence)
        length = tl.minimum(tl.maximum(tl.load(seqlens + sequence), 0), pages * PAGE)
        seen = length - tokens + token + 1  # keys that a row sees
        place = tl.full((), 0, tl.int64) + sequence
        q_rows = (q + place * q_batch + token * q_token + (row % heads) * q_head)[:, None]
        q_latent = tl.load(q_rows + column[None, :], mask=row_there[:, None], other=0.0)
        q_rotary = tl.load(q_rows + rotary_column[None, :], mask=row_there[:, None], other=0.0)
        acc = tl.zeros((LATENT, ROWS) if KEYS_FIRST else (ROWS, LATENT), tl.float32)
        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        table = block_table + place * table_batch
        page = page_id(table, first, pages, page_limit, KEYS)
        for tile in tl.range(first, last, num_stages=STAGES):
            key = tile * KEYS + tl.arange(0, KEYS)
            there = (key < length)[:, None]  # rows beyond the length may hold NaN
            rows = (cache + page * cache_page + (key % PAGE) * cache_row)[:, None]
            k_rotary = tl.load(rows + rotary_column[None, :], mask=there, other=0.0)
            k_latent = tl.load(rows + column[None, :], mask=there, other=0.0)
            page = page_id(table, tile + 1, pages, page_limit, KEYS)

            scores = scored(q_rotary, k_rotary, None, KEYS_FIRST, INTERPRETED)
            scores = scored(q_latent, k_latent, scores, KEYS_FIRST, INTERPRETED)
            visible = tl.expand_dims(key, 1 - AXIS) < tl.expand_dims(seen, AXIS)
            weights, rescale, maximum, total = softmax_step(
                scores, visible, maximum, total, scale_log2, AXIS
            )
            acc = summed(weights, k_latent, acc * rescale, KEYS_FIRST, INTERPRETED)

        inverse = tl.expand_dims(tl.where(total > 0.0, 1.0 / total, 0.0), AXIS)
        there = tl.expand_dims(row_there, AXIS)
        all_rows = tokens * heads
        if (first == 0) & (last == all_tiles):
            if last > first:
                out_rows = out + (place * all_rows + row) * out_row
                out_rows = tl.expand_dims(out_rows, AXIS)
                result = narrowed(acc * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + tl.expand_dims(column, 1 - AXIS), result, mask=there)
        elif last > first:
            # Pairs of a program and a sequence, in the order of tiles: one of the two goes up.
            slot = (place + program) * all_rows + row
            tl.store(lse + slot, maximum + tl.log2(total), mask=row_there)
            out_rows = tl.expand_dims(parts + slot * LATENT, AXIS)
            tl.store(out_rows + tl.expand_dims(column, 1 - AXIS), acc * inverse, mask=there)


@triton.jit(
    do_not_specialize=["table_batch", "batch", "pages", "page_limit", "tokens", "heads", "least"]
)
def decode_fp8(
    q,
    cache,
    rotary,
    scales,
    block_table,
    seqlens,
    out,
    parts,
    lse,
    q_batch,
    q_token,
    q_head,
    page_16,
    row_16,
    table_batch,
    out_row,
    batch,
    pages,
    page_limit,
    tokens,
    heads,
    least,
    scale_log2,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PACKED: tl.constexpr,
    STAGES: tl.constexpr,
    BATCH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``decode`` over a latent in e4m3: ``cache`` uint16 [pages, 64, 256], two numbers each;
    ``rotary`` bf16 [pages, 64, 64]; ``scales`` fp32 [pages, 64, 4], one for 128 numbers; all three
    with the strides ``page_16`` and ``row_16`` in units of 16 bytes, so that the compiler knows how
    rows are aligned (656 bytes are no multiple of 16 elements).

    Numbers of even and of odd columns are operands of their own, as are a row's four groups: pairs
    come to the matrix units' registers as 16-bit elements and are taken apart there. A scale is one
    number for 128 columns of a row: it multiplies products (keys) and weights (values).
    """
    program = tl.program_id(1)
    each, tiles, starts, ends, run = schedule(
        seqlens, batch, pages, tl.num_programs(1), least, KEYS, BATCH
    )
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_there = row < tokens * heads
    token = row // heads
    pair = tl.arange(0, PAIRS)
    rotary_column = tl.arange(0, ROTARY)
    AXIS: tl.constexpr = 1
    begin, end = sequences(ends, run, program)
    for sequence in tl.range(begin, end):
        first, last, all_tiles = share(each, tiles, starts, run, program, sequence)
        length = tl.minimum(tl.maximum(tl.load(seqlens + sequence), 0), pages * PAGE)
        seen = length - tokens + token + 1  # keys that a row sees
        place = tl.full((), 0, tl.int64) + sequence
        q_rows = (q + place * q_batch + token * q_token + (row % heads) * q_head)[:, None]
        q_rotary = tl.load(
            q_rows + LATENT + rotary_column[None, :], mask=row_there[:, None], other=0.0
        )
        q_pairs = q_rows + 2 * pair[None, :]
        q0_even = tl.load(q_pairs + 0, mask=row_there[:, None], other=0.0)
        q0_odd = tl.load(q_pairs + 1, mask=row_there[:, None], other=0.0)
        q1_even = tl.load(q_pairs + 128, mask=row_there[:, None], other=0.0)
        q1_odd = tl.load(q_pairs + 129, mask=row_there[:, None], other=0.0)
        q2_even = tl.load(q_pairs + 256, mask=row_there[:, None], other=0.0)
        q2_odd = tl.load(q_pairs + 257, mask=row_there[:, None], other=0.0)
        q3_even = tl.load(q_pairs + 384, mask=row_there[:, None], other=0.0)
        q3_odd = tl.load(q_pairs + 385, mask=row_there[:, None], other=0.0)
        acc0_even = tl.zeros((ROWS, PAIRS), tl.float32)
        acc0_odd = tl.zeros((ROWS, PAIRS), tl.float32)
        acc1_even = tl.zeros((ROWS, PAIRS), tl.float32)
        acc1_odd = tl.zeros((ROWS, PAIRS), tl.float32)
        acc2_even = tl.zeros((ROWS, PAIRS), tl.float32)
        acc2_odd = tl.zeros((ROWS, PAIRS), tl.float32)
        acc3_even = tl.zeros((ROWS, PAIRS), tl.float32)
        acc3_odd = tl.zeros((ROWS, PAIRS), tl.float32)
        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        table = block_table + place * table_batch
        page = page_id(table, first, pages, page_limit, KEYS)
        for tile in tl.range(first, last, num_stages=STAGES):
            key = tile * KEYS + tl.arange(0, KEYS)
            there = (key < length)[:, None]  # rows beyond the length may hold NaN
            in_page = key % PAGE
            row_start = page * page_16 + in_page * row_16
            rotary_rows = (rotary + row_start * 8)[:, None]
            k_rotary = tl.load(rotary_rows + rotary_column[None, :], mask=there, other=0.0)
            rows = (cache + row_start * 8)[:, None] + pair[None, :]
            scale_row = scales + row_start * 4
            s0 = tl.load(scale_row + 0, mask=key < length, other=0.0)
            x0 = tl.load(rows + 0, mask=there, other=0)
            s1 = tl.load(scale_row + 1, mask=key < length, other=0.0)
            x1 = tl.load(rows + 64, mask=there, other=0)
            s2 = tl.load(scale_row + 2, mask=key < length, other=0.0)
            x2 = tl.load(rows + 128, mask=there, other=0)
            s3 = tl.load(scale_row + 3, mask=key < length, other=0.0)
            x3 = tl.load(rows + 192, mask=there, other=0)
            page = page_id(table, tile + 1, pages, page_limit, KEYS)

            scores = scored(q_rotary, k_rotary, None, False, INTERPRETED)
            even0, odd0 = e4m3_pairs(x0, PACKED)
            part = scored(q0_even, even0, None, False, INTERPRETED)
            part = scored(q0_odd, odd0, part, False, INTERPRETED)
            scores += part * s0[None, :]
            even1, odd1 = e4m3_pairs(x1, PACKED)
            part = scored(q1_even, even1, None, False, INTERPRETED)
            part = scored(q1_odd, odd1, part, False, INTERPRETED)
            scores += part * s1[None, :]
            even2, odd2 = e4m3_pairs(x2, PACKED)
            part = scored(q2_even, even2, None, False, INTERPRETED)
            part = scored(q2_odd, odd2, part, False, INTERPRETED)
            scores += part * s2[None, :]
            even3, odd3 = e4m3_pairs(x3, PACKED)
            part = scored(q3_even, even3, None, False, INTERPRETED)
            part = scored(q3_odd, odd3, part, False, INTERPRETED)
            scores += part * s3[None, :]
            visible = tl.expand_dims(key, 1 - AXIS) < tl.expand_dims(seen, AXIS)
            weights, rescale, maximum, total = softmax_step(
                scores, visible, maximum, total, scale_log2, AXIS
            )
            scaled = weights * s0[None, :]
            acc0_even = summed(scaled, even0, acc0_even * rescale, False, INTERPRETED)
            acc0_odd = summed(scaled, odd0, acc0_odd * rescale, False, INTERPRETED)
            scaled = weights * s1[None, :]
            acc1_even = summed(scaled, even1, acc1_even * rescale, False, INTERPRETED)
            acc1_odd = summed(scaled, odd1, acc1_odd * rescale, False, INTERPRETED)
            scaled = weights * s2[None, :]
            acc2_even = summed(scaled, even2, acc2_even * rescale, False, INTERPRETED)
            acc2_odd = summed(scaled, odd2, acc2_odd * rescale, False, INTERPRETED)
            scaled = weights * s3[None, :]
            acc3_even = summed(scaled, even3, acc3_even * rescale, False, INTERPRETED)
            acc3_odd = summed(scaled, odd3, acc3_odd * rescale, False, INTERPRETED)

        inverse = tl.expand_dims(tl.where(total > 0.0, 1.0 / total, 0.0), AXIS)
        there = tl.expand_dims(row_there, AXIS)
        all_rows = tokens * heads
        if (first == 0) & (last == all_tiles):
            if last > first:
                out_rows = out + (place * all_rows + row) * out_row
                out_rows = tl.expand_dims(out_rows, AXIS)
                out_rows += 2 * pair[None, :]
                result = narrowed(acc0_even * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 0, result, mask=there)
                result = narrowed(acc0_odd * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 1, result, mask=there)
                result = narrowed(acc1_even * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 128, result, mask=there)
                result = narrowed(acc1_odd * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 129, result, mask=there)
                result = narrowed(acc2_even * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 256, result, mask=there)
                result = narrowed(acc2_odd * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 257, result, mask=there)
                result = narrowed(acc3_even * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 384, result, mask=there)
                result = narrowed(acc3_odd * inverse, out.dtype.element_ty, INTERPRETED)
                tl.store(out_rows + 385, result, mask=there)
        elif last > first:
            # Pairs of a program and a sequence, in the order of tiles: one of the two goes up.
            slot = (place + program) * all_rows + row
            tl.store(lse + slot, maximum + tl.log2(total), mask=row_there)
            out_rows = tl.expand_dims(parts + slot * LATENT, AXIS)
            out_rows += 2 * pair[None, :]
            tl.store(out_rows + 0, acc0_even * inverse, mask=there)
            tl.store(out_rows + 1, acc0_odd * inverse, mask=there)
            tl.store(out_rows + 128, acc1_even * inverse, mask=there)
            tl.store(out_rows + 129, acc1_odd * inverse, mask=there)
            tl.store(out_rows + 256, acc2_even * inverse, mask=there)
            tl.store(out_rows + 257, acc2_odd * inverse, mask=there)
            tl.store(out_rows + 384, acc3_even * inverse, mask=there)
            tl.store(out_rows + 385, acc3_odd * inverse, mask=there)


@triton.jit(do_not_specialize=["batch", "rows", "pages", "programs", "least"])
def combine(
    parts,
    lse,
    seqlens,
    out,
    out_row,
    batch,
    rows,
    pages,
    programs,
    least,
    KEYS: tl.constexpr,
    BATCH: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (rows, batch, 512 / COLUMNS): one row's parts, weighted by what each program saw.

    The order of the sum is the tiles' order, whatever ran first. A sequence of one program is left
    as it is, one of none gives zeros.
    """
    row = tl.program_id(0)
    sequence = tl.program_id(1)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    each, tiles, starts, _, run = schedule(seqlens, batch, pages, programs, least, KEYS, BATCH)
    first = tl.sum(tl.where(each == sequence, starts, 0), 0)
    last = first + tl.sum(tl.where(each == sequence, tiles, 0), 0)
    count = tl.where(last > first, (last - 1) // run - first // run + 1, 0)
    if count != 1:
        place = tl.full((), 0, tl.int64) + sequence
        slot = (place + first // run) * rows + row
        acc = tl.zeros((COLUMNS,), tl.float32)
        highest = tl.full((), float("-inf"), tl.float32)
        total = tl.zeros((), tl.float32)
        for start in range(0, count, CHUNK):
            part = start + tl.arange(0, CHUNK)
            seen = tl.load(lse + slot + part * rows, mask=part < count, other=float("-inf"))
            raised = tl.maximum(highest, tl.max(seen, 0))
            base = tl.where(raised == float("-inf"), 0.0, raised)
            weight = tl.exp2(seen - base)
            rescale = tl.exp2(highest - base)
            values = tl.load(
                parts + (slot + part * rows)[:, None] * LATENT + column[None, :],
                mask=(part < count)[:, None],
                other=0.0,
            )
            acc = acc * rescale + tl.sum(values * weight[:, None], 0)
            total = total * rescale + tl.sum(weight, 0)
            highest = raised
        acc = tl.where(total > 0.0, acc / total, 0.0)
        tl.store(
            out + (place * rows + row) * out_row + column,
            narrowed(acc, out.dtype.element_ty, INTERPRETED),
        )


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


@triton.jit(do_not_specialize=["batch", "tokens", "heads", "pages", "programs", "least"])
def combine_project(
    attended,
    parts,
    lse,
    seqlens,
    w_uv,
    out,
    uv_head,
    uv_row,
    batch,
    tokens,
    heads,
    pages,
    programs,
    least,
    KEYS: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (heads, row tiles): ``combine``, then times W_UV[h] transposed -> out [B x T, H, 128].

    Rows as in ``absorb``; ``attended`` [B, T x H, 512] holds the sequences of one program. CHUNK
    latent columns are combined and projected at a time.
    """
    head = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_there = row < batch * tokens
    sequence = row // tokens
    each, tiles, starts, _, run = schedule(seqlens, batch, pages, programs, least, KEYS, BATCH)
    own = each[None, :] == sequence[:, None]
    first = tl.sum(tl.where(own, starts[None, :], 0), 1)
    last = first + tl.sum(tl.where(own, tiles[None, :], 0), 1)
    count = tl.where(last > first, (last - 1) // run - first // run + 1, 0)
    whole = (count == 1)[:, None]
    split_count = tl.where((count > 1) & row_there, count, 0)
    most = tl.max(split_count, 0)
    all_rows = tokens * heads
    own_row = (row % tokens) * heads + head
    slot = (sequence.to(tl.int64) + first // run) * all_rows + own_row
    value_column = tl.arange(0, VALUE)
    chunk_column = tl.arange(0, CHUNK)

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    for part in range(most):
        seen = tl.load(lse + slot + part * all_rows, mask=part < split_count, other=float("-inf"))
        highest = tl.maximum(highest, seen)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.zeros((ROWS,), tl.float32)
    for part in range(most):
        seen = tl.load(lse + slot + part * all_rows, mask=part < split_count, other=float("-inf"))
        total += tl.exp2(seen - highest)
    inverse = tl.where(total > 0.0, 1.0 / total, 0.0)

    result = tl.zeros((ROWS, VALUE), tl.float32)
    single = (attended + (sequence.to(tl.int64) * all_rows + own_row) * LATENT)[:, None]
    for start in range(0, LATENT, CHUNK):
        weight = tl.load(
            w_uv + head * uv_head + value_column[:, None] * uv_row + start + chunk_column[None, :]
        )
        acc = tl.load(
            single + start + chunk_column[None, :], mask=whole & row_there[:, None], other=0.0
        ).to(tl.float32)
        for part in range(most):
            here = part < split_count
            seen = tl.load(lse + slot + part * all_rows, mask=here, other=float("-inf"))
            values = tl.load(
                (parts + (slot + part * all_rows) * LATENT)[:, None]
                + start
                + chunk_column[None, :],
                mask=here[:, None],
                other=0.0,
            )
            acc += values * (tl.exp2(seen - highest) * inverse)[:, None]
        acc = narrowed(acc, weight.dtype, INTERPRETED)
        result = product(acc, weight.T, result, INTERPRETED)
    tl.store(
        out + ((row.to(tl.int64) * heads + head) * VALUE)[:, None] + value_column[None, :],
        narrowed(result, out.dtype.element_ty, INTERPRETED),
        mask=row_there[:, None],
    )
