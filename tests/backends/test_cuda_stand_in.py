"""The CUDA timer on a stand-in for torch.cuda: order of work, what is counted, and failures.

``test_accelerator.py`` tries the same on a real GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from zenrepro.backends.torch import TorchBackend


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class Gpu:
    """Runs what it is given in order, on its own clock; remembers what it ran."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.ran: list[str] = []
        self.captured: list[tuple[str, float]] | None = None
        self.cuda = SimpleNamespace(
            Event=lambda enable_timing: Event(self),
            Stream=lambda index: SimpleNamespace(wait_stream=lambda other: None),
            current_stream=lambda index: SimpleNamespace(wait_stream=lambda other: None),
            stream=self._stream,
            synchronize=lambda index: None,
            CUDAGraph=lambda: Graph(self),
            empty_cache=lambda: self.ran.append("emptied"),
            graph=self._capture,
            graph_pool_handle=lambda: object(),
            OutOfMemoryError=OutOfMemoryError,
            get_device_properties=lambda index: SimpleNamespace(L2_cache_size=60 * 2**20),
        )
        self.int32 = self.float32 = None
        self.inference_mode = self._stream

    def run(self, name: str, ms: float) -> None:
        if self.captured is not None:
            self.captured.append((name, ms))
            return
        self.ran.append(name)
        self.now_ms += ms

    @contextmanager
    def _stream(self, *_: Any) -> Iterator[None]:
        yield

    @contextmanager
    def _capture(self, graph: Graph, stream: Any, pool: Any = None) -> Iterator[None]:
        self.captured = graph.work
        try:
            yield
        finally:
            self.captured = None

    def empty(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(zero_=lambda: self.run("write", 0.03))

    ones = empty

    def sum(self, *_: Any, **__: Any) -> None:
        self.run("read", 0.03)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at_ms = gpu, 0.0

    def record(self) -> None:
        self.at_ms = self.gpu.now_ms

    def elapsed_time(self, end: Event) -> float:
        return end.at_ms - self.at_ms


class Graph:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.work: list[tuple[str, float]] = []

    def replay(self) -> None:
        for name, ms in self.work:
            self.gpu.run(name, ms)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def backend(gpu: Gpu) -> TorchBackend:
    one = object.__new__(TorchBackend)
    one.device, one.kind, one.index, one.torch = "cuda:0", "cuda", 0, gpu
    return one


def test_only_the_replay_is_counted(backend: TorchBackend, gpu: Gpu) -> None:
    calls = []

    def call() -> str:
        calls.append(1)
        gpu.run("kernel", 0.5)
        return "result"

    seconds, method = backend.time(call, samples=25, warmup=3, cold=True)
    assert seconds == pytest.approx([0.5e-3] * 25)
    assert "replay of a CUDA graph" in method
    assert "128 MiB" in method
    assert len(calls) == 3 + 1  # Warm-up and capture; the host never calls it again.
    # Each sample finds the L2 written over, then read over.
    assert gpu.ran[-7:] == ["write", "read", "kernel"] * 2 + ["emptied"]


def test_a_large_l2_gets_a_larger_flush(backend: TorchBackend, gpu: Gpu) -> None:
    gpu.cuda.get_device_properties = lambda index: SimpleNamespace(L2_cache_size=126 * 2**20)
    assert backend._flush_bytes == 252 * 2**20


def test_a_warm_call_is_not_flushed(backend: TorchBackend, gpu: Gpu) -> None:
    _, method = backend.time(lambda: gpu.run("kernel", 0.5), samples=3, warmup=1, cold=False)
    assert set(gpu.ran) == {"kernel", "emptied"}
    assert "warm L2" in method


def test_a_call_that_cannot_be_captured_is_timed_plainly(backend: TorchBackend, gpu: Gpu) -> None:
    def call() -> None:
        if gpu.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        gpu.run("kernel", 0.5)

    seconds, method = backend.time(call, samples=5, warmup=1, cold=True)
    assert seconds == pytest.approx([0.5e-3] * 5)
    assert "not a graph (operation not permitted when stream is capturing)" in method


def test_lack_of_memory_while_capturing_is_raised(backend: TorchBackend, gpu: Gpu) -> None:
    def call() -> None:
        if gpu.captured is not None:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")

    with pytest.raises(OutOfMemoryError) as raised:
        backend.time(call, samples=5, warmup=1, cold=True)
    assert backend.is_out_of_memory(raised.value)


def test_an_error_of_the_call_is_not_taken_for_one_of_capture(
    backend: TorchBackend, gpu: Gpu
) -> None:
    calls = iter(range(100))

    def call() -> None:
        if next(calls) >= 2:
            raise ValueError("of the call")

    with pytest.raises(ValueError, match="of the call"):
        backend.time(call, samples=5, warmup=1, cold=False)


def test_the_time_box_ends_between_queues(backend: TorchBackend, gpu: Gpu) -> None:
    seconds, _ = backend.time(
        lambda: gpu.run("kernel", 0.5), samples=50, warmup=1, cold=False, budget_s=0.0
    )
    assert len(seconds) == 11  # One to learn its length, then as many as fill 50 ms, at most 10.
    seconds, _ = backend.time(
        lambda: gpu.run("kernel", 800.0), samples=50, warmup=1, cold=False, budget_s=0.0
    )
    assert len(seconds) == 3


def together(backend: TorchBackend, calls: dict[str, Any], **given: Any) -> Any:
    wanted = {"samples": 4, "warmup": 1} | given
    return backend.time_together(
        calls,
        samples=dict.fromkeys(calls, wanted["samples"]),
        warmup=dict.fromkeys(calls, wanted["warmup"]),
        cold=True,
        budget_s=given.get("budget_s"),
    )


def kernel(gpu: Gpu, name: str, ms: float) -> Any:
    return lambda: gpu.run(name, ms)


def test_all_are_captured_before_the_rounds_and_each_replay_follows_a_flush(
    backend: TorchBackend, gpu: Gpu
) -> None:
    got = together(backend, {"a": kernel(gpu, "a", 0.5), "b": kernel(gpu, "b", 0.25)})
    assert got["a"].timing.seconds == pytest.approx([0.5e-3] * 4)
    assert got["b"].timing.seconds == pytest.approx([0.25e-3] * 4)
    assert (got["a"].beside, got["b"].beside) == (("b",), ("a",))
    assert "replay of a CUDA graph" in got["a"].timing.method
    flushed = ["write", "read"]
    # Two calls each warm them up; one round warms the device; then the rounds, the order rotating.
    begin = ["a", "a", "b", "b"]
    rounds = [["a", "b"], ["a", "b"], ["b", "a"], ["a", "b"], ["b", "a"]]
    played = [step for order in rounds for name in order for step in (*flushed, name)]
    assert gpu.ran == [*begin, *played, "emptied"]


def test_graphs_share_one_pool(backend: TorchBackend, gpu: Gpu) -> None:
    pools = []
    real = gpu.cuda.graph

    def graph(one: Graph, stream: Any, pool: Any = None) -> Any:
        pools.append(pool)
        return real(one, stream=stream, pool=pool)

    gpu.cuda.graph = graph
    together(backend, {name: kernel(gpu, name, 0.5) for name in "abc"})
    assert len(pools) == 3
    assert len(set(map(id, pools))) == 1
    assert pools[0] is not None


def test_a_slow_call_gets_fewer_samples_among_the_others(backend: TorchBackend, gpu: Gpu) -> None:
    calls = {"slow": kernel(gpu, "slow", 400.0), "fast": kernel(gpu, "fast", 0.1)}
    got = together(backend, calls, samples=30, budget_s=2.0)
    assert len(got["slow"].timing.seconds) == 5
    assert len(got["fast"].timing.seconds) == 30
    kernels = [name for name in gpu.ran[-(35 * 3) :] if name in calls]
    slow = [i for i, name in enumerate(kernels) if name == "slow"]
    assert slow[0] > 0  # among the fast ones, not all before them
    assert slow[-1] >= len(kernels) - 2


def test_captures_that_do_not_fit_together_are_timed_after_those_that_do(
    backend: TorchBackend, gpu: Gpu
) -> None:
    held: list[str] = []

    def large(name: str) -> Any:
        def call() -> None:
            if gpu.captured is not None:
                if len(held) == 2:
                    held.clear()
                    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 48 GiB")
                held.append(name)
            gpu.run(name, 1.0)

        return call

    got = together(backend, {name: large(name) for name in "abc"})
    assert all(len(turn.timing.seconds) == 4 for turn in got.values())
    assert {name: turn.beside for name, turn in got.items()} == {"a": ("b",), "b": ("a",), "c": ()}
    emptied = gpu.ran.index("emptied")  # what the first two held is given back before the third
    assert "c" not in gpu.ran[gpu.ran.index("a", 4) : emptied][4:]
    assert gpu.ran[emptied:].count("c") == 2 + 1 + 4


def test_what_does_not_fit_alone_is_out_of_memory_and_the_others_are_timed(
    backend: TorchBackend, gpu: Gpu
) -> None:
    def huge() -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 400 GiB")

    def wrong() -> None:
        raise ValueError("of the call")

    calls = {"a": kernel(gpu, "a", 0.5), "huge": huge, "wrong": wrong, "b": kernel(gpu, "b", 0.5)}
    got = together(backend, calls)
    assert list(got) == list(calls)
    assert backend.is_out_of_memory(got["huge"].error)
    assert str(got["wrong"].error) == "of the call"
    assert len(got["a"].timing.seconds) == len(got["b"].timing.seconds) == 4


def test_one_that_breaks_in_the_rounds_drops_out(backend: TorchBackend, gpu: Gpu) -> None:
    calls = iter(range(100))

    def breaks() -> None:  # cannot be captured, so it is called in every round
        if gpu.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        if next(calls) == 4:
            raise ValueError("late")
        gpu.run("breaks", 0.5)

    got = together(backend, {"a": kernel(gpu, "a", 0.5), "breaks": breaks})
    assert str(got["breaks"].error) == "late"
    assert len(got["a"].timing.seconds) == 4
    assert got["a"].beside == ()


def test_a_call_that_cannot_be_captured_is_timed_plainly_among_the_others(
    backend: TorchBackend, gpu: Gpu
) -> None:
    def plain() -> None:
        if gpu.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.run("plain", 0.5)

    got = together(backend, {"a": kernel(gpu, "a", 0.5), "plain": plain})
    assert "not a graph" in got["plain"].timing.method
    assert got["plain"].timing.seconds == pytest.approx([0.5e-3] * 4)
    assert got["plain"].beside == ("a",)


def test_a_lost_device_is_told_from_a_full_one(backend: TorchBackend, gpu: Gpu) -> None:
    assert not backend.lost()

    def raising(error: Exception) -> Any:
        def synchronize(index: int) -> None:
            raise error

        return synchronize

    gpu.cuda.synchronize = raising(RuntimeError("CUDA error: an illegal memory access"))
    assert backend.lost()
    gpu.cuda.synchronize = raising(OutOfMemoryError("CUDA out of memory"))
    assert not backend.lost()
    backend.kind = "cpu"
    assert not backend.lost()
