"""What every backend promises, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro import backends
from zenrepro.backends import base
from zenrepro.errors import InputError

# Half a last place relative to the value, for values that are normal numbers of the format.
ROUNDING = {
    "fp64": 0.0, "fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8, "fp8_e4m3": 2.0**-4, "int8": 0.0,
}  # fmt: skip
SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126, "fp8_e4m3": 2.0**-6}


def held(backend: backends.Backend) -> Iterator[str]:
    return (dtype for dtype in base.DTYPES if backend.unsupported(dtype) is None)


def test_random_values_are_numpys_rounded(backend: backends.Backend) -> None:
    for dtype in held(backend):
        exact = base.draw(60, dtype, seed=7, scale=0.5).astype(np.float64).reshape(3, 4, 5)
        got = backend.numpy(backend.random((3, 4, 5), dtype, seed=7, scale=0.5))
        assert got.shape == (3, 4, 5)
        assert got.dtype == (np.float64 if dtype == "fp64" else np.float32)
        normal = np.abs(exact) >= SMALLEST_NORMAL.get(dtype, 0.0)
        error = np.abs(got - exact) / np.maximum(np.abs(exact), 1e-300)
        assert error[normal].max() <= ROUNDING[dtype], dtype


def test_every_backend_draws_the_same() -> None:
    opened = []
    for name in backends.NAMES:
        try:
            opened.append(backends.open(name, "cpu"))
        except backends.Unavailable:
            continue
    if len(opened) < 2:
        pytest.skip("fewer than two frameworks are installed, so there is nothing to compare")
    for dtype in base.DTYPES:
        drawn = {
            one.name: one.numpy(one.random((257,), dtype, seed=3, scale=2.0)).tobytes()
            for one in opened
            if one.unsupported(dtype) is None
        }
        assert len(set(drawn.values())) == 1, (dtype, list(drawn))


def test_seed_and_scale_matter(backend: backends.Backend) -> None:
    one = backend.numpy(backend.random((100,), "fp32", seed=1))
    two = backend.numpy(backend.random((100,), "fp32", seed=2))
    assert not np.array_equal(one, two)
    assert np.array_equal(backend.numpy(backend.random((100,), "fp32", seed=1, scale=2.0)), 2 * one)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 400), length=st.integers(1, 50), name=st.sampled_from(backends.NAMES))
def test_a_large_array_repeats_its_block(size: int, length: int, name: str) -> None:
    try:
        backend = backends.open(name, "cpu")
    except backends.Unavailable:
        return  # The fixture's tests say so; hypothesis cannot skip one example.
    block = np.arange(min(length, size), dtype=np.float32)
    filled = backend.numpy(backend._fill(backend.asarray(block, "fp32"), (size,), size))
    assert np.array_equal(filled, np.resize(block, size))


def test_above_the_limit_random_data_tiles(
    backend: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "TILE_ABOVE", 100)
    monkeypatch.setattr(base, "TILE", 37)
    got = backend.numpy(backend.random((11, 13), "fp32", seed=5))
    assert np.array_equal(got.ravel(), np.resize(base.draw(37, "fp32", 5, 1.0), 143))


def test_arrays_are_copies(backend: backends.Backend) -> None:
    source = np.ones(64, dtype=np.float32)
    array = backend.asarray(source, "fp32")
    source[:] = 2
    assert backend.numpy(array).max() == 1


def test_a_read_only_array_is_taken(backend: backends.Backend) -> None:
    source = np.broadcast_to(np.float32(3), (4, 4))
    assert backend.numpy(backend.asarray(source, "fp32")).sum() == 48


def test_unknown_and_unheld_dtypes_are_one_clear_line(backend: backends.Backend) -> None:
    with pytest.raises(InputError, match="unknown dtype 'float32'; wanted one of fp64, fp32"):
        backend.random((2,), "float32", seed=0)
    for dtype in base.DTYPES:
        reason = backend.unsupported(dtype)
        if reason is not None:
            with pytest.raises(InputError, match=f"backend {backend.name} on cpu: "):
                backend.random((2,), dtype, seed=0)


@pytest.mark.parametrize("cold", [True, False])
def test_timing_gives_raw_seconds_and_its_method(backend: backends.Backend, cold: bool) -> None:
    a = backend.random((32, 32), "fp32", seed=0)
    product = backend.compile(lambda x: x @ x)
    seconds, method = backend.time(lambda: product(a), samples=4, warmup=1, cold=cold)
    assert len(seconds) == 4
    assert all(value > 0 and math.isfinite(value) for value in seconds)
    assert len(set(seconds)) > 1
    assert ("caches emptied" in method) is cold


def test_a_time_box_leaves_three_samples(backend: backends.Backend) -> None:
    a = backend.random((8, 8), "fp32", seed=0)
    calls = []

    def call() -> object:
        calls.append(1)
        return a + a

    timing = backend.time(call, samples=50, warmup=2, cold=False, budget_s=0.0)
    assert len(timing.seconds) == 3
    assert len(calls) == 5


def test_timing_waits_for_the_result(
    backend: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lazy framework must be made to compute inside the sample, not after it."""
    if backend.name == "torch":
        pytest.skip("torch computes on the CPU before a call returns")
    waited = []
    framework = backend.mx if backend.name == "mlx" else backend.jax  # type: ignore[attr-defined]
    name = "eval" if backend.name == "mlx" else "block_until_ready"
    real = getattr(framework, name)
    a = backend.random((8, 8), "fp32", seed=0)
    monkeypatch.setattr(framework, name, lambda *x: (waited.append(1), real(*x))[1])
    backend.time(lambda: a + a, samples=3, warmup=1, cold=False)
    assert len(waited) == 4


