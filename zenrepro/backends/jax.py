"""jax on the CPU, a GPU or a TPU."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np

from zenrepro.backends.base import Array, Backend, Timing, Unavailable, one_line
from zenrepro.backends.timing import (
    Batches,
    BehindFlush,
    Flushed,
    around,
    behind_flush,
    in_batches,
    on_cpu,
)
from zenrepro.backends.turns import Sampler
from zenrepro.hardware import nvidia

# Twice the largest L2 of any GPU sold so far; jax does not tell the size.
_FLUSH_BYTES = 2**28
# A call this long could move some thirty times what an L2 holds, so what the call before left
# there saves it a few per cent at most. Taking off the time of a flush errs by more: on an H200
# a read of 4.3 GB came out 4 % above what CUDA events tell.
_LONG_S = 5e-4
# Long enough that starting the first call and waiting for the last weigh little.
_LONG_SAMPLE_S = 1e-2
# Samples that tell whether a call is long enough to be timed behind a flush.
_PILOT = 5
_BEHIND_FLUSH = (
    "host clock from emptying the L2 (writing and reading "
    f"{_FLUSH_BYTES // 2**20} MiB) to the result, the call started meanwhile; "
    "less the median time of emptying alone"
)
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}


class JaxBackend(Backend):
    """jax. Calls must go through ``compile``; results are waited for."""

    name = "jax"

    def __init__(self, device: str) -> None:
        super().__init__(device)
        # Read when jax is first imported: without it jax takes three quarters of the GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        # And with it, still no more than that: cases that fit the device would run out of memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
        # XLA tells of each failed allocation by pages of log; the exception says it in a line.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if self.kind == "gpu":
            nvidia.order()
        import jax
        import jax.numpy as jnp

        self.jax = jax
        self.jnp = jnp
        # No effect once jax has opened its devices; until then it keeps a CPU run off the GPUs.
        jax.config.update("jax_platforms", _PLATFORMS[self.kind])
        try:
            self._device = jax.devices(self.kind)[self.index]
        except (RuntimeError, IndexError) as error:
            raise Unavailable(f"backend jax on {device}: {one_line(error)}") from error
        jax.config.update("jax_default_device", self._device)

    @cached_property
    def _dtypes(self) -> dict[str, Any]:
        jnp = self.jnp
        return {
            "fp32": jnp.float32, "fp16": jnp.float16, "bf16": jnp.bfloat16,
            "fp8_e4m3": jnp.float8_e4m3fn, "int8": jnp.int8,
        }  # fmt: skip

    def asarray(self, array: np.ndarray, dtype: str) -> Array:
        target = self._dtypes[self._checked(dtype)]
        # device_put may share the host's memory on the CPU: give it a copy of its own.
        placed = self.jax.device_put(np.array(array, order="C"), self._device)
        return self.jax.block_until_ready(placed.astype(target))

    def whole(self, array: np.ndarray) -> Array:
        placed = self.jax.device_put(np.array(array, order="C"), self._device)
        return self.jax.block_until_ready(placed)

    def numpy(self, array: Array) -> np.ndarray:
        wanted = self.jnp.float64 if array.dtype == self.jnp.float64 else self.jnp.float32
        return np.array(array.astype(wanted))

    def _fill(self, block: Array, shape: tuple[int, ...], size: int) -> Array:
        if block.size == size:
            return block.reshape(shape)
        # Compiled, so that the repeats are written once and never held beside the result.
        fill = self.jax.jit(partial(self.jnp.resize, new_shape=shape))
        return self.jax.block_until_ready(fill(block))

    def unsupported(self, dtype: str) -> str | None:
        if dtype == "fp64":
            return "jax holds fp64 only when 64-bit types are switched on for the whole process"
        return None

    def synchronise(self, result: Any = None) -> None:
        if result is not None:
            self.jax.block_until_ready(result)
        self.jax.effects_barrier()
        # Devices run in order: what is started now ends after all that was started before.
        self.jax.block_until_ready(self.jax.device_put(np.float32(0), self._device) + 1)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.jax.jit(function)

    def time(
        self,
        call: Callable[[], Any],
        *,
        samples: int,
        warmup: int,
        cold: bool,
        budget_s: float | None = None,
    ) -> Timing:
        wait = self.jax.block_until_ready
        if self.kind == "cpu":
            return Timing(
                *on_cpu(call, wait, samples=samples, warmup=warmup, cold=cold, budget_s=budget_s)
            )
        if cold and self.kind == "gpu":
            long = self._long(call, wait, warmup)
            if long is not None:
                seconds = around(
                    call, wait, None,
                    samples=samples, warmup=0, budget_s=budget_s, calls_per_sample=long.batch,
                )  # fmt: skip
                return Timing(seconds, long.how)
            flushed = behind_flush(
                call, wait, self._flusher(), samples=samples, warmup=warmup, budget_s=budget_s
            )
            if flushed is not None:
                return Timing(flushed, _BEHIND_FLUSH)
        batches, how = in_batches(call, wait, samples=samples, warmup=warmup, budget_s=budget_s)
        return Timing(batches, self._warm(how) if cold else how)

    def _long(
        self, call: Callable[[], Any], wait: Callable[[Any], None], warmup: int
    ) -> Batches | None:
        """Batches of a call that is long enough to be timed without emptying the L2."""
        once = min(around(call, wait, None, samples=3, warmup=max(1, warmup), budget_s=None))
        if once < _LONG_S:
            return None
        batch = math.ceil(_LONG_SAMPLE_S / once)
        how = (
            f"host clock around {batch} call(s) started back to back, divided by {batch}; "
            "L2 as the call before left it, which saves a call this long little"
        )
        return Batches(call, wait, batch, how)

    def _warm(self, how: str) -> str:
        why = "a TPU has no cache to empty" if self.kind == "tpu" else "too short to time cold"
        return f"{how} ({why})"

    def _sampler(self, call: Callable[[], Any], *, warmup: int, cold: bool) -> Sampler:
        wait = self.jax.block_until_ready
        if self.kind == "cpu":
            return super()._sampler(call, warmup=warmup, cold=cold)
        if cold and self.kind == "gpu":
            long = self._long(call, wait, warmup)
            if long is not None:
                return long
            pilot = BehindFlush(call, wait, self._shared_flusher, 1)
            for _ in range(_PILOT):
                pilot.take()
            if pilot.seconds() is not None:
                pairs = BehindFlush(call, wait, self._shared_flusher, 1)
                return Flushed(pairs, _BEHIND_FLUSH, partial(self._alone, call))
        batches = Batches.of_short(call, wait, warmup)
        batches.how = self._warm(batches.how) if cold else batches.how
        return batches

    def _alone(self, call: Callable[[], Any], samples: int) -> tuple[list[float], str]:
        seconds, how = in_batches(
            call, self.jax.block_until_ready, samples=samples, warmup=1, budget_s=None
        )
        return seconds, f"{self._warm(how)}, by itself"

    @cached_property
    def _shared_flusher(self) -> Callable[[], Any]:
        """One pair of buffers for all calls that are sampled in turn."""
        return self._flusher()

    def _flusher(self) -> Callable[[], Any]:
        jax, jnp = self.jax, self.jnp
        written = jnp.zeros(_FLUSH_BYTES // 4, jnp.float32)
        read = jnp.ones(_FLUSH_BYTES // 4, jnp.float32)
        write = jax.jit(lambda x: x + 1, donate_argnums=0)
        total = jax.jit(jnp.sum)

        def flush() -> Any:
            nonlocal written
            written = write(written)
            # Reading last leaves no unwritten line in the L2 for the call to pay for.
            return total(read)

        return flush

    def peak_memory(self, call: Callable[[], Any]) -> int | None:
        """Known only when the call's peak is the highest of the process: jax cannot reset it."""
        before = self._device.memory_stats()
        if not before or "peak_bytes_in_use" not in before:
            return None
        result = self.jax.block_until_ready(call())
        after = self._device.memory_stats()
        del result
        if after["peak_bytes_in_use"] <= before["peak_bytes_in_use"]:
            return None
        return int(after["peak_bytes_in_use"] - before["bytes_in_use"])

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError):
            return True
        text = str(error)
        return isinstance(error, RuntimeError) and (
            "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
        )
