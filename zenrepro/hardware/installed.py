"""What of the frameworks is installed, read from files: importing one takes seconds."""

from __future__ import annotations

import importlib.util
import mmap
import re
from functools import cache
from importlib import metadata
from pathlib import Path

# Per backend: the import name, and the distributions whose versions a measurement depends on.
# A name that ends in * stands for every distribution that starts with it.
_MODULES = {"torch": "torch", "jax": "jax", "mlx": "mlx"}
_PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "jax": ("jax", "jaxlib"),
    "mlx": ("mlx", "mlx-cpu", "mlx-metal"),
}
_CUDA_PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": ("triton", "nvidia-cublas*", "nvidia-cudnn*"),
    "jax": ("jax-cuda*", "nvidia-cublas*", "nvidia-cudnn*"),
    "mlx": ("mlx-cuda*", "nvidia-cublas*", "nvidia-cudnn*"),
}
_TPU_PACKAGES = ("libtpu",)


@cache
def distributions() -> dict[str, str]:
    """Every installed distribution and its version, names in lower case with dashes."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # A half-removed package has none.
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def missing(backend: str) -> str | None:
    """Why the backend's framework cannot be imported, in one line; None where it can."""
    if _folder(backend) is None:
        return f"{backend} is not installed in this environment"
    return None


def missing_cuda(backend: str) -> str | None:
    """Why the installed framework has no CUDA, in one line; None where it has."""
    if backend == "torch":
        if torch_cuda() is None:
            return "the installed torch is built without CUDA"
    elif backend == "jax":
        if not _matching(("jax-cuda*",)):
            return "no CUDA plugin of jax is installed (jax[cuda13])"
    elif not _matching(("mlx-cuda*",)) and not _mlx_cuda_library():
        return "the CUDA part of mlx is not installed (mlx[cuda13])"
    return None


def packages(backend: str, kind: str) -> dict[str, str]:
    """Versions of what a measurement with this backend on this kind of device loads."""
    names = _PACKAGES[backend]
    if kind in ("cuda", "gpu"):
        names += _CUDA_PACKAGES[backend]
    elif kind == "tpu":
        names += _TPU_PACKAGES
    return _matching(names)


def compilers(backend: str, kind: str) -> dict[str, str]:
    """Versions of the compilers that turn this backend's programs into device code."""
    if kind in ("cuda", "gpu"):
        by_backend = {"torch": ("triton", "nvidia-cuda-nvrtc*"), "jax": ("nvidia-cuda-nvcc*",)}
        found = _matching(by_backend.get(backend, ("nvidia-cuda-nvrtc*",)))
    else:
        found = {}
    if backend == "jax" and "jaxlib" in distributions():
        found["xla"] = f"jaxlib {distributions()['jaxlib']}"
    return found


def runtime(backend: str, kind: str) -> str | None:
    """The device runtime the framework was built for, such as "CUDA 13.0"."""
    if kind in ("cuda", "gpu"):
        if backend == "torch":
            version = torch_cuda()
            return f"CUDA {version}" if version else None
        for name, version in _matching(("nvidia-cuda-runtime*",)).items():
            return f"CUDA {'.'.join(version.split('.')[:2])}" if name else None
    if kind == "tpu":
        version = distributions().get("libtpu")
        return f"libtpu {version}" if version else None
    return None


@cache
def torch_cuda() -> str | None:
    """The CUDA version torch was built for, from its version file; None without CUDA."""
    folder = _folder("torch")
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else None


def _matching(names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, version in sorted(distributions().items()):
        for wanted in names:
            if name == wanted or (wanted.endswith("*") and name.startswith(wanted[:-1])):
                found[name] = version
    return found


@cache
def _folder(backend: str) -> Path | None:
    """The package's folder, found without importing it."""
    try:
        spec = importlib.util.find_spec(_MODULES[backend])
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _mlx_cuda_library() -> bool:
    """Whether mlx's library is linked with CUDA: wheels unpacked by hand may lack metadata."""
    folder = _folder("mlx")
    library = folder / "lib" / "libmlx.so" if folder is not None else None
    if library is None or not library.is_file() or not library.stat().st_size:
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"libcublasLt.so") >= 0
