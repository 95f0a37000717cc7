"""One case drawn: its inputs on the device, and the gate that outputs must pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenrepro.backends import Backend
from zenrepro.ops.attention.problem import picks
from zenrepro.ops.entry import Entry
from zenrepro.ops.gate import Verdict, judge, relative_error
from zenrepro.ops.mla import jax_cache, reference
from zenrepro.ops.mla.cache import quantise
from zenrepro.ops.mla.cases import Case, bound
from zenrepro.ops.mla.sizes import LATENT, NOPE, PAGE, QUERY, ROW, SCALE, VALUE
from zenrepro.ops.mla.table import load

# The gate compares whole outputs of small cases; of large ones the first, the last and evenly
# spaced sequences, heads and query rows, so that the fp64 reference takes seconds.
BATCHES, HEADS, ROWS = 2, 2, 4
SMALL_PAIRS = 2**16  # queries x rows of all heads: compared as a whole
EXPANDED_AS = 64  # queries that take as long as expanding the rows of a head
# Distinct FP8 pages that are drawn and quantised on the host; a larger pool repeats them.
DRAWN_PAGES = 61  # a prime, so that sequences of the same length hold different rows


class Problem:
    """Inputs of a case in one dtype, and what is right for them. The reference is computed once,
    when the first output is judged.

    Decode: the pool has as many pages as the sequences need and a few that none owns; which page
    is whose is a permutation. Table entries past a sequence's last page are -1.
    """

    def __init__(self, backend: Backend, case: Case, dtype: str, seed: int) -> None:
        self.backend, self.case, self.dtype = backend, case, dtype
        self.arrays: tuple[Any, ...]
        self.indices: dict[str, Any] = {}
        if case.phase == "decode":
            self._draw_decode(seed)
        else:
            self._draw_prefill(seed)
        # In prefill a head's rows are expanded in fp64 however few queries there are.
        rows = case.query_len if case.phase == "decode" else max(case.query_len, EXPANDED_AS)
        whole = case.batch * case.heads * rows * case.cache_len <= SMALL_PAIRS
        self.batches = picks(case.batch, case.batch if whole else BATCHES)
        self.heads = picks(case.heads, case.heads if whole else HEADS)
        self.rows = picks(case.query_len, case.query_len if whole else ROWS)

    def _draw_decode(self, seed: int) -> None:
        case, backend = self.case, self.backend
        rng = np.random.default_rng(seed)
        lengths = rng.permutation(np.array(case.lengths, np.int32))
        needed = -(-lengths // PAGE)
        pages = int(needed.sum()) + 3
        order = iter(rng.permutation(pages).tolist())
        table = np.full((case.batch, int(needed.max())), -1, np.int32)
        for b in range(case.batch):
            for i in range(needed[b]):
                table[b, i] = next(order)
        q = backend.random((case.batch, case.query_len, case.heads, ROW), self.dtype, seed)
        if case.format is None:
            cache = backend.random((pages, PAGE, ROW), self.dtype, seed + 1)
        else:
            drawn = np.random.default_rng(seed + 1).standard_normal(
                (min(pages, DRAWN_PAGES), PAGE, ROW), np.float32
            )
            repeated = np.arange(pages, dtype=np.int32) % len(drawn)
            cache = backend.whole(quantise(drawn))[backend.whole(repeated)]
        if backend.name == "jax":
            cache = jax_cache.row_major(cache)  # as a pool that is served from is allocated
        self.lengths, self.table = lengths, table
        self.arrays = (q, cache)
        self.indices = {
            "block_table": backend.whole(table),
            "cache_seqlens": backend.whole(lengths),
        }

    def _draw_prefill(self, seed: int) -> None:
        case, random = self.case, self.backend.random
        # Keys and values of variance 1, as projections of a trained model give about.
        small = LATENT**-0.5
        self.arrays = (
            random((case.batch, case.query_len, case.heads, QUERY), self.dtype, seed),
            random((case.batch, case.cache_len, ROW), self.dtype, seed + 1),
            random((case.heads, NOPE, LATENT), self.dtype, seed + 2, small),
            random((case.heads, VALUE, LATENT), self.dtype, seed + 3, small),
        )

    def call(self, entry: Entry) -> Callable[[], Any]:
        """The implementation on these inputs, compiled the backend's way where the row says so."""
        given: dict[str, Any] = {"scale": SCALE}
        if self.case.phase == "prefill":
            given["causal"] = self.case.causal
        function = functools.partial(load(entry, self.case.phase), **given)
        ready = self.backend.compile(function) if entry.compiled else function
        return lambda: ready(*self.arrays, **self.indices)

    @property
    def compared(self) -> str:
        """What of the output the gate looks at, in words."""
        case = self.case
        return (
            f"compared with fp64: {len(self.batches)} of {case.batch} sequences, "
            f"{len(self.heads)} of {case.heads} heads, {len(self.rows)} of {case.query_len} "
            "query rows"
        )

    def judge(self, call: Callable[[], Any]) -> Verdict:
        """Run once into memory that held NaN before, where the allocator gives it back."""
        poison = self.arrays[0] * float("nan")
        self.backend.synchronise(poison)
        del poison
        out = call()
        self.backend.synchronise(out)
        case = self.case
        width = LATENT if case.phase == "decode" else VALUE
        wanted_shape = (case.batch, case.query_len, case.heads, width)
        if tuple(out.shape) != wanted_shape:
            reason = f"wrong output: its shape is {tuple(out.shape)}, wanted {wanted_shape}"
            return Verdict(False, None, 0.0, reason)
        wanted, limit = self._wanted
        return judge(np.stack([self._part(out, b) for b in self.batches]), wanted, limit)

    def _part(self, array: Any, b: int) -> NDArray[np.floating]:
        """[rows, heads, width] of a sequence, on the host."""
        host = self.backend.numpy(array[b : b + 1])
        return host[0][np.ix_(self.rows, self.heads)]

    @functools.cached_property
    def _wanted(self) -> tuple[NDArray[np.floating], float]:
        """The fp64 output where it is compared, and the bound."""
        of = self._decoded if self.case.phase == "decode" else self._prefilled
        pairs = [of(b) for b in self.batches]
        wanted = np.stack([right for right, _ in pairs])
        error = relative_error(np.stack([plain for _, plain in pairs]), wanted)
        return wanted, bound(self.dtype, error)

    def _decoded(self, b: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """fp64 and same-precision output of one sequence. A picked query row is decoded alone,
        as the only one of a cache that ends where it sees."""
        q, cache = self.arrays
        length = int(self.lengths[b])
        own = self.table[b, : -(-length // PAGE)]
        pages = self.backend.numpy(cache[self.backend.whole(own)])
        if self.case.format is not None:
            pages = pages.astype(np.uint8)
        host = self.backend.numpy(q[b : b + 1])
        right, plain = [], []
        for t in self.rows:
            seen = length - self.case.query_len + t + 1
            given: dict[str, Any] = {
                "block_table": np.arange(len(own), dtype=np.int32)[None],
                "cache_seqlens": np.array([max(0, seen)], np.int32),
                "scale": SCALE,
            }
            query = host[:, t : t + 1, self.heads]
            right.append(reference.decode(query, pages, **given)[0, 0])
            plain.append(
                reference.same_precision_decode(query, pages, **given, dtype=self.dtype)[0, 0]
            )
        return np.stack(right), np.stack(plain)

    def _prefilled(self, b: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """fp64 and same-precision output of one sequence. Of the forms the one is taken whose
        rounding errs less, so that each of them must be as good as that."""
        q, latent, w_uk, w_uv = self.arrays
        q, latent = (self.backend.numpy(array[b : b + 1]) for array in (q, latent))
        q = q[:, :, self.heads]
        w_uk, w_uv = (self.backend.numpy(array)[self.heads] for array in (w_uk, w_uv))
        given: dict[str, Any] = {"causal": self.case.causal, "scale": SCALE, "rows": self.rows}
        right = reference.prefill(q, latent, w_uk, w_uv, **given)[0]
        plain = [
            reference.same_precision_prefill(
                q, latent, w_uk, w_uv, **given, form=form, dtype=self.dtype
            )[0]
            for form in ("decompressed", "absorbed")
        ]
        return right, min(plain, key=lambda out: relative_error(out, right))
