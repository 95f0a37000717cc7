"""Absorbed latent attention over a paged cache, for a TPU: one core walks through the sequences.

Each sequence's queries, all heads of all its tokens, stay in VMEM while its pages stream past in
chunks: while one chunk is multiplied the next one's pages are on their way, also across the end of
a sequence. Scores are summed by the online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867),
so that nothing but the output is written. A chunk is read once for scores and for values.

What a TPU core needs of this layout: rows are 576 wide, which its memory pads to 640; pages of 64
rows are 80 KB in bf16, long enough for one transfer each. There is one core, so sequences are not
split.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
HIDDEN = -1e30  # a score that no softmax sees; finite, so that its difference to itself is 0


def decode(
    q: jax.Array,
    cache: jax.Array,
    block_table: jax.Array,
    cache_seqlens: jax.Array,
    *,
    query_len: int,
    value_dim: int,
    scale: float,
    pages_per_chunk: int,
    interpret: Any = False,
) -> jax.Array:
    """q [B, T * H, D], cache [P, page, D], block_table int32 [B, pages], cache_seqlens int32 [B]
    -> [B, T * H, Dv] in q's dtype; sums and the softmax in fp32.

    Lengths and pages outside the table and the pool are clamped to them.
    """
    batch, rows, width = q.shape
    pages, page, _ = cache.shape
    kernel = functools.partial(
        _kernel, query_len=query_len, scale=scale, pages_per_chunk=pages_per_chunk
    )
    table = jnp.clip(block_table, 0, pages - 1)
    lengths = jnp.clip(cache_seqlens, 0, block_table.shape[1] * page)
    chunk = pages_per_chunk * page
    specification = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(batch,),
        in_specs=[
            pl.BlockSpec((1, rows, width), lambda b, *_: (b, 0, 0)),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_specs=pl.BlockSpec((1, rows, value_dim), lambda b, *_: (b, 0, 0)),
        scratch_shapes=[
            pltpu.VMEM((2, chunk, width), cache.dtype),
            pltpu.VMEM((rows, LANES), jnp.float32),
            pltpu.VMEM((rows, LANES), jnp.float32),
            pltpu.VMEM((rows, value_dim), jnp.float32),
            pltpu.SMEM((1,), jnp.int32),
            pltpu.SemaphoreType.DMA((2,)),
        ],
    )
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((batch, rows, value_dim), q.dtype),
        grid_spec=specification,
        # In order: a sequence starts the transfers of the next.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="mla_decode",
    )(table, lengths, q, cache)


def _kernel(
    table: Any,  # int32 [B, pages]
    lengths: Any,  # int32 [B]
    q: Any,  # [1, T * H, D]
    cache: Any,  # [P, page, D], not in VMEM
    out: Any,  # [1, T * H, Dv]
    buffers: Any,  # [2, chunk, D]: the chunk in work, and the next
    top: Any,  # fp32 [T * H, 128]: the largest score so far, in every lane
    total: Any,  # fp32 [T * H, 128]: the sum of exponentials so far, in every lane
    summed: Any,  # fp32 [T * H, Dv]: the weighted sum so far
    turn: Any,  # which buffer the chunk in work is in
    arrived: Any,  # one semaphore a buffer
    *,
    query_len: int,
    scale: float,
    pages_per_chunk: int,
) -> None:
    b = pl.program_id(0)
    page = cache.shape[1]
    chunk = pages_per_chunk * page
    length = lengths[b]
    heads = q.shape[1] // query_len
    # fp32 products stay fp32: a TPU multiplies in bf16 unless told otherwise.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def chunks(sequence: Any) -> Any:
        return jnp.maximum(1, pl.cdiv(lengths[sequence], chunk))

    def each_page(sequence: Any, i: Any, buffer: Any, act: Any) -> None:
        held = pl.cdiv(lengths[sequence], page)
        for j in range(pages_per_chunk):
            number = i * pages_per_chunk + j

            @pl.when(number < held)
            def _(number: Any = number, j: int = j) -> None:
                source = cache.at[table[sequence, number]]
                target = buffers.at[buffer, pl.ds(j * page, page)]
                act(pltpu.make_async_copy(source, target, arrived.at[buffer]))

    @pl.when(b == 0)
    def _() -> None:
        turn[0] = 0
        each_page(b, 0, 0, lambda copy: copy.start())

    top[...] = jnp.full(top.shape, HIDDEN, jnp.float32)
    total[...] = jnp.zeros(total.shape, jnp.float32)
    summed[...] = jnp.zeros(summed.shape, jnp.float32)

    def add(i: Any, rows: Any, visible: Any) -> None:
        scores = scale * jax.lax.dot_general(
            q[0], rows, (((1,), (1,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip
        if visible is not None:
            scores = jnp.where(visible, scores, HIDDEN)
        before = top[:, :1]
        highest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        weights = jnp.exp(scores - highest)
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        kept = jnp.exp(before - highest)
        top[...] = jnp.broadcast_to(highest, top.shape)
        total[...] = jnp.broadcast_to(
            kept * total[:, :1] + weights.sum(axis=1, keepdims=True), total.shape
        )
        summed[...] = kept * summed[...] + jax.lax.dot_general(
            weights.astype(rows.dtype), rows[:, : summed.shape[1]], (((1,), (0,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip

    def step(i: Any, _: None) -> None:
        buffer = turn[0]
        last = i + 1 == chunks(b)
        following = jnp.where(last, b + 1, b)

        @pl.when(following < pl.num_programs(0))
        def _() -> None:
            each_page(following, jnp.where(last, 0, i + 1), 1 - buffer, lambda copy: copy.start())

        each_page(b, i, buffer, lambda copy: copy.wait())
        # The first query sees the fewest rows; a chunk that it sees whole needs no mask.
        whole = (i + 1) * chunk <= length - query_len + 1

        @pl.when(whole)
        def _() -> None:
            add(i, buffers[buffer], None)

        @pl.when(jnp.logical_not(whole))
        def _() -> None:
            rows = buffers[buffer]
            place = i * chunk + jax.lax.broadcasted_iota(jnp.int32, (chunk, 1), 0)
            # What lies beyond the sequence may be NaN, and 0 x NaN is NaN.
            rows = jnp.where(place < length, rows, jnp.zeros_like(rows))
            row = jax.lax.broadcasted_iota(jnp.int32, (q.shape[1], 1), 0)
            seen = length - query_len + 1
            for t in range(1, query_len):
                seen = seen + (row >= t * heads).astype(jnp.int32)
            column = i * chunk + jax.lax.broadcasted_iota(jnp.int32, (q.shape[1], chunk), 1)
            add(i, rows, column < seen)

        turn[0] = 1 - buffer

    jax.lax.fori_loop(0, chunks(b), step, None)
    # A query that sees no row has a total of 0, and a sum of zeros.
    divisor = jnp.where(total[:, :1] == 0.0, 1.0, total[:, :1])
    out[0] = (summed[...] / divisor).astype(out.dtype)
