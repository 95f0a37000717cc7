"""Latent attention's decode with chunks that a v5e's VMEM has no room for."""

from __future__ import annotations

from typing import Any

from zenrepro.ops.mla import jax_pallas


def decode(**arguments: Any) -> Any:
    """``jax_pallas.decode`` with 128 pages a chunk: two of 10 MB."""
    jax_pallas.pages_per_chunk = lambda rows, size: 128
    return jax_pallas.decode(**arguments)