def test_an_error_of_the_call_is_raised(backend: backends.Backend) -> None:
    def call() -> object:
        raise ZeroDivisionError("of the call")

    with pytest.raises(ZeroDivisionError, match="of the call"):
        backend.time(call, samples=3, warmup=1, cold=False)


def test_running_out_of_memory_is_told_from_other_errors(backend: backends.Backend) -> None:
    assert backend.is_out_of_memory(MemoryError())
    assert not backend.is_out_of_memory(ValueError("shapes do not match"))
    assert not backend.is_out_of_memory(RuntimeError("shapes do not match"))
    real = {
        "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't "
                              "allocate memory: you tried to allocate 4000000000000 bytes."),
        "jax": RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4 bytes"),
        "mlx": RuntimeError("[malloc] Unable to allocate 4000000000000 bytes."),
    }  # fmt: skip
    assert backend.is_out_of_memory(real[backend.name])


def test_a_real_lack_of_memory_is_recognised(backend: backends.Backend) -> None:
    if backend.name == "jax":
        pytest.skip("jax on the CPU hands out address space; the system kills what uses it")
    if backend.name == "mlx":
        pytest.skip("mlx 0.32 on a Linux CPU crashes where it should raise (see MEASURING.md)")
    a = backend.random((1,), "fp32", seed=0).expand(1 << 22, 1 << 24)
    with pytest.raises(RuntimeError) as raised:
        a.contiguous()
    assert backend.is_out_of_memory(raised.value)


def test_peak_memory_counts_what_one_call_needs(backend: backends.Backend) -> None:
    a = backend.random((1024, 1024), "fp32", seed=0)
    peak = backend.peak_memory(lambda: a + 1)
    if backend.name == "mlx":
        assert peak is not None
        assert 2**22 <= peak < 2**23
    else:
        assert peak is None  # Neither tells on the CPU; unknown is not zero.


def test_waiting_and_releasing_do_not_fail(backend: backends.Backend) -> None:
    a = backend.random((4,), "fp32", seed=0)
    backend.synchronise(backend.start(lambda: a * 2))
    backend.synchronise()
    backend.release()
    assert backend.numpy(a).shape == (4,)


def test_versions_are_told(backend: backends.Backend) -> None:
    packages = backend.packages()
    assert backend.name in packages
    assert all(version for version in packages.values())


def test_the_state_is_the_cpus(backend: backends.Backend) -> None:
    now = backend.state()
    assert now.other_processes is None
    assert now.cores is not None
    assert now.cores >= 1
