"""Absorbed latent attention over a paged cache, split over the sequence, and the combination.

One program holds a tile of query rows (row r is token r // heads, head r % heads of one sequence)
and walks its share of the sequence's pages with a running softmax in base 2. A page's latent tile
is loaded once: all 576 columns are the key, the first 512 are the value too.

Sources: DeepSeek-AI 2024, DeepSeek-V2, sec. 2.1 (latent attention, absorption); Dao et al. 2023,
Flash-Decoding (split over the sequence).
"""

import triton
import triton.language as tl

from zenrepro.ops.device_code import triton_module

LATENT = tl.constexpr(512)
ROTARY = tl.constexpr(64)
PAGE = tl.constexpr(64)
SCALES = tl.constexpr(4)  # of a row of the FP8 cache
PAIRS = tl.constexpr(64)  # of latent columns that share one scale of the FP8 cache
narrowed, product = (getattr(triton_module("arithmetic"), name) for name in ("narrowed", "product"))
e4m3_pairs = triton_module("e4m3").e4m3_pairs


@triton.jit
def expanded(pairs, scale, KEYS: tl.constexpr, INTERPRETED: tl.constexpr):
    """[KEYS, 256] pairs of e4m3 numbers, [KEYS, 4] scales -> their products in bf16 [KEYS, 512]."""
    low, high = e4m3_pairs(pairs, not INTERPRETED)
    wide = tl.broadcast_to(scale[:, :, None], (KEYS, SCALES, PAIRS)).reshape(KEYS, LATENT // 2)
    low = narrowed(low.to(tl.float32) * wide, tl.bfloat16, INTERPRETED)
    high = narrowed(high.to(tl.float32) * wide, tl.bfloat16, INTERPRETED)
    return tl.join(low, high).reshape(KEYS, LATENT)


@triton.jit
def page_id(block_table, tile, pages, page_limit, KEYS: tl.constexpr):
    """The page that holds ``tile``, kept inside the cache whatever the table says."""
    page = tl.load(block_table + tl.minimum(tile * KEYS // PAGE, pages - 1))
    return tl.minimum(tl.maximum(page, 0), page_limit - 1).to(tl.int64)


@triton.jit
def asked_for(start, rows, row_bytes, BYTES: tl.constexpr):
    """Has the L2 read ``rows`` rows of BYTES from address ``start`` on; gives 0 without waiting.

    Triton issues a tile's loads at the end of the step before, and they wait for device memory
    meanwhile; this lets them find their lines in the L2. All threads of the program share it. It
    claims to be pure, since Triton does not pipeline loops with effects: the 0 has to be used.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .pred more;
        .reg .b32 line, step, end;
        .reg .b64 place;
        mov.u32 line, %tid.x;
        shl.b32 line, line, 7;
        mov.u32 step, %ntid.x;
        shl.b32 step, step, 7;
        next:
        setp.lt.u32 more, line, $2;
        cvt.u64.u32 place, line;
        add.u64 place, place, $1;
        @more prefetch.global.L2 [place];
        add.u32 line, line, step;
        @more bra next;
        mov.b32 $0, 0;
        }
        """,
        "=r,l,r",
        [start.to(tl.int64), (rows - 1) * row_bytes + BYTES],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def scored(query, keys, acc, INTERPRETED: tl.constexpr):
    """``acc`` plus the products of query rows and keys: [rows, keys]."""
    return product(query, keys.T, acc, INTERPRETED)


@triton.jit
def scored_apart(q_latent, k_latent, q_rotary, k_rotary, zero):
    """``scored`` of both parts, for 64 rows and 8 warps.

    Triton gives a product that another one follows all its warps along the rows, and with 64 rows
    both warpgroups would compute all of it. What a branch gives, it does not follow. It is always
    taken (``zero`` is 0); the other side is a product as well, since the compiler moves changes of
    layout into a branch whose other side is free.
    """
    if zero == 0:
        scores = tl.dot(q_latent, k_latent.T)
        rest = tl.dot(q_rotary, k_rotary.T)
    else:
        scores = tl.dot(q_rotary, k_rotary.T)
        rest = scores
    return scores + rest


@triton.jit
def summed(weights, values, acc, INTERPRETED: tl.constexpr):
    """``acc`` plus the weighted sum of values: [rows, columns]."""
    return product(narrowed(weights, values.dtype, INTERPRETED), values, acc, INTERPRETED)


@triton.jit
def softmax_step(scores, visible, maximum, total, scale_log2):
    """One tile of the running softmax in base 2: weights, and by what earlier sums shrink."""
    scores = tl.where(visible, scores * scale_log2, float("-inf"))
    raised = tl.maximum(maximum, tl.max(scores, 1))
    base = tl.where(raised == float("-inf"), 0.0, raised)  # a row that has seen no key yet
    weights = tl.exp2(scores - base[:, None])
    rescale = tl.exp2(maximum - base)
    total = total * rescale + tl.sum(weights, 1)
    return weights, rescale[:, None], raised, total


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


@triton.jit
def delivery(out_rows, part_rows, weight_places, maximum, total, row_there, wholly):
    """What ``deliver`` wants; stores the logarithm (base 2) of a part's weight."""
    # Pairs of a program and a sequence, in the order of tiles: one of the two goes up, which makes
    # their sum a slot of its own.
    if not wholly:
        tl.store(weight_places, maximum + tl.log2(total), mask=row_there)
    inverse = tl.where(total > 0.0, 1.0 / total, 0.0)
    return inverse[:, None], out_rows[:, None], part_rows[:, None], row_there[:, None]


@triton.jit
def deliver(acc, inverse, columns, out_rows, part_rows, there, wholly, INTERPRETED: tl.constexpr):
    """Columns of a sequence that this program walked ``wholly`` go to the output, of others to the
    parts."""
    if wholly:
        result = narrowed(acc * inverse, out_rows.dtype.scalar.element_ty, INTERPRETED)
        tl.store(out_rows + columns, result, mask=there)
    else:
        tl.store(part_rows + columns, acc * inverse, mask=there)


@triton.jit(
    do_not_specialize=["table_batch", "batch", "pages", "page_limit", "tokens", "heads", "least"]
)
def decode(
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
    EXPAND: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    BATCH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (row tiles, programs). Sequences that one program walks alone go to ``out``
    [B, rows, 512]; of others a program's part, normalised, goes to ``parts`` fp32 [slots, rows,
    512] and the logarithm (base 2) of its weight to ``lse`` [slots, rows], in slot program +
    sequence. ``combine`` makes the rest of ``out``.

    With EXPAND the latent is e4m3, in the pieces that ``decode_fp8`` describes. Each number times
    its scale is rounded to bf16 once a tile and put where all products find it: for tiles of 64
    rows, whose matrix instruction reads keys and values from shared memory only.
    """
    program = tl.program_id(1)
    each, tiles, starts, ends, run = schedule(
        seqlens, batch, pages, tl.num_programs(1), least, KEYS, BATCH
    )
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_there = row < tokens * heads
    token = row // heads
    column = tl.arange(0, LATENT)
    rotary_part = tl.arange(0, ROTARY)
    begin, end = sequences(ends, run, program)
    for sequence in tl.range(begin, end):
        first, last, all_tiles = share(each, tiles, starts, run, program, sequence)
        length = tl.minimum(tl.maximum(tl.load(seqlens + sequence), 0), pages * PAGE)
        seen = length - tokens + token + 1  # keys that a row sees
        place = tl.full((), 0, tl.int64) + sequence
        q_rows = (q + place * q_batch + token * q_token + (row % heads) * q_head)[:, None]
        q_latent = tl.load(q_rows + column[None, :], mask=row_there[:, None], other=0.0)
        q_rotary = tl.load(
            q_rows + LATENT + rotary_part[None, :], mask=row_there[:, None], other=0.0
        )
        acc = tl.zeros((ROWS, LATENT), tl.float32)
        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        table = block_table + place * table_batch
        page = page_id(table, first, pages, page_limit, KEYS)
        soon = page_id(table, tl.minimum(first + AHEAD, last - 1), pages, page_limit, KEYS)
        for tile in tl.range(first, last, num_stages=STAGES):
            key = tile * KEYS + tl.arange(0, KEYS)
            there = (key < length)[:, None]  # rows beyond the length may hold NaN
            zero = 0
            if AHEAD > 0:
                far = tl.minimum(tile + AHEAD, last - 1) * KEYS % PAGE
                ahead = soon * cache_page + far * cache_row
                if EXPAND:
                    zero = asked_for(cache + ahead * 8, KEYS, cache_row * 16, 656)
                else:
                    zero = asked_for(cache + ahead, KEYS, cache_row * 2, 1152)
            start = page * cache_page + (key % PAGE) * cache_row
            if EXPAND:
                rotary_rows = (rotary + start * 8)[:, None]
                k_rotary = tl.load(rotary_rows + rotary_part[None, :], mask=there, other=0.0)
                rows = (cache + start * 8)[:, None]
                pairs = tl.load(rows + tl.arange(0, LATENT // 2)[None, :], mask=there, other=0)
                scale_rows = (scales + start * 4)[:, None]
                scale = tl.load(scale_rows + tl.arange(0, SCALES)[None, :], mask=there, other=0.0)
                k_latent = expanded(pairs, scale, KEYS, INTERPRETED)
            else:
                rows = (cache + start)[:, None]
                k_rotary = tl.load(rows + LATENT + rotary_part[None, :], mask=there, other=0.0)
                k_latent = tl.load(rows + column[None, :], mask=there, other=0.0)
            page = page_id(table, tile + 1, pages, page_limit, KEYS)
            if AHEAD > 0:
                far = tl.minimum(tile + 1 + AHEAD, last - 1)
                soon = page_id(table, far, pages, page_limit, KEYS)

            if AHEAD > 0 and ROWS == 64:
                scores = scored_apart(q_latent, k_latent, q_rotary, k_rotary, zero)
            else:
                scores = tl.full((ROWS, KEYS), 0.0, tl.float32) + zero
                scores = scored(q_rotary, k_rotary, scores, INTERPRETED)
                scores = scored(q_latent, k_latent, scores, INTERPRETED)
            visible = key[None, :] < seen[:, None]
            weights, rescale, maximum, total = softmax_step(
                scores, visible, maximum, total, scale_log2
            )
            acc = summed(weights, k_latent, acc * rescale, INTERPRETED)

        if last > first:
            wholly = (first == 0) & (last == all_tiles)
            slot = (place + program) * tokens * heads + row
            inverse, out_rows, part_rows, there = delivery(
                out + (place * tokens * heads + row) * out_row, parts + slot * LATENT, lse + slot,
                maximum, total, row_there, wholly,
            )  # fmt: skip
            columns = column[None, :]
            deliver(acc, inverse, columns, out_rows, part_rows, there, wholly, INTERPRETED)


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
    AHEAD: tl.constexpr,
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
        soon = page_id(table, tl.minimum(first + AHEAD, last - 1), pages, page_limit, KEYS)
        for tile in tl.range(first, last, num_stages=STAGES):
            key = tile * KEYS + tl.arange(0, KEYS)
            there = (key < length)[:, None]  # rows beyond the length may hold NaN
            initial = tl.full((ROWS, KEYS), 0.0, tl.float32)
            if AHEAD > 0:
                far = tl.minimum(tile + AHEAD, last - 1) * KEYS % PAGE
                ahead = cache + (soon * page_16 + far * row_16) * 8
                initial += asked_for(ahead, KEYS, row_16 * 16, 656).to(tl.float32)
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
            if AHEAD > 0:
                far = tl.minimum(tile + 1 + AHEAD, last - 1)
                soon = page_id(table, far, pages, page_limit, KEYS)

            scores = scored(q_rotary, k_rotary, initial, INTERPRETED)
            even0, odd0 = e4m3_pairs(x0, PACKED)
            part = scored(q0_even, even0, None, INTERPRETED)
            part = scored(q0_odd, odd0, part, INTERPRETED)
            scores += part * s0[None, :]
            even1, odd1 = e4m3_pairs(x1, PACKED)
            part = scored(q1_even, even1, None, INTERPRETED)
            part = scored(q1_odd, odd1, part, INTERPRETED)
            scores += part * s1[None, :]
            even2, odd2 = e4m3_pairs(x2, PACKED)
            part = scored(q2_even, even2, None, INTERPRETED)
            part = scored(q2_odd, odd2, part, INTERPRETED)
            scores += part * s2[None, :]
            even3, odd3 = e4m3_pairs(x3, PACKED)
            part = scored(q3_even, even3, None, INTERPRETED)
            part = scored(q3_odd, odd3, part, INTERPRETED)
            scores += part * s3[None, :]
            visible = key[None, :] < seen[:, None]
            weights, rescale, maximum, total = softmax_step(
                scores, visible, maximum, total, scale_log2
            )
            scaled = weights * s0[None, :]
            acc0_even = summed(scaled, even0, acc0_even * rescale, INTERPRETED)
            acc0_odd = summed(scaled, odd0, acc0_odd * rescale, INTERPRETED)
            scaled = weights * s1[None, :]
            acc1_even = summed(scaled, even1, acc1_even * rescale, INTERPRETED)
            acc1_odd = summed(scaled, odd1, acc1_odd * rescale, INTERPRETED)
            scaled = weights * s2[None, :]
            acc2_even = summed(scaled, even2, acc2_even * rescale, INTERPRETED)
            acc2_odd = summed(scaled, odd2, acc2_odd * rescale, INTERPRETED)
            scaled = weights * s3[None, :]
            acc3_even = summed(scaled, even3, acc3_even * rescale, INTERPRETED)
            acc3_odd = summed(scaled, odd3, acc3_odd * rescale, INTERPRETED)

        if last > first:
            wholly = (first == 0) & (last == all_tiles)
            slot = (place + program) * tokens * heads + row
            inverse, out_rows, part_rows, there = delivery(
                out + (place * tokens * heads + row) * out_row, parts + slot * LATENT, lse + slot,
                maximum, total, row_there, wholly,
            )  # fmt: skip
            columns = 2 * pair[None, :]
            deliver(
                acc0_even, inverse, columns + 0, out_rows, part_rows, there, wholly, INTERPRETED
            )
            deliver(acc0_odd, inverse, columns + 1, out_rows, part_rows, there, wholly, INTERPRETED)
            deliver(
                acc1_even, inverse, columns + 128, out_rows, part_rows, there, wholly, INTERPRETED
            )
            deliver(
                acc1_odd, inverse, columns + 129, out_rows, part_rows, there, wholly, INTERPRETED
            )
            deliver(
                acc2_even, inverse, columns + 256, out_rows, part_rows, there, wholly, INTERPRETED
            )
            deliver(
                acc2_odd, inverse, columns + 257, out_rows, part_rows, there, wholly, INTERPRETED
            )
            deliver(
                acc3_even, inverse, columns + 384, out_rows, part_rows, there, wholly, INTERPRETED
            )
            deliver(
                acc3_odd, inverse, columns + 385, out_rows, part_rows, there, wholly, INTERPRETED
            )


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
