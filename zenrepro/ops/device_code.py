"""Where device code lies, and how a Triton file is imported from there.

``kernels/`` is no package (a top-level one of that name would shadow an installed one): in a
checkout it lies beside ``zenrepro/``, in a wheel inside it.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """The folder ``kernels``. Raises FileNotFoundError where the installation has none."""
    for found in (_PACKAGE / "kernels", _PACKAGE.parent / "kernels"):
        if (found / "README.md").is_file() or any(found.glob("*/*")):
            return found
    raise FileNotFoundError(
        f"device code: neither {_PACKAGE / 'kernels'} nor {_PACKAGE.parent / 'kernels'} is there; "
        "install zenrepro again"
    )


def path(source: str) -> Path:
    """The file ``source`` ("cuda/attention_hopper.cu"). Raises FileNotFoundError."""
    found = folder() / source
    if not found.is_file():
        raise FileNotFoundError(f"device code: {found} is not there; install zenrepro again")
    return found


@cache
def triton_module(name: str) -> ModuleType:
    """``kernels/triton/<name>.py`` as a module. Needs Triton; raises ImportError without it."""
    return _load(f"zenrepro_kernels_triton_{name}", path(f"triton/{name}.py"))


@cache
def pallas_module(name: str) -> ModuleType:
    """``kernels/pallas/<name>.py`` as a module. Needs JAX; raises ImportError without it."""
    return _load(f"zenrepro_kernels_pallas_{name}", path(f"pallas/{name}.py"))


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a JIT looks its kernels' globals up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
