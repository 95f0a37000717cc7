"""Attention for any CUDA card: FlashAttention-2 with split keys for decoding.

``attend`` walks the keys of one tile of query rows once and keeps the softmax running (Dao 2023,
FlashAttention-2, arXiv 2307.08691). Several programs may share a tile's keys; each then leaves an
unfinished result and ``combine`` joins them in a fixed order (flash-decoding), so the same inputs
give the same bits. Scores, sums and the output accumulate in fp32; exponentials are powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def _locate(n, offs_n, length, table, last_page, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page, and row in it, of the tile's first key; of each key where pages are shorter than tiles.

    Without pages everything is page 0. Page numbers are clamped: a wrong table gives wrong numbers,
    never a fault.
    """
    if PAGE == 0:
        return tl.full((), 0, tl.int64), n.to(tl.int64)
    elif PAGE % BLOCK_N == 0:  # noqa: RET505  (a return ends no branch that is left out)
        page = tl.load(table + n // PAGE, mask=n < length, other=0)
        page = tl.minimum(tl.maximum(page, 0), last_page)
        return page.to(tl.int64), (n % PAGE).to(tl.int64)
    else:
        rows = n + offs_n
        page = tl.load(table + rows // PAGE, mask=rows < length, other=0)
        page = tl.minimum(tl.maximum(page, 0), last_page)
        return page.to(tl.int64), (rows % PAGE).to(tl.int64)


@triton.jit
def _tile(
    source, b, h, n, base, page, row, rows_left, stride_page, stride_row, offs_n,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, TOTAL: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Columns FIRST .. FIRST + WIDTH of a tile of keys or values, [BLOCK_N, WIDTH].

    Rows past the end are read as zeros: what lies there may be NaN, and 0 x NaN is NaN.
    """
    if TMA:
        return source.load([b, h, n, FIRST]).reshape([BLOCK_N, WIDTH])
    else:  # noqa: RET505
        columns = FIRST + tl.arange(0, WIDTH)
        offsets = base + page * stride_page + row * stride_row  # 64 bits
        if PAGE % BLOCK_N == 0:  # of the tile; what is added in it fits 32 bits
            pointers = (source + offsets) + ((offs_n * stride_row)[:, None] + columns[None, :])
        else:
            pointers = source + offsets[:, None] + columns[None, :]
        if MASKED and FIRST + WIDTH > TOTAL:
            seen = (offs_n < rows_left)[:, None] & (columns < TOTAL)[None, :]
            return tl.load(pointers, mask=seen, other=0.0)
        elif MASKED:  # noqa: RET505
            return tl.load(pointers, mask=(offs_n < rows_left)[:, None], other=0.0)
        elif FIRST + WIDTH > TOTAL:
            return tl.load(pointers, mask=(columns < TOTAL)[None, :], other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def _scores(
    q1, q2, k, k_rest, b, h, n, base, S, table, last_page, stride_page, stride_row, offs_n,
    PAGE: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Q K^T of one tile of keys, [BLOCK_M, BLOCK_N] in fp32; unequal widths as two products."""
    page, row = _locate(n, offs_n, S, table, last_page, PAGE, BLOCK_N)
    if D2 > 0:  # the narrow one first: on Hopper a product that is added to is waited for
        k2 = _tile(
            k_rest, b, h, n, base, page, row, S - n, stride_page, stride_row, offs_n,
            D1, D2, D, PAGE, BLOCK_N, MASKED, TMA,
        )  # fmt: skip
        s = tl.dot(q2, tl.trans(k2), input_precision="ieee")
    k1 = _tile(
        k, b, h, n, base, page, row, S - n, stride_page, stride_row, offs_n,
        0, D1, D, PAGE, BLOCK_N, MASKED, TMA,
    )  # fmt: skip
    if D2 > 0:
        s = tl.dot(q1, tl.trans(k1), s, input_precision="ieee")
    else:
        s = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    return s


@triton.jit
def _add_values(
    acc, weights, v, b, h, n, base, S, table, last_page, stride_page, stride_row, offs_n,
    PAGE: tl.constexpr, DV: tl.constexpr, DV1: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """acc + weights V of one tile, [BLOCK_M, DV1]."""
    page, row = _locate(n, offs_n, S, table, last_page, PAGE, BLOCK_N)
    v1 = _tile(
        v, b, h, n, base, page, row, S - n, stride_page, stride_row, offs_n,
        0, DV1, DV, PAGE, BLOCK_N, MASKED, TMA,
    )  # fmt: skip
    return tl.dot(weights.to(v1.dtype), v1, acc, input_precision="ieee")


@triton.jit
def _mask(s, n, offs_n, last_seen):
    """Scores with the keys behind each row's last one hidden."""
    return tl.where((n + offs_n)[None, :] <= last_seen[:, None], s, float("-inf"))


@triton.jit
def _softmax(s, m, norm, scale):
    """One step of the running softmax in powers of two: weights, correction, maximum, sum."""
    m_new = tl.maximum(m, tl.max(s, 1))
    # A row that has seen no key yet: -inf minus -inf would be NaN.
    top = tl.where(m_new == float("-inf"), 0.0, m_new)
    # Subtract, then scale: s * scale - top * scale as one fused operation would leave a rounding
    # error of top * scale in the exponent, and large scores would overflow.
    p = tl.math.exp2((s - top[:, None]) * scale)
    correction = tl.math.exp2((m - top) * scale)
    return p, correction, m_new, norm * correction + tl.sum(p, 1)


# Sizes that change from call to call do not make a new kernel each; strides do: their alignment.
@triton.jit(
    do_not_specialize=[
        "query_len", "cache_len", "heads", "pages", "table_width", "tiles", "splits", "rows_total"
    ]
)  # fmt: skip
def attend(
    q, k, k_rest, v, out, partial, partial_lse, starts_q, starts_k, lengths, table,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_ks, stride_kh,
    stride_vb, stride_vs, stride_vh, stride_ob, stride_ot, stride_oh, stride_table,
    query_len, cache_len, heads, scale, pages, table_width, tiles, splits, rows_total,
    LAYOUT: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, DV1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACK: tl.constexpr, SPLIT: tl.constexpr,
    PEEL: tl.constexpr, AHEAD: tl.constexpr, Q_REGISTERS: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M query rows of one head, over all keys or over one split of them.

    LAYOUT: "dense" (q [B, T, H, D], k [B, S, Hkv, D], v [B, S, Hkv, DV]), "varlen" (packed,
    starts_q and starts_k [B + 1]; rows_total is Tq and cache_len Tk) or "paged" (lengths [B],
    table [B, table_width], pages of PAGE rows; stride_kb is a page's).
    scale: the softmax's times log2(e). D1 + D2 >= D, powers of two (D2 may be 0); DV1 >= DV.
    PACK: the GROUP query heads of a key head share the tile, row r is token r // GROUP.
    SPLIT: partial [splits, rows, DV] fp32 and partial_lse [splits, rows] in powers of two, where
    row = (token of all) * heads + head; else out, with zeros where no key is seen.
    PEEL: tiles that every row sees whole have a loop of their own, without masks.
    AHEAD: the scores of the next tile are asked for before the softmax of this one: on Hopper both
    products run beside it. Q_REGISTERS: queries stay in registers, not in shared memory, which the
    tensor cores then read for the keys alone.
    TMA: k, k_rest and v are tensor descriptors of [B, Hkv, S, D] with blocks of [1, 1, BLOCK_N, D1
    or D2 or DV1] (dense only); else pointers, k_rest being k.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    split = (pid // tiles) % splits
    rest = pid // (tiles * splits)
    if PACK:
        kv_heads = heads // GROUP
        kv_head = rest % kv_heads
        b = rest // kv_heads
    else:
        head = rest % heads
        kv_head = head // GROUP
        b = rest // heads
    if CAUSAL:  # the longest tiles first: the short ones fill the end of the launch
        tile = tiles - 1 - tile

    b64 = b.to(tl.int64)
    table_row = table
    if LAYOUT == "varlen":
        first_q = tl.minimum(tl.maximum(tl.load(starts_q + b), 0), rows_total)
        last_q = tl.minimum(tl.maximum(tl.load(starts_q + b + 1), first_q), rows_total)
        first_k = tl.minimum(tl.maximum(tl.load(starts_k + b), 0), cache_len)
        last_k = tl.minimum(tl.maximum(tl.load(starts_k + b + 1), first_k), cache_len)
        T = last_q - first_q
        S = last_k - first_k
        q_base = first_q.to(tl.int64) * stride_qt
        k_base = first_k.to(tl.int64) * stride_ks
        v_base = first_k.to(tl.int64) * stride_vs
        o_base = first_q.to(tl.int64) * stride_ot
        token = first_q.to(tl.int64)
    elif LAYOUT == "paged":
        T = query_len
        S = tl.minimum(tl.maximum(tl.load(lengths + b), 0), table_width * PAGE)
        q_base = b64 * stride_qb
        k_base = tl.full((), 0, tl.int64)
        v_base = tl.full((), 0, tl.int64)
        o_base = b64 * stride_ob
        token = b64 * query_len
        table_row = table + b64 * stride_table
    else:
        T = query_len
        S = cache_len
        q_base = b64 * stride_qb
        k_base = b64 * stride_kb
        v_base = b64 * stride_vb
        o_base = b64 * stride_ob
        token = b64 * query_len
    k_base += kv_head.to(tl.int64) * stride_kh
    v_base += kv_head.to(tl.int64) * stride_vh
    last_page = pages - 1

    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if PACK:
        t = offs_m // GROUP
        h = kv_head * GROUP + offs_m % GROUP
        first_t = (tile * BLOCK_M) // GROUP
        last_t = (tile * BLOCK_M + BLOCK_M - 1) // GROUP
    else:
        t = offs_m
        h = head + tl.zeros_like(offs_m)
        first_t = tile * BLOCK_M
        last_t = tile * BLOCK_M + BLOCK_M - 1
    if first_t < T:
        row_valid = t < T
        # The keys that the tile sees, and those of them that all of its rows see.
        if CAUSAL:
            shift = S - T
            last_seen = tl.minimum(shift + t, S - 1)
            seen = tl.minimum(S, tl.maximum(shift + last_t + 1, 0))
            seen_by_all = tl.minimum(S, tl.maximum(shift + first_t + 1, 0))
        else:
            last_seen = tl.zeros_like(t) + (S - 1)
            seen = S
            seen_by_all = S
        low = split * 0
        if SPLIT:
            share = tl.cdiv(tl.cdiv(seen, BLOCK_N), splits) * BLOCK_N
            low = tl.minimum(split * share, seen)
            seen = tl.minimum(low + share, seen)
        blocks = tl.cdiv(seen - low, BLOCK_N)
        clear = tl.minimum(tl.maximum(seen_by_all - low, 0) // BLOCK_N, (seen - low) // BLOCK_N)

        q_rows = q_base + t.to(tl.int64) * stride_qt + h.to(tl.int64) * stride_qh
        d1 = tl.arange(0, D1)
        q1_at = q + q_rows[:, None] + d1[None, :]
        if D1 > D:
            q1 = tl.load(q1_at, mask=row_valid[:, None] & (d1 < D)[None, :], other=0.0)
        else:
            q1 = tl.load(q1_at, mask=row_valid[:, None], other=0.0)
        q2 = q1
        if D2 > 0:
            d2 = D1 + tl.arange(0, D2)
            q2_at = q + q_rows[:, None] + d2[None, :]
            q2 = tl.load(q2_at, mask=row_valid[:, None] & (d2 < D)[None, :], other=0.0)

        if Q_REGISTERS:  # Triton leaves a product's left side there only if it is no load's result
            q1 = q1.to(tl.int16, bitcast=True).to(q.dtype.element_ty, bitcast=True)
            q2 = q2.to(tl.int16, bitcast=True).to(q.dtype.element_ty, bitcast=True)
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        norm = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, DV1), tl.float32)
        offs_n = tl.arange(0, BLOCK_N)
        # From the right: the tiles that some row sees in part come first.
        first = low + (blocks - 1) * BLOCK_N
        if AHEAD:
            coming = _scores(
                q1, q2, k, k_rest, b, kv_head, tl.maximum(first, low), k_base, S, table_row,
                last_page, stride_kb, stride_ks, offs_n, PAGE, D, D1, D2, BLOCK_N, True, TMA,
            )  # fmt: skip
        for part in tl.static_range(2 if PEEL else 1):
            begin = blocks - clear if part == 1 else 0
            end = blocks - clear if PEEL and part == 0 else blocks
            for i in tl.range(begin, end, num_stages=STAGES):
                n = first - i * BLOCK_N
                if AHEAD:  # the last step's are of a tile that it has had, and are not used
                    s = coming
                    coming = _scores(
                        q1, q2, k, k_rest, b, kv_head, tl.maximum(n - BLOCK_N, low), k_base, S,
                        table_row, last_page, stride_kb, stride_ks, offs_n,
                        PAGE, D, D1, D2, BLOCK_N, True, TMA,
                    )  # fmt: skip
                else:
                    s = _scores(
                        q1, q2, k, k_rest, b, kv_head, n, k_base, S, table_row, last_page,
                        stride_kb, stride_ks, offs_n, PAGE, D, D1, D2, BLOCK_N, part == 0, TMA,
                    )  # fmt: skip
                if part == 0:  # decided when compiled, as are PEEL and PACK; the last is not
                    if PEEL or PACK:  # noqa: SIM114
                        s = _mask(s, n, offs_n, last_seen)
                    elif i < blocks - clear:
                        s = _mask(s, n, offs_n, last_seen)
                p, correction, m, norm = _softmax(s, m, norm, scale)
                acc = acc * correction[:, None]
                acc = _add_values(
                    acc, p.to(q.dtype.element_ty), v, b, kv_head, n, v_base, S, table_row,
                    last_page, stride_vb, stride_vs, offs_n,
                    PAGE, DV, DV1, BLOCK_N, part == 0, TMA,
                )  # fmt: skip

        rows_out = token * heads + t.to(tl.int64) * heads + h.to(tl.int64)
        dv = tl.arange(0, DV1)
        store = row_valid[:, None] & (dv < DV)[None, :]
        if SPLIT:
            lse = m * scale + tl.math.log2(norm)
            lse = tl.where(norm == 0.0, float("-inf"), lse)
            rows_out += split.to(tl.int64) * rows_total * heads
            tl.store(partial_lse + rows_out, lse, mask=row_valid)
            acc = acc / tl.where(norm == 0.0, 1.0, norm)[:, None]
            tl.store(partial + rows_out[:, None] * DV + dv[None, :], acc, mask=store)
        else:
            acc = acc / tl.where(norm == 0.0, 1.0, norm)[:, None]
            o_rows = o_base + t.to(tl.int64) * stride_ot + h.to(tl.int64) * stride_oh
            o_at = out + o_rows[:, None] + dv[None, :]
            tl.store(o_at, acc.to(out.dtype.element_ty), mask=store)


@triton.jit(do_not_specialize=["query_len", "heads", "rows_total", "splits"])
def combine(
    partial, partial_lse, out, stride_ob, stride_ot, stride_oh,
    query_len, heads, rows_total, splits,
    VARLEN: tl.constexpr, DV: tl.constexpr, DV1: tl.constexpr, SPLITS1: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """out of one row from its splits: partial [splits, rows, DV] fp32, partial_lse [splits, rows].

    Each split's normalised result counts by its share of the row's sum of exponentials; that of a
    split that saw no key (lse of -inf) is not read.
    """
    row = tl.program_id(0).to(tl.int64)
    token = row // heads
    h = row % heads
    rows = tl.cast(rows_total, tl.int64) * heads
    each = tl.arange(0, SPLITS1)
    all_lse = tl.load(partial_lse + each * rows + row, mask=each < splits, other=float("-inf"))
    top = tl.max(all_lse, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.math.exp2(all_lse - top), 0)
    total = tl.where(total == 0.0, 1.0, total)
    dv = tl.arange(0, DV1)
    result = tl.zeros((DV1,), tl.float32)
    for first in range(0, splits, CHUNK):
        part = first + tl.arange(0, CHUNK)
        lse = tl.load(partial_lse + part * rows + row, mask=part < splits, other=float("-inf"))
        share = tl.math.exp2(lse - top) / total
        at = partial + (part * rows + row)[:, None] * DV + dv[None, :]
        read = (lse > float("-inf"))[:, None] & (dv < DV)[None, :]
        result += tl.sum(tl.load(at, mask=read, other=0.0) * share[:, None], 0)
    if VARLEN:
        to = out + token * stride_ot + h * stride_oh
    else:
        to = (
            out + (token // query_len) * stride_ob + (token % query_len) * stride_ot + h * stride_oh
        )
    tl.store(to + dv, result.to(out.dtype.element_ty), mask=dv < DV)
