"""mlx on the CPU, on Metal or on CUDA."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np

from zenrepro.backends.base import Array, Backend, Timing, Unavailable
from zenrepro.backends.timing import (
    Batches,
    BehindFlush,
    Flushed,
    behind_flush,
    in_batches,
    on_cpu,
)
from zenrepro.backends.turns import Sampler
from zenrepro.hardware import nvidia

# Twice the largest last-level cache of any GPU or Apple chip sold so far.
_FLUSH_BYTES = 2**28
# Samples that tell whether a call is long enough to be timed behind a flush.
_PILOT = 5
_BEHIND_FLUSH = (
    "host clock from emptying the cache (writing and reading "
    f"{_FLUSH_BYTES // 2**20} MiB) to the result, the call started meanwhile; "
    "less the median time of emptying alone"
)


class MlxBackend(Backend):
    """mlx. It computes when asked to: every sample ends with ``mx.eval`` of the call's result."""

    name = "mlx"

    def __init__(self, device: str) -> None:
        super().__init__(device)
        if self.kind == "gpu":
            nvidia.order()
        # fp32 means fp32, as on the other backends: by default mlx takes TF32 where there is any.
        os.environ["MLX_ENABLE_TF32"] = "0"
        import mlx.core as mx

        self.mx: Any = mx
        if self.kind == "cpu":
            mx.set_default_device(mx.cpu)
            return
        there = mx.metal.is_available() if self.kind == "metal" else mx.cuda.is_available()
        if not there:
            raise Unavailable(f"backend mlx on {device}: mlx finds no usable GPU")
        mx.set_default_device(mx.Device(mx.gpu, self.index))

    @cached_property
    def _dtypes(self) -> dict[str, Any]:
        mx = self.mx
        return {
            "fp64": mx.float64, "fp32": mx.float32, "fp16": mx.float16, "bf16": mx.bfloat16,
            "int8": mx.int8,
        }  # fmt: skip

    def asarray(self, array: np.ndarray, dtype: str) -> Array:
        target = self._dtypes[self._checked(dtype)]
        out = self.mx.array(np.ascontiguousarray(array), dtype=target)
        self.mx.eval(out)
        return out

    def whole(self, array: np.ndarray) -> Array:
        out = self.mx.array(np.ascontiguousarray(array))
        self.mx.eval(out)
        return out

    def numpy(self, array: Array) -> np.ndarray:
        wanted = self.mx.float64 if array.dtype == self.mx.float64 else self.mx.float32
        return np.array(array.astype(wanted))

    def _fill(self, block: Array, shape: tuple[int, ...], size: int) -> Array:
        if block.size != size:
            block = self.mx.tile(block, -(-size // block.size))[:size]
        out = block.reshape(shape)
        self.mx.eval(out)
        return out

    def unsupported(self, dtype: str) -> str | None:
        if dtype == "fp8_e4m3":
            return "mlx has no fp8_e4m3 arrays"
        if dtype == "fp64" and self.kind != "cpu":
            return "mlx has fp64 on the CPU only"
        return None

    def synchronise(self, result: Any = None) -> None:
        if result is not None:
            self.mx.eval(result)
        self.mx.synchronize()

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.mx.compile(function)

    def start(self, call: Callable[[], Any]) -> Any:
        result = call()
        self.mx.async_eval(result)
        return result

    def time(
        self,
        call: Callable[[], Any],
        *,
        samples: int,
        warmup: int,
        cold: bool,
        budget_s: float | None = None,
    ) -> Timing:
        mx = self.mx
        if self.kind == "cpu":
            return Timing(
                *on_cpu(call, mx.eval, samples=samples, warmup=warmup, cold=cold, budget_s=budget_s)
            )

        if cold:
            seconds = behind_flush(
                call, mx.eval, self._flusher(), samples=samples, warmup=warmup, budget_s=budget_s
            )
            if seconds is not None:
                return Timing(seconds, _BEHIND_FLUSH)
        batches, how = in_batches(
            partial(self.start, call), mx.eval, samples=samples, warmup=warmup, budget_s=budget_s
        )
        return Timing(batches, f"{how} (too short to time cold)" if cold else how)

    def _sampler(self, call: Callable[[], Any], *, warmup: int, cold: bool) -> Sampler:
        wait = self.mx.eval
        if self.kind == "cpu":
            return super()._sampler(call, warmup=warmup, cold=cold)
        if cold:
            pairs = BehindFlush(call, wait, self._shared_flusher, warmup)
            for _ in range(_PILOT):
                pairs.take()
            if pairs.seconds() is not None:
                pairs = BehindFlush(call, wait, self._shared_flusher, 1)
                return Flushed(pairs, _BEHIND_FLUSH, partial(self._alone, call))
        batches = Batches.of_short(partial(self.start, call), wait, warmup)
        if cold:
            batches.how += " (too short to time cold)"
        return batches

    def _alone(self, call: Callable[[], Any], samples: int) -> tuple[list[float], str]:
        seconds, how = in_batches(
            partial(self.start, call), self.mx.eval, samples=samples, warmup=1, budget_s=None
        )
        return seconds, f"{how} (too short to time cold), by itself"

    @cached_property
    def _shared_flusher(self) -> Callable[[], Any]:
        """One pair of buffers for all calls that are sampled in turn."""
        return self._flusher()

    def _flusher(self) -> Callable[[], Any]:
        mx = self.mx
        written = mx.zeros(_FLUSH_BYTES // 4, dtype=mx.float32)
        read = mx.ones(_FLUSH_BYTES // 4, dtype=mx.float32)
        mx.eval(written, read)

        def flush() -> Any:
            nonlocal written
            written = written + 1
            total = mx.sum(read)
            mx.async_eval(written, total)
            return total

        return flush

    def peak_memory(self, call: Callable[[], Any]) -> int | None:
        mx = self.mx
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        result = call()
        mx.eval(result)
        del result
        return max(0, int(mx.get_peak_memory() - before))

    def release(self) -> None:
        super().release()
        self.mx.clear_cache()

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError):
            return True
        text = str(error).lower()
        return isinstance(error, RuntimeError) and (
            "out of memory" in text
            or "unable to allocate" in text
            or "attempting to allocate" in text
        )
