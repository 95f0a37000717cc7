"""Opening a backend: what is not there is one line, what never is another."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zenrepro import backends
from zenrepro.errors import InputError
from zenrepro.hardware import installed, nvidia


@pytest.mark.parametrize("name", backends.NAMES)
def test_a_missing_framework_is_unavailable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_folder", lambda backend: None)
    with pytest.raises(backends.Unavailable) as raised:
        backends.open(name)
    assert str(raised.value) == (
        f"backend {name} on cpu: {name} is not installed in this environment"
    )


def test_a_device_that_is_not_here_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "missing_cuda", lambda backend: None)
    monkeypatch.setattr(nvidia, "missing", lambda: "no NVIDIA driver (not found)")
    with pytest.raises(backends.Unavailable, match=r"torch on cuda:0: no NVIDIA driver"):
        backends.open("torch", "cuda")


def test_what_never_is_a_device_is_bad_input() -> None:
    with pytest.raises(InputError, match="unknown backend"):
        backends.open("tensorflow")
    with pytest.raises(InputError, match="unknown device"):
        backends.open("torch", "mps")


def test_a_framework_that_cannot_be_loaded_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "missing", lambda backend: None)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(backends.Unavailable, match=r"mlx on cpu: cannot be imported \("):
        backends.open("mlx", "cpu")


def test_jax_on_the_cpu_leaves_gpus_alone() -> None:
    """In a fresh process: jax reads these settings once."""
    try:
        backends.open("jax", "cpu")
    except backends.Unavailable as error:
        pytest.skip(str(error))
    code = (
        "import os; from zenrepro import backends; backends.open('jax', 'cpu'); import jax;"
        "print(jax.config.jax_platforms, os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'],"
        " jax.devices()[0].platform)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["cpu", "false", "cpu"]


def test_importing_the_package_imports_no_framework() -> None:
    code = (
        "import sys; from zenrepro import backends, measure;"
        "print([m for m in ('torch', 'jax', 'mlx', 'zeus') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
