"""Absorbed latent attention over a paged cache by our Pallas kernel for TPUs.

One compiled decode serves every length that the block table has room for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zenrepro.ops import arrays, device_code
from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.mla import arguments
from zenrepro.ops.mla.sizes import LATENT, ROW

if TYPE_CHECKING:
    import jax


def pages_per_chunk(query_rows: int, element_bytes: int) -> int:
    """Pages that the kernel multiplies at a time: 512 rows, in bf16 640 KB and 0.8 µs of a v5e's
    bandwidth. The parts of fp32 products of many query rows with them do not fit the 16 MB of VMEM
    that a kernel may take: then 128."""
    return 8 if element_bytes <= 2 or query_rows <= 256 else 2


def decode(
    q: jax.Array,
    cache: jax.Array,
    *,
    block_table: jax.Array,
    cache_seqlens: jax.Array,
    scale: float | None = None,
    interpret: Any = False,
) -> jax.Array:
    """q [B, T, H, 576], cache [P, 64, 576], block_table int32 [B, pages], cache_seqlens int32 [B]
    -> [B, T, H, 512] in q's dtype.

    Sums and the softmax are fp32, weights are rounded to q's dtype. ``interpret`` runs the kernel
    without a TPU, for tests. Raises ValueError; UnsupportedError for an FP8 cache.
    """
    shape = arguments.check_decode(
        q, cache, block_table=block_table, cache_seqlens=cache_seqlens, scale=scale, framework="jax"
    )
    if shape.fp8:
        raise UnsupportedError("the kernel reads rows in the queries' dtype, not FP8")
    if not interpret:
        arrays.check_accelerator(q=q)
    kernel = device_code.pallas_module("mla_decode")
    rows = shape.query_len * shape.heads
    out = kernel.decode(
        q.reshape(shape.batch, rows, ROW),
        cache,
        block_table,
        cache_seqlens,
        query_len=shape.query_len,
        value_dim=LATENT,
        scale=shape.scale,
        pages_per_chunk=min(pages_per_chunk(rows, q.dtype.itemsize), shape.width),
        interpret=interpret,
    )
    return out.reshape(shape.batch, shape.query_len, shape.heads, LATENT)
