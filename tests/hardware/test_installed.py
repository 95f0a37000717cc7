"""What is installed, read from files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zenrepro.hardware import installed


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    cached = (installed.torch_cuda, installed._mlx_cuda_library)
    for function in cached:
        function.cache_clear()
    monkeypatch.setattr(installed, "_folder", lambda backend: tmp_path)
    yield
    for function in cached:
        function.cache_clear()


def versions(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    named = {name.replace("_", "-"): version for name, version in found.items()}
    monkeypatch.setattr(installed, "distributions", lambda: named)


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = '13.0'", "13.0"), ("cuda = '12.8'", "12.8"),
        ("cuda: Optional[str] = None", None), ("cuda_arch = '9.0'", None), ("", None),
    ],
)  # fmt: skip
def test_torchs_cuda_is_read_without_importing_it(
    tmp_path: Path, line: str, cuda: str | None
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.11.0'\n{line}\nhip = None\n")
    assert installed.torch_cuda() == cuda
    assert installed.runtime("torch", "cuda") == (f"CUDA {cuda}" if cuda else None)
    assert (installed.missing_cuda("torch") is None) is (cuda is not None)


def test_a_torch_without_a_version_file_has_unknown_cuda() -> None:
    assert installed.torch_cuda() is None


def test_jax_needs_its_cuda_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, jax="0.11.2", jaxlib="0.11.2")
    assert "no CUDA plugin" in (installed.missing_cuda("jax") or "")
    versions(monkeypatch, jax="0.11.2", jax_cuda13_plugin="0.11.2")
    assert installed.missing_cuda("jax") is None


def test_mlx_is_known_by_its_library_where_metadata_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions(monkeypatch, mlx="0.32.4")
    assert "not installed" in (installed.missing_cuda("mlx") or "")
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libmlx.so"
    library.write_bytes(b"\x7fELF libm.so.6")
    installed._mlx_cuda_library.cache_clear()
    assert installed.missing_cuda("mlx") is not None
    library.write_bytes(b"\x7fELF libcublasLt.so.13")
    installed._mlx_cuda_library.cache_clear()
    assert installed.missing_cuda("mlx") is None


def test_only_what_a_measurement_depends_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(
        monkeypatch, torch="2.11.0", triton="3.6.0", jax="0.11.2", jaxlib="0.11.2",
        jax_cuda13_plugin="0.11.2", nvidia_cudnn_cu13="9.1", nvidia_cuda_nvrtc="13.0.1",
        pandas="3.0", libtpu="0.0.52", mlx="0.32.4",
    )  # fmt: skip
    assert installed.packages("torch", "cpu") == {"torch": "2.11.0"}
    assert set(installed.packages("torch", "cuda")) == {"torch", "triton", "nvidia-cudnn-cu13"}
    assert set(installed.packages("jax", "gpu")) == {
        "jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13",
    }  # fmt: skip
    assert set(installed.packages("jax", "tpu")) == {"jax", "jaxlib", "libtpu"}
    assert set(installed.packages("mlx", "metal")) == {"mlx"}
    assert installed.compilers("torch", "cuda") == {
        "triton": "3.6.0", "nvidia-cuda-nvrtc": "13.0.1",
    }  # fmt: skip
    assert installed.compilers("jax", "cpu") == {"xla": "jaxlib 0.11.2"}
    assert installed.runtime("jax", "tpu") == "libtpu 0.0.52"


def test_names_are_compared_as_the_index_does() -> None:
    installed.distributions.cache_clear()
    assert all(name == name.lower() and "_" not in name for name in installed.distributions())
