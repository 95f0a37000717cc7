"""What the cache of a model takes: counted a token, and allocated for a batch of sequences.

With ordinary heads, with heads that share keys, and with one latent for all heads. Part of the
experiment ``traffic``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from zenrepro import architecture, counts
from zenrepro.architecture import Architecture, Cache
from zenrepro.experiments.point import Point, Result
from zenrepro.ops.mla import sizes
from zenrepro.ops.mla.cache import Pages
from zenrepro.records import Kind, Origin

if TYPE_CHECKING:
    from zenrepro.backends import Backend
    from zenrepro.experiments.session import Session

DTYPE = "bf16"
# Sequences and tokens of the cache that is allocated, for one layer; only at full scale of every
# model, elsewhere of the one that the report's attention table is about.
ALLOCATED = {"smoke": (2, 100), "small": (1, 4096), "full": (32, 4096)}
MODEL = "zen-mode-7b"
# Tables that are loaded with this module, of which no row is used.
ROWS = ("zenrepro.ops.mla.table:", "zenrepro.ops.mla.cases:")


def points(run: Session, rows: Sequence[str]) -> Iterator[Point]:
    """Of each model and form its bytes a token by counting, and an allocated cache.

    ``rows``: tables that the experiment's module loads.
    """
    batch, seq_len = ALLOCATED[run.scale]
    for name, model in architecture.load(run.project.models).items():
        data = [str((run.project.models / f"{name}.yaml").relative_to(run.project.root))]
        for cache, stored in forms(model):
            conditions: dict[str, Any] = {
                "model": name, "dtype": DTYPE, "kv_heads": cache.kv_heads,
                "head_dim": cache.head_dim, "value_dim": cache.value_dim,
            }  # fmt: skip
            if stored is not None:
                conditions["format"] = stored
            common: dict[str, Any] = {
                "implementation": f"{run.parameters.backend}.{cache.form}", "rows": [*rows, *ROWS],
                "data": data, "origin": Origin.OURS,
            }  # fmt: skip
            yield Point(
                conditions=conditions,
                produces=[("size", "cache")],
                measure=partial(_counted, model, cache, stored),
                **common,
            )
            if run.scale != "full" and name != MODEL:
                continue
            yield Point(
                conditions=conditions | {"batch": batch, "seq_len": seq_len},
                produces=[("memory", "cache")],
                measure=partial(_allocated, run, cache, stored, batch, seq_len),
                **common,
            )


def forms(model: Architecture) -> list[tuple[Cache, str | None]]:
    """The model's caches, the latent's in FP8 too where its groups of 128 fit."""
    found: list[tuple[Cache, str | None]] = [(cache, None) for cache in architecture.caches(model)]
    latent = found[-1][0]
    if latent.head_dim == sizes.ROW and latent.value_dim == sizes.LATENT:
        found.append((latent, "fp8_e4m3"))
    return found


def row_bytes(cache: Cache, stored: str | None) -> float:
    """Bytes that one token keeps in one layer."""
    if cache.form == "mla":
        rotary = cache.head_dim - cache.value_dim
        return counts.latent_row_bytes(
            latent=cache.value_dim, rotary=rotary, dtype=DTYPE, cache_format=stored
        )
    return counts.cache_bytes_per_token(
        kv_heads=cache.kv_heads, head_dim=cache.head_dim, value_dim=cache.value_dim, dtype=DTYPE
    )


def _counted(model: Architecture, cache: Cache, stored: str | None) -> list[Result]:
    row = row_bytes(cache, stored)
    return [
        Result(
            quantity="size",
            metric="cache",
            unit="B/token",
            samples=[model.num_layers * row],
            kind=Kind.COUNTED,
            method=f"{row:g} bytes a token and layer, {model.num_layers} layers",
        )
    ]


def _allocated(
    run: Session, cache: Cache, stored: str | None, batch: int, seq_len: int
) -> list[Result]:
    """One layer's cache as it is kept: keys and values, or pages of latent rows."""
    backend = run.backend
    shapes, layout = _shapes(cache, stored, batch, seq_len)
    held: list[Any] = []

    def allocate() -> list[Any]:
        held[:] = [_empty(backend, shape, dtype) for shape, dtype in shapes]
        return held

    size = backend.peak_memory(allocate)
    how = "what the allocator gave"
    if size is None:
        size, how = sum(_stored_bytes(array) for array in allocate()), "bytes of the arrays"
    held.clear()
    if backend.kind != "cpu":
        backend.release()  # the next one may be as large as the device allows
    return [
        Result(
            quantity="memory",
            metric="cache",
            unit="B",
            samples=[float(size)],
            method=f"one layer: {layout}; {how}",
        )
    ]


def _shapes(
    cache: Cache, stored: str | None, batch: int, seq_len: int
) -> tuple[list[tuple[tuple[int, ...], str]], str]:
    """Arrays of one layer's cache as (shape, dtype), and their layout in words."""
    if cache.form != "mla":
        wide = (batch, seq_len, cache.kv_heads)
        shapes: list[tuple[tuple[int, ...], str]] = [
            ((*wide, cache.head_dim), DTYPE), ((*wide, cache.value_dim), DTYPE),
        ]  # fmt: skip
        return shapes, "keys and values [B, S, Hkv, D]"
    # A pool that all sequences fill, to the last page that any of them needs.
    each = -(-seq_len // sizes.PAGE)
    pages = Pages(batch * each)
    for sequence in range(batch):
        pages.append(sequence, seq_len)
    taken = batch * each - pages.free
    row = sizes.FP8_ROW_BYTES if stored else cache.head_dim
    words = f"{taken} pages of {sizes.PAGE} rows"
    return [((taken, sizes.PAGE, row), "int8" if stored else DTYPE)], words


def _empty(backend: Backend, shape: tuple[int, ...], dtype: str) -> Any:
    like = backend.asarray(np.zeros(1, np.float32), dtype)
    if backend.name == "torch":
        return like.new_empty(shape)
    if backend.name == "jax":
        import jax.numpy as jnp

        return jnp.zeros(shape, like.dtype)
    import mlx.core as mx

    array = mx.zeros(shape, like.dtype)
    mx.eval(array)
    return array


def _stored_bytes(array: Any) -> int:
    """What an array takes, views not counted twice: torch tells its storage's size."""
    if hasattr(array, "untyped_storage"):
        return int(array.untyped_storage().nbytes())
    return int(array.nbytes)
