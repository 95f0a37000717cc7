"""The latent cache in use: rows appended step by step, drafted tokens rejected, and every step's
decode what a prefill over the same rows gives."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zenrepro import backends
from zenrepro.ops.gate import relative_error
from zenrepro.ops.mla import TABLE, reference
from zenrepro.ops.mla.cache import Pages
from zenrepro.ops.mla.sizes import PAGE, ROW
from zenrepro.ops.mla.table import load

HEADS, TOKENS, STEPS, POOL, WIDTH = 2, 3, 5, 6, 2


class Server:
    """One backend's pool, written and read by its own functions, compiled where it compiles."""

    def __init__(self, name: str) -> None:
        algorithm = "tiled" if name == "jax" else "absorbed"
        self.backend = backends.open(name, "cpu")
        self.module = importlib.import_module(f"zenrepro.ops.mla.{name}_cache")
        self.kind = np.int64 if name == "torch" else np.int32
        dtype = self.backend.asarray(np.zeros(1), "fp32").dtype
        self.pool = self.module.allocate(POOL, dtype=dtype)
        entry = next(entry for entry in TABLE if entry.name == f"{name}.{algorithm}")
        self.decode: Callable[..., Any] = load(entry, "decode")
        self.append: Callable[..., Any] = self.module.append
        if name == "jax":
            import jax

            self.decode = jax.jit(self.decode)
            self.append = jax.jit(self.append, donate_argnums=0, out_shardings=self.pool.format)

    def write(self, rows: np.ndarray, slots: np.ndarray) -> None:
        whole = self.backend.whole(slots.astype(self.kind))
        written = self.append(self.pool, self.backend.asarray(rows, "fp32"), whole)
        self.pool = self.pool if written is None else written

    def read(self, q: np.ndarray, table: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        out = self.decode(
            self.backend.asarray(q, "fp32"), self.pool,
            block_table=self.backend.whole(table), cache_seqlens=self.backend.whole(lengths),
        )  # fmt: skip
        return self.backend.numpy(out)


@pytest.mark.parametrize("name", backends.NAMES)
def test_decoding_step_by_step_is_prefilling(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    server, pages = Server(name), Pages(POOL)
    rng = np.random.default_rng(0)
    w_uk, w_uv = (rng.standard_normal((HEADS, 128, 512)) * 512**-0.5 for _ in range(2))
    # One fills its first page in the second step; one ends a page with its prompt.
    held = {7: rng.standard_normal((59, ROW)), 3: rng.standard_normal((PAGE, ROW))}
    for sequence, rows in held.items():
        server.write(rows, pages.append(sequence, len(rows)))
    for step in range(STEPS):
        drafted = rng.standard_normal((len(held), TOKENS, ROW))
        slots = np.concatenate([pages.append(sequence, TOKENS) for sequence in held])
        server.write(drafted.reshape(-1, ROW), slots)
        q = rng.standard_normal((len(held), TOKENS, HEADS, 192))
        table, lengths = pages.block_table(list(held), WIDTH), pages.lengths(list(held))
        out = reference.expand(server.read(reference.absorb(q, w_uk), table, lengths), w_uv)
        for b, sequence in enumerate(held):
            rows = np.concatenate([held[sequence], drafted[b]])
            wanted = reference.prefill(q[b : b + 1], rows[None], w_uk, w_uv, causal=True)
            assert relative_error(out[b : b + 1], wanted) < 3e-6, (step, sequence)
            accepted = 1 + (step + b) % TOKENS
            held[sequence] = rows[: len(rows) - TOKENS + accepted]
            pages.shorten(sequence, len(held[sequence]))
    for sequence in list(held):
        pages.release(sequence)
    assert pages.free == POOL
