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


class Problem:
    """Inputs of a case in one dtype, and what is right for them. The reference is computed once,
    when the first output is judged."""

    def __init__(self, backend: Backend, case: Case, dtype: str, seed: int) -> None:
        self.backend, self.case, self.dtype = backend, case, dtype
        shapes = (
            (case.batch, case.query_len, case.heads, case.head_dim),
            (case.batch, case.cache_len, case.kv_heads, case.head_dim),
            (case.batch, case.cache_len, case.kv_heads, case.value_dim),
        )
        self.arrays = tuple(
            backend.random(shape, dtype, seed + i) for i, shape in enumerate(shapes)
        )
        whole = case.batch * case.heads * case.query_len * case.cache_len <= SMALL_PAIRS
        self.batches = picks(case.batch, case.batch if whole else BATCHES)
        self.heads = picks(case.heads, case.heads if whole else HEADS)
        self.rows = picks(case.query_len, case.query_len if whole else ROWS)

    def call(self, entry: Entry) -> Callable[[], Any]:
        """The implementation on these inputs, compiled the backend's way where the row says so."""
        function = functools.partial(entry.load(), causal=self.case.causal)
        ready = self.backend.compile(function) if entry.compiled else function
        return lambda: ready(*self.arrays)

    @property
    def compared(self) -> str:
        """What of the output the gate looks at, in words."""
        case = self.case
        return (
            f"compared with fp64: {len(self.batches)} of {case.batch} batches, {len(self.heads)} "
            f"of {case.heads} heads, {len(self.rows)} of {case.query_len} query rows"
        )

    def judge(self, call: Callable[[], Any]) -> Verdict:
        """Run once into memory that held NaN before, where the allocator gives it back."""
        poison = self.arrays[0] * float("nan")
        self.backend.synchronise(poison)
        del poison
        out = call()
        self.backend.synchronise(out)
        case = self.case
        wanted_shape = (case.batch, case.query_len, case.heads, case.value_dim)
        if tuple(out.shape) != wanted_shape:
            reason = f"wrong output: its shape is {tuple(out.shape)}, wanted {wanted_shape}"
            return Verdict(False, None, 0.0, reason)
        wanted, limit = self._wanted
        return judge(self._picked(out), wanted, limit)

    def _picked(self, out: Any) -> NDArray[np.floating]:
        """[batches, heads, rows, Dv] of an output, on the host."""
        array = self._near(out)
        parts = [
            [self._part(array, b, h)[0, self.rows, 0] for h in self.heads] for b in self.batches
        ]
        return np.stack([np.stack(row) for row in parts])

    def _near(self, array: Any) -> Any:
        """A small array on the host as a whole; a large one stays, and parts of it are copied."""
        small = math.prod(array.shape) <= SMALL_ARRAY
        return self.backend.numpy(array) if small else array

    def _part(self, array: Any, b: int, h: int) -> NDArray[np.floating]:
        """[1, length, 1, width] of one batch and head, on the host."""
        part = array[b : b + 1, :, h : h + 1]
        return part if isinstance(part, np.ndarray) else self.backend.numpy(part)

    @functools.cached_property
    def _wanted(self) -> tuple[NDArray[np.floating], float]:
        """The fp64 output where it is compared, and the bound."""
        group = self.case.heads // self.case.kv_heads
        near = [self._near(array) for array in self.arrays]
        right: list[NDArray[np.floating]] = []
        plain: list[NDArray[np.floating]] = []
        for b in self.batches:
            for h in self.heads:
                q = self._part(near[0], b, h)
                k, v = (self._part(array, b, h // group) for array in near[1:])
                given: dict[str, Any] = {"causal": self.case.causal, "rows": self.rows}
                right.append(reference.attention(q, k, v, **given)[0, :, 0])
                plain.append(reference.same_precision(q, k, v, dtype=self.dtype, **given)[0, :, 0])
        shape = (len(self.batches), len(self.heads), len(self.rows), self.case.value_dim)
        wanted = np.stack(right).reshape(shape)
        error = relative_error(np.stack(plain).reshape(shape), wanted)
        return wanted, bound(self.dtype, error)


def picks(total: int, most: int) -> list[int]:
    """The first, the last and evenly spaced indices: at most ``most`` of ``total``."""
    if most >= total:
        return list(range(total))
    if most == 1:
        return [total - 1]
    return sorted({round(i * (total - 1) / (most - 1)) for i in range(most)})
