"""Latent attention with the up-projection inside the tile loop: an ablation.

One program holds a tile of one head's queries. For each tile of latent rows it computes that head's
keys and values from the rows, with W_UK and W_UV read again from the L2 cache, and attends to them:
nothing decompressed is ever in device memory. What it costs is the projection once more for every
tile of queries.

Sources: the report's "projection fused into the tile computation"; DeepSeek-AI 2024, DeepSeek-V2,
eq. 9-11 (projections); Dao 2023, FlashAttention-2 (running softmax).
"""

import triton
import triton.language as tl

from zenrepro.ops.device_code import triton_module

LATENT = tl.constexpr(512)
ROTARY = tl.constexpr(64)
NOPE = tl.constexpr(128)
VALUE = tl.constexpr(128)
narrowed, product = (getattr(triton_module("arithmetic"), name) for name in ("narrowed", "product"))


@triton.jit(do_not_specialize=["queries", "length"])
def prefill(
    q,
    latent,
    w_uk,
    w_uv,
    out,
    q_batch,
    q_token,
    q_head,
    latent_batch,
    latent_row,
    uk_head,
    uk_row,
    uv_head,
    uv_row,
    out_batch,
    out_token,
    out_head,
    queries,
    length,
    scale_log2,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Grid (heads, tiles of queries, batch): the heads of a batch that run together share its rows
    in the L2 cache. CHUNK latent columns are projected at a time."""
    head = tl.program_id(0).to(tl.int64)
    row_tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest first
    batch = tl.program_id(2).to(tl.int64)

    row = row_tile * ROWS + tl.arange(0, ROWS)
    row_there = (row < queries)[:, None]
    nope_column = tl.arange(0, NOPE)
    value_column = tl.arange(0, VALUE)
    rotary_column = tl.arange(0, ROTARY)
    chunk_column = tl.arange(0, CHUNK)
    key_row = tl.arange(0, KEYS)
    q_rows = (q + batch * q_batch + head * q_head) + row.to(tl.int64)[:, None] * q_token
    q_nope = tl.load(q_rows + nope_column[None, :], mask=row_there, other=0.0)
    q_rotary = tl.load(q_rows + NOPE + rotary_column[None, :], mask=row_there, other=0.0)
    latents = latent + batch * latent_batch
    uk = w_uk + head * uk_head + nope_column[:, None] * uk_row + chunk_column[None, :]
    uv = w_uv + head * uv_head + value_column[:, None] * uv_row + chunk_column[None, :]

    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, VALUE), tl.float32)
    end = length
    if CAUSAL:
        end = tl.minimum(length, length - queries + (row_tile + 1) * ROWS)
    for start in range(0, end, KEYS):
        key = start + key_row
        key_there = (key < length)[:, None]
        rows = latents + key.to(tl.int64)[:, None] * latent_row
        k_rotary = tl.load(rows + LATENT + rotary_column[None, :], mask=key_there, other=0.0)
        keys = tl.zeros((KEYS, NOPE), tl.float32)
        values = tl.zeros((KEYS, VALUE), tl.float32)
        for chunk in tl.range(0, LATENT, CHUNK, num_stages=STAGES):
            part = tl.load(rows + chunk + chunk_column[None, :], mask=key_there, other=0.0)
            keys = product(part, tl.load(uk + chunk).T, keys, INTERPRETED)
            values = product(part, tl.load(uv + chunk).T, values, INTERPRETED)

        scores = product(q_rotary, k_rotary.T, None, INTERPRETED)
        scores = product(q_nope, narrowed(keys, q_nope.dtype, INTERPRETED).T, scores, INTERPRETED)
        visible = (key < length)[None, :]
        if CAUSAL:
            visible = key[None, :] <= (length - queries + row)[:, None]
        scores = tl.where(visible, scores * scale_log2, float("-inf"))
        # The first tile shows every row its first key, so that no maximum stays -inf.
        raised = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2(scores - raised[:, None])
        rescale = tl.exp2(maximum - raised)
        total = total * rescale + tl.sum(weights, 1)
        maximum = raised
        acc = product(
            narrowed(weights, q_nope.dtype, INTERPRETED),
            narrowed(values, q_nope.dtype, INTERPRETED),
            acc * rescale[:, None],
            INTERPRETED,
        )

    out_rows = (out + batch * out_batch + head * out_head) + row.to(tl.int64)[:, None] * out_token
    tl.store(
        out_rows + value_column[None, :],
        narrowed(acc / total[:, None], out.dtype.element_ty, INTERPRETED),
        mask=row_there,
    )
