"""The accelerators' own paths. They run where there is one; elsewhere the reason is printed.

One process holds one framework's GPU at a time, so jax and mlx are tried in processes of their
own.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from typing import Any

import pytest

from zenrepro import backends, hardware
from zenrepro.backends.torch import TorchBackend

IN_ITS_OWN_PROCESS = """
import sys
from statistics import median
from zenrepro import backends
b = backends.open(sys.argv[1], sys.argv[2])
a = b.random((2048, 2048), "bf16", 0)
product = b.compile(lambda x: x @ x)
seconds, method = b.time(lambda: product(a), samples=10, warmup=3, cold=True)
assert len(seconds) == 10 and min(seconds) > 0, seconds
assert 2 * 2048**3 / median(seconds) < 5e15, "faster than any device there is"
assert b.numpy(product(a)).shape == (2048, 2048)
big = b.random((2**26 + 1,), "bf16", 0)
assert abs(float(b.numpy(big[:100000]).std()) - 1) < 0.1
print(b.peak_memory(lambda: product(a)), method)
"""


@pytest.fixture
def cuda() -> TorchBackend:
    reason = hardware.absent("torch", "cuda:0")
    if reason is not None:
        pytest.skip(f"no CUDA for torch here: {reason}")
    backend = backends.open("torch", "cuda:0")
    assert isinstance(backend, TorchBackend)
    return backend


def test_a_call_is_timed_as_a_graph(cuda: TorchBackend) -> None:
    a = cuda.random((4096, 4096), "bf16", 0)
    seconds, method = cuda.time(lambda: a @ a, samples=12, warmup=2, cold=True)
    assert "replay of a CUDA graph" in method
    assert "L2 emptied" in method
    assert len(seconds) == 12
    assert 2 * 4096**3 / median(seconds) < 5e15  # Faster would mean that nothing was run.


def test_what_cannot_be_captured_is_timed_plainly_and_says_why(cuda: TorchBackend) -> None:
    a = cuda.random((64, 64), "fp32", 0)

    def call() -> Any:
        return a * float(a.sum().item())  # Waits on the host: a graph cannot hold that.

    seconds, method = cuda.time(call, samples=4, warmup=1, cold=False)
    assert len(seconds) == 4
    assert "not a graph (" in method
    assert cuda.numpy(a + 1).shape == (64, 64)  # The device still works.


def test_a_replay_computes_what_the_call_does(cuda: TorchBackend) -> None:
    a = cuda.random((128, 128), "fp32", 0)
    run, _ = cuda._capture(lambda: a @ a, warmup=1)
    out = run()
    out.zero_()
    assert run() is out
    cuda.synchronise()
    assert cuda.torch.equal(out, a @ a)


def test_calls_are_timed_together_as_graphs_of_one_pool(cuda: TorchBackend) -> None:
    a = cuda.random((2048, 2048), "bf16", 0)
    b = cuda.random((2048, 2048), "bf16", 1)
    calls = {"once": lambda: a @ b, "twice": lambda: (a @ b) @ b, "wrong": lambda: a @ b[:3]}
    got = cuda.time_together(
        calls, samples=dict.fromkeys(calls, 20), warmup=dict.fromkeys(calls, 5), cold=True
    )
    assert got["wrong"].error is not None
    once, twice = (got[name].timing for name in ("once", "twice"))
    assert once is not None
    assert twice is not None
    assert "replay of a CUDA graph" in once.method
    assert got["once"].beside == ("twice",)
    assert 1.3 < median(twice.seconds) / median(once.seconds) < 2.7


def test_peak_memory_is_what_one_call_adds(cuda: TorchBackend) -> None:
    a = cuda.random((1024, 1024), "fp32", 0)
    peak = cuda.peak_memory(lambda: a + 1)
    assert peak is not None
    assert 2**22 <= peak < 2**23


def test_too_much_is_out_of_memory_and_given_back(cuda: TorchBackend) -> None:
    held = cuda.torch.cuda.memory_allocated(0)
    with pytest.raises(RuntimeError) as raised:
        cuda.torch.empty(2**50, dtype=cuda.torch.uint8, device="cuda:0")
    assert cuda.is_out_of_memory(raised.value)
    cuda.release()
    assert cuda.torch.cuda.memory_allocated(0) <= held


def test_torch_and_the_driver_mean_the_same_card(cuda: TorchBackend) -> None:
    from zenrepro.hardware import jetson, nvidia

    if jetson.is_jetson():
        pytest.skip("a Jetson has one GPU, and its driver gives it no number")
    for index in range(nvidia.count()):
        seen = str(cuda.torch.cuda.get_device_properties(index).uuid)
        assert seen.lower() in nvidia.static(index).identity.lower()


@pytest.mark.parametrize(
    ("name", "device"), [("jax", "gpu:0"), ("jax", "tpu:0"), ("mlx", "gpu:0"), ("mlx", "metal")]
)
def test_other_frameworks_time_on_their_accelerator(name: str, device: str) -> None:
    reason = hardware.absent(name, device)
    if reason is not None:
        pytest.skip(f"no {device} for {name} here: {reason}")
    done = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_PROCESS, name, device], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "host clock" in done.stdout
