"""One case drawn: its inputs on the device, and the gate that outputs must pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenrepro.backends import Backend
from zenrepro.ops.attention import reference
from zenrepro.ops.attention.cases import Case, bound
from zenrepro.ops.entry import Entry
from zenrepro.ops.gate import Verdict, judge, relative_error

# The gate compares whole outputs of small cases; of large ones the first, the last and evenly
# spaced batches, heads and query rows, so that the fp64 reference takes seconds.
BATCHES, HEADS, ROWS = 2, 3, 16
SMALL_PAIRS = 2**18  # queries x keys of all heads: compared as a whole
SMALL_ARRAY = 2**22  # elements: copied to the host as a whole
SPARE_PAGES = 3  # of a paged cache, which no sequence has


class Problem:
    """Inputs of a case in one dtype, and what is right for them. The reference is computed once,
    when the first output is judged.

    ``arrays`` are q, k and v (caches where they are paged), ``indices`` the layout's index arrays,
    ``static`` its plain numbers.
    """

    def __init__(self, backend: Backend, case: Case, dtype: str, seed: int) -> None:
        self.backend, self.case, self.dtype = backend, case, dtype
        self._host, self.static = _indices(case, seed)
        self.arrays = tuple(
            backend.random(shape, dtype, seed + i, case.magnitude)
            for i, shape in enumerate(self._shapes())
        )
        self.indices = {name: backend.whole(array) for name, array in self._host.items()}
        pairs = sum(queries * keys for queries, keys in case.sequences) * case.heads
        whole = pairs <= SMALL_PAIRS
        self.batches = picks(case.batch, case.batch if whole else BATCHES)
        self.heads = picks(case.heads, case.heads if whole else HEADS)
        self.rows = {
            b: picks(queries, queries if whole else ROWS)
            for b, (queries, _) in enumerate(case.sequences)
        }

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of q, k and v."""
        case = self.case
        if case.layout == "varlen":
            queries, keys = (sum(lengths) for lengths in zip(*case.sequences, strict=True))
            rows, kept = (queries,), (keys,)
        elif case.layout == "paged":
            table, size = self._host["block_table"], case.page_size or 0
            rows, kept = (case.batch, case.query_len), (table.size + SPARE_PAGES, size)  # type: ignore[assignment]
        else:
            rows, kept = (case.batch, case.query_len), (case.batch, case.cache_len)  # type: ignore[assignment]
        return (
            (*rows, case.heads, case.head_dim),
            (*kept, case.kv_heads, case.head_dim),
            (*kept, case.kv_heads, case.value_dim),
        )

    def call(self, entry: Entry) -> Callable[[], Any]:
        """The implementation on these inputs, compiled the backend's way where the row says so."""
        function = functools.partial(
            entry.load(self.case.layout), causal=self.case.causal, **self.static
        )
        ready = self.backend.compile(function) if entry.compiled else function
        return lambda: ready(*self.arrays, **self.indices)

    @property
    def compared(self) -> str:
        """What of the output the gate looks at, in words."""
        case = self.case
        rows = max(len(self.rows[b]) for b in self.batches)
        longest = max(queries for queries, _ in case.sequences)
        return (
            f"compared with fp64: {len(self.batches)} of {case.batch} batches, {len(self.heads)} "
            f"of {case.heads} heads, {rows} of {longest} query rows"
        )

    def judge(self, call: Callable[[], Any]) -> Verdict:
        """Run once into memory that held NaN before, where the allocator gives it back."""
        wanted_shape = (*self.arrays[0].shape[:-1], self.case.value_dim)
        poison = self._poison(wanted_shape)
        self.backend.synchronise(poison)
        del poison
        out = call()
        self.backend.synchronise(out)
        if tuple(out.shape) != wanted_shape:
            reason = f"wrong output: its shape is {tuple(out.shape)}, wanted {wanted_shape}"
            return Verdict(False, None, 0.0, reason)
        wanted, limit = self._wanted
        return judge(self._picked(out), wanted, limit)

    def _poison(self, shape: tuple[int, ...]) -> Any:
        """NaN in an output's shape and dtype. Made at once from the queries where that can be, so
        that no other block of that size is free when the output is allocated."""
        q = self.arrays[0]
        if self.dtype != "fp8_e4m3" and shape[-1] <= q.shape[-1]:
            return q[..., : shape[-1]] * float("nan")
        form = "bf16" if self.dtype == "fp8_e4m3" else self.dtype
        return self.backend.random(shape, form, 0) * float("nan")

    def _picked(self, out: Any) -> NDArray[np.floating]:
        """[compared rows, Dv] of an output, on the host: batch by batch, head by head."""
        array = self._near(out)
        parts = [
            self._rows(array, b, h, self._starts("cu_seqlens_q", b))[self.rows[b], 0]
            for b in self.batches
            for h in self.heads
        ]
        return np.concatenate(parts)

    def _near(self, array: Any) -> Any:
        """A small array on the host as a whole; a large one stays, and parts of it are copied."""
        small = math.prod(array.shape) <= SMALL_ARRAY
        return self.backend.numpy(array) if small else array

    def _starts(self, name: str, b: int) -> slice | None:
        """The rows of a sequence where they lie one after the other."""
        offsets = self._host.get(name)
        return None if offsets is None else slice(int(offsets[b]), int(offsets[b + 1]))

    def _rows(self, array: Any, b: int, h: int, rows: slice | None) -> NDArray[np.floating]:
        """[length, 1, width] of one sequence and head, on the host."""
        part = array[b, :, h : h + 1] if rows is None else array[rows, h : h + 1]
        return part if isinstance(part, np.ndarray) else self.backend.numpy(part)

    def _keys(self, array: Any, b: int, h: int) -> NDArray[np.floating]:
        """[length, 1, width] of one sequence's keys or values, on the host."""
        if self.case.layout != "paged":
            return self._rows(array, b, h, self._starts("cu_seqlens_k", b))
        table, length = self._host["block_table"][b], self.case.sequences[b][1]
        if isinstance(array, np.ndarray):
            return reference.gather(array, table, length)[:, h : h + 1]
        pages = self.backend.numpy(array[self.indices["block_table"][b]][:, :, h : h + 1])
        return pages.reshape(-1, 1, pages.shape[-1])[:length]

    @functools.cached_property
    def _wanted(self) -> tuple[NDArray[np.floating], float]:
        """The fp64 output where it is compared, and the bound."""
        group = self.case.heads // self.case.kv_heads
        near = [self._near(array) for array in self.arrays]
        right: list[NDArray[np.floating]] = []
        plain: list[NDArray[np.floating]] = []
        for b in self.batches:
            for h in self.heads:
                q = self._rows(near[0], b, h, self._starts("cu_seqlens_q", b))
                k, v = (self._keys(array, b, h // group) for array in near[1:])
                given: dict[str, Any] = {"causal": self.case.causal, "rows": self.rows[b]}
                right.append(reference.sequence(q, k, v, **given)[:, 0])
                plain.append(reference.sequence(q, k, v, dtype=self.dtype, **given)[:, 0])
        wanted = np.concatenate(right)
        error = relative_error(np.concatenate(plain), wanted)
        return wanted, bound(self.dtype, error)


def _indices(case: Case, seed: int) -> tuple[dict[str, NDArray[np.int32]], dict[str, int]]:
    """The index arrays of a case's layout, and its plain numbers."""
    queries, keys = (np.array(lengths) for lengths in zip(*case.sequences, strict=True))
    if case.layout == "varlen":
        offsets = {
            f"cu_seqlens_{name}": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            for name, lengths in (("q", queries), ("k", keys))
        }
        return offsets, {"max_seqlen_q": int(queries.max()), "max_seqlen_k": int(keys.max())}
    if case.layout == "paged":
        # Pages in no order, of a pool that holds more; entries that no sequence uses point at a
        # page as well, since some libraries read them.
        width = max(1, -(-int(keys.max()) // (case.page_size or 1)))
        order = np.random.default_rng(seed).permutation(case.batch * width + SPARE_PAGES)
        table = order[: case.batch * width].reshape(case.batch, width)
        return {
            "block_table": table.astype(np.int32), "cache_seqlens": keys.astype(np.int32)
        }, {}  # fmt: skip
    return {}, {}


def picks(total: int, most: int) -> list[int]:
    """The first, the last and evenly spaced indices: at most ``most`` of ``total``."""
    if most >= total:
        return list(range(total))
    if most == 1:
        return [total - 1]
    return sorted({round(i * (total - 1) / (most - 1)) for i in range(most)})
