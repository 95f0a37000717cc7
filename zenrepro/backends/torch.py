"""torch on the CPU or on CUDA."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from zenrepro.backends.base import Array, Backend, Timing, Unavailable, one_line
from zenrepro.backends.timing import enough, on_cpu
from zenrepro.backends.turns import Turn, fitting, forgotten, others, rounds
from zenrepro.hardware import nvidia

# Samples queued on the GPU between two waits: enough that it never idles, few enough that the time
# box is kept.
_MOST_QUEUED, _QUEUED_S = 10, 0.05
_MINIMUM_FLUSH_BYTES = 2**27


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector: graphs that it drops meanwhile would spoil a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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

    def whole(self, array: np.ndarray) -> Array:
        return self.torch.from_numpy(np.array(array, order="C")).to(self.device)

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
        return Timing(seconds, self._said(how, cold))

    def time_together(
        self,
        calls: Mapping[str, Callable[[], Any]],
        *,
        samples: Mapping[str, int],
        warmup: Mapping[str, int],
        cold: bool,
        budget_s: float | None = None,
    ) -> dict[str, Turn]:
        """On CUDA all calls are captured first; each replay of a round has its own events.

        Graphs that do not fit in memory beside those before them are timed after them, by
        themselves: ``Turn.beside`` then names fewer calls than were given.
        """
        if self.kind != "cuda":
            return super().time_together(
                calls, samples=samples, warmup=warmup, cold=cold, budget_s=budget_s
            )
        out: dict[str, Turn] = {}
        left = list(calls)
        while left:
            captured: dict[str, tuple[Callable[[], Any], str]] = {}
            try:
                with self.torch.inference_mode():
                    left = self._capture_all(calls, left, captured, out)
                    if captured:
                        out |= self._rounds(captured, samples, warmup, cold, budget_s)
            finally:
                captured.clear()
                self.release()
        return {name: out[name] for name in calls}

    def _capture_all(
        self,
        calls: Mapping[str, Callable[[], Any]],
        names: list[str],
        captured: dict[str, tuple[Callable[[], Any], str]],
        out: dict[str, Turn],
    ) -> list[str]:
        """Capture as many as fit; returns those that do not fit beside the ones before them.

        One pool serves all graphs: they never run at once, so that what one of them only needs
        while it runs lies where another has its own.
        """
        pool = self.torch.cuda.graph_pool_handle()
        for place, name in enumerate(names):
            try:
                captured[name] = self._capture(calls[name], 2, pool)
            except Exception as error:  # noqa: BLE001  (handed to the caller; the others go on)
                if captured and self.is_out_of_memory(error):
                    forgotten(error)
                    return names[place:]
                out[name] = Turn(None, forgotten(error))
        return []

    def _rounds(
        self,
        captured: Mapping[str, tuple[Callable[[], Any], str]],
        samples: Mapping[str, int],
        warmup: Mapping[str, int],
        cold: bool,
        budget_s: float | None,
    ) -> dict[str, Turn]:
        """Replay in rounds. Some of the warm-up of each warms the device for all."""
        flush = self._flusher() if cold else None
        failed: dict[str, Exception] = {}
        seconds: dict[str, list[float]] = {name: [] for name in captured}

        def play(order: Sequence[str]) -> None:
            marks = {}
            for name in order:
                if name in failed:
                    continue
                begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
                try:
                    if flush:
                        flush()
                    begin.record()
                    captured[name][0]()
                    end.record()
                except Exception as error:  # noqa: BLE001  (as above)
                    failed[name] = forgotten(error)
                    continue
                marks[name] = (begin, end)
            self.torch.cuda.synchronize(self.index)
            for name, (begin, end) in marks.items():
                seconds[name].append(begin.elapsed_time(end) / 1e3)

        for order in rounds({n: max(1, warmup[n] // len(captured)) for n in captured}):
            play(order)
        lengths = {name: taken[-1] for name, taken in seconds.items() if taken}
        seconds = {name: [] for name in captured}
        for order in rounds(
            {name: fitting(samples[name], length, budget_s) for name, length in lengths.items()}
        ):
            play(order)
        well = tuple(name for name in captured if name not in failed)
        return {
            name: Turn(None, failed[name])
            if name in failed
            else Turn(Timing(seconds[name], self._said(how, cold)), None, others(name, well))
            for name, (_, how) in captured.items()
        }

    def _said(self, how: str, cold: bool) -> str:
        """How a sample was taken, its cache included."""
        if not cold:
            return f"{how}; warm L2"
        size = self._flush_bytes // 2**20
        return f"{how}; L2 emptied before each by writing and reading {size} MiB"

    def _capture(
        self, call: Callable[[], Any], warmup: int, pool: Any = None
    ) -> tuple[Callable[[], Any], str]:
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
            with _uncollected(), torch.cuda.graph(graph, stream=stream, pool=pool):
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

    def lost(self) -> bool:
        if self.kind != "cuda":
            return False
        try:
            self.torch.cuda.synchronize(self.index)
        except RuntimeError as error:
            return not self.is_out_of_memory(error)
        return False

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, MemoryError | self.torch.cuda.OutOfMemoryError):
            return True
        text = str(error).lower()
        return isinstance(error, RuntimeError) and (
            "can't allocate memory" in text
            or "not enough memory" in text
            or "out of memory" in text
        )
