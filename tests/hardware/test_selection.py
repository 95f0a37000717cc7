"""Device strings and what is usable, without any framework imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zenrepro import hardware
from zenrepro.errors import InputError
from zenrepro.hardware import apple, installed, nvidia, selection


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two NVIDIA GPUs and every backend built for CUDA."""
    monkeypatch.setattr(installed, "missing", lambda backend: None)
    monkeypatch.setattr(installed, "missing_cuda", lambda backend: None)
    monkeypatch.setattr(nvidia, "missing", lambda: None)
    monkeypatch.setattr(nvidia, "count", lambda: 2)


@pytest.mark.parametrize(
    ("backend", "given", "full"),
    [
        ("torch", "cpu", "cpu"),
        ("torch", "cuda", "cuda:0"),
        ("torch", "cuda:1", "cuda:1"),
        ("jax", "gpu", "gpu:0"),
        ("jax", "cuda:1", "gpu:1"),
        ("jax", "tpu:3", "tpu:3"),
        ("mlx", "gpu", "gpu:0"),
        ("mlx", "cuda:1", "gpu:1"),
        ("mlx", "metal", "metal"),
    ],
)
def test_each_backends_device_strings(backend: str, given: str, full: str) -> None:
    assert hardware.resolve(backend, given) == full


@pytest.mark.parametrize(
    ("backend", "given"),
    [
        ("torch", "gpu"), ("torch", "CUDA"), ("torch", "cuda:-1"), ("torch", "cpu:1"),
        ("torch", ""), ("torch", "cuda:0 "), ("jax", "metal"), ("mlx", "tpu"), ("mlx", "metal:1"),
    ],
)  # fmt: skip
def test_a_device_that_never_is_names_those_there_are(backend: str, given: str) -> None:
    with pytest.raises(InputError, match=r"wanted one of cpu, .*here: ") as raised:
        hardware.resolve(backend, given)
    assert repr(given) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_backend_names_the_backends() -> None:
    with pytest.raises(InputError, match="unknown backend 'numpy'; wanted one of torch, jax, mlx"):
        hardware.resolve("numpy", None)


def test_the_accelerator_is_the_default(two_gpus: None) -> None:
    assert hardware.resolve("torch", None) == "cuda:0"
    assert hardware.resolve("jax", None) == "gpu:0"
    assert hardware.available("torch") == ["cuda:0", "cuda:1", "cpu"]
    assert hardware.absent("torch", "cuda:1") is None


def test_a_gpu_past_the_last_is_absent_with_those_there_are(two_gpus: None) -> None:
    reason = hardware.absent("torch", "cuda:2")
    assert reason is not None
    assert "no cuda:2" in reason
    assert "cuda:0, cuda:1, cpu" in reason


def test_without_an_accelerator_the_cpu_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "missing", lambda backend: None)
    monkeypatch.setattr(installed, "missing_cuda", lambda backend: "built without CUDA")
    monkeypatch.setattr(apple, "missing_metal", lambda: "Metal needs macOS")
    assert hardware.resolve("torch", None) == "cpu"
    assert hardware.resolve("mlx", None) == "cpu"
    assert hardware.absent("torch", "cuda:0") == "built without CUDA"


def test_on_a_mac_mlx_calls_its_gpu_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apple, "is_apple_silicon", lambda: True)
    assert hardware.resolve("mlx", "gpu") == "metal"


def test_a_missing_framework_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_folder", lambda backend: None)
    assert hardware.absent("jax", "cpu") == "jax is not installed in this environment"
    assert hardware.available("jax") == []
    found = hardware.devices()
    assert all(isinstance(item, hardware.Missing) for item in found)
    assert [item.backend for item in found] == list(selection.BACKENDS)


def test_looking_at_devices_imports_no_framework() -> None:
    code = (
        "import sys; from zenrepro import hardware; hardware.devices();"
        "print([m for m in ('torch', 'jax', 'mlx', 'triton', 'zeus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
