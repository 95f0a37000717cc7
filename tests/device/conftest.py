"""Tests that want a CUDA GPU: each skips, saying so, where there is none."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "device: wants a CUDA GPU, and skips without one")


@pytest.fixture(scope="session")
def device() -> Any:
    """The first GPU as torch sees it."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    from zenrepro import hardware

    return hardware.probe("torch", "cuda:0")


@pytest.fixture(scope="session")
def backend(device: Any) -> Any:
    from zenrepro import backends

    return backends.open("torch", "cuda:0")
