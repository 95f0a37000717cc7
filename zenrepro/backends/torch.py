"""torch on the CPU or on CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from zenrepro.backends.base import Array, Backend, Timing, Unavailable, one_line
from zenrepro.backends.timing import enough, on_cpu
from zenrepro.hardware import nvidia

# Samples queued on the GPU between two waits: enough that it never idles, few enough that the time
# box is kept.
_MOST_QUEUED, _QUEUED_S = 10, 0.05
_MINIMUM_FLUSH_BYTES = 2**27


class TorchBackend(Backend):
    """torch. On CUDA, time is what the GPU needs: a captured graph between two events."""

    name = "torch"

    def __init__(self, device: str) -> None:
        super().__init__(device)
        if self.kind == "cuda":
            nvidia.order()
        import torch

        self.torch = torch
        if self.kind == "cuda":
            self._open_cuda()

    def _open_cuda(self) -> None:
        torch = self.torch
        if not torch.cuda.is_available():
            raise Unavailable(
                f"backend torch on {self.device}: torch {torch.__version__} finds no usable GPU "
                "(driver too old, or hidden by CUDA_VISIBLE_DEVICES)"
            )
        if self.index >= torch.cuda.device_count():
            raise Unavailable(
                f"backend torch on {self.device}: torch sees {torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(self.index)

    @cached_property
    def _dtypes(self) -> dict[str, Any]:
        torch = self.torch
        return {
            "fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16,
            "bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "int8": torch.int8,
        }  # fmt: skip

    def asarray(self, array: np.ndarray, dtype: str) -> Array:
        target = self._dtypes[self._checked(dtype)]
        # A copy: torch would share the host's memory, and numpy may forbid writing to it.
        host = self.torch.from_numpy(np.array(array, order="C"))
        return host.to(self.device).to(target)

    def numpy(self, array: Array) -> np.ndarray:
        wanted = self.torch.float64 if array.dtype == self.torch.float64 else self.torch.float32
        return np.asarray(array.detach().to(wanted).cpu().numpy())

    def _fill(self, block: Array, shape: tuple[int, ...], size: int) -> Array:
        length = block.numel()
        if length == size:
            return block.view(shape)
        out = self.torch.empty(size, dtype=block.dtype, device=block.device)
        for start in range(0, size, length):
            part = out[start : start + length]
            part.copy_(block[: part.numel()])
        return out.view(shape)

    def unsupported(self, dtype: str) -> str | None:
        return None

    def synchronise(self, result: Any = None) -> None:
        if self.kind == "cuda":
            self.torch.cuda.synchronize(self.index)

    def time(
        self,
        call: Callable[[], Any],
        *,
        samples: int,
        warmup: int,
        cold: bool,
        budget_s: float | None = None,
    ) -> Timing:
        with self.torch.inference_mode():
            if self.kind == "cuda":
                try:
                    return self._time_cuda(call, samples, warmup, cold, budget_s)
                finally:
                    # A graph has memory of its own, which nothing else could use until then.
                    self.torch.cuda.empty_cache()
            seconds, how = on_cpu(
                call, lambda _: None, samples=samples, warmup=warmup, cold=cold, budget_s=budget_s
            )
        return Timing(seconds, f"{how}; {self.torch.get_num_threads()} threads")

    def _time_cuda(
        self, call: Callable[[], Any], samples: int, warmup: int, cold: bool, budget_s: float | None
    ) -> Timing:
        torch = self.torch
        run, how = self._capture(call, warmup)
        flush = self._flusher() if cold else None
        for _ in range(max(1, warmup)):
            if flush:
                flush()
            run()
        torch.cuda.synchronize(self.index)
        seconds: list[float] = []
        queued = 1
        started = time.perf_counter()
        while not enough(len(seconds), samples, started, budget_s):
            pairs = []
            for _ in range(min(queued, samples - len(seconds))):
                begin = torch.cuda.Event(enable_timing=True)
                end = torch.cuda.Event(enable_timing=True)
                if flush:
                    flush()
                begin.record()
                run()
                end.record()
                pairs.append((begin, end))
            torch.cuda.synchronize(self.index)
            seconds += [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
            queued = max(1, min(_MOST_QUEUED, int(_QUEUED_S / max(seconds[-1], 1e-9))))
        caches = (
            f"L2 emptied before each by writing and reading {self._flush_bytes // 2**20} MiB"
            if cold
            else "warm L2"
        )
        return Timing(seconds, f"{how}; {caches}")

    def _capture(self, call: Callable[[], Any], warmup: int) -> tuple[Callable[[], Any], str]:
        """A replay of ``call`` as a CUDA graph; the call itself, and why, where it has none."""
        torch = self.torch
        stream = torch.cuda.Stream(self.index)
        stream.wait_stream(torch.cuda.current_stream(self.index))
        with torch.cuda.stream(stream):  # Capture asks that warm-up runs off the main stream.
            for _ in range(max(2, warmup)):
                call()
        torch.cuda.current_stream(self.index).wait_stream(stream)
        torch.cuda.synchronize(self.index)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                held = call()
        except Exception as error:
            if self.is_out_of_memory(error):
                raise
            torch.cuda.synchronize(self.index)
            call()  # An error of the call itself, not of capturing it, is raised here.
            torch.cuda.synchronize(self.index)
            return call, f"CUDA events around the call, not a graph ({one_line(error)})"

        def replay() -> Any:
            graph.replay()
            return held  # The graph writes into these; they must live as long as it does.

        return replay, "CUDA events around the replay of a CUDA graph"

    @cached_property
    def _flush_bytes(self) -> int:
        properties = self.torch.cuda.get_device_properties(self.index)
        return max(2 * int(getattr(properties, "L2_cache_size", 0) or 0), _MINIMUM_FLUSH_BYTES)

    def _flusher(self) -> Callable[[], None]:
        """Write one buffer, then read another: no line of the caller's, and none unwritten, is
        left in the L2 when the call starts."""
        torch = self.torch
        elements = self._flush_bytes // 4
        written = torch.empty(elements, dtype=torch.int32, device=self.device)
        read = torch.ones(elements, dtype=torch.float32, device=self.device)
        total = torch.empty((), dtype=torch.float32, device=self.device)

        def flush() -> None:
            written.zero_()
            torch.sum(read, dim=0, out=total)

        return flush

    def peak_memory(self, call: Callable[[], Any]) -> int | None:
        if self.kind != "cuda":
            return None
        cuda = self.torch.cuda
        cuda.synchronize(self.index)
        before = int(cuda.memory_allocated(self.index))
        cuda.reset_peak_memory_stats(self.index)
        with self.torch.inference_mode():
            result = call()
        cuda.synchronize(self.index)
        del result
        return max(0, int(cuda.max_memory_allocated(self.index)) - before)

    def release(self) -> None:
        super().release()
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError | self.torch.cuda.OutOfMemoryError):
            return True
        text = str(error).lower()
        return isinstance(error, RuntimeError) and (
            "can't allocate memory" in text
            or "not enough memory" in text
            or "out of memory" in text
        )
