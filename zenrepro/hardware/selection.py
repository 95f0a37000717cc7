"""Device strings: what each backend calls its devices, and which one is meant.

Nothing here imports a framework: what is installed is read from package metadata, what is plugged
in from the driver.
"""

from __future__ import annotations

import re

from zenrepro.errors import InputError
from zenrepro.hardware import apple, installed, nvidia, tpu

BACKENDS = ("torch", "jax", "mlx")

# The accelerator kinds of each backend, best first; every backend has "cpu" besides.
_KINDS: dict[str, tuple[str, ...]] = {
    "torch": ("cuda",),
    "jax": ("gpu", "tpu"),
    "mlx": ("metal", "gpu"),
}
# Other names for them.
_ALIASES: dict[tuple[str, str], str] = {("jax", "cuda"): "gpu", ("mlx", "cuda"): "gpu"}
_FORM = re.compile(r"([a-z]+)(?::(\d+))?")


def missing(backend: str, kind: str) -> str | None:
    """Why ``kind`` of ``backend`` is not usable here, in one line; None where it is."""
    if kind == "cpu":
        return installed.missing(backend)
    reason = installed.missing(backend)
    if reason is not None:
        return reason
    if kind == "metal":
        return apple.missing_metal()
    if kind == "tpu":
        return tpu.missing()
    return installed.missing_cuda(backend) or nvidia.missing()


def available(backend: str) -> list[str]:
    """Full device strings usable with this backend, the default one first."""
    if installed.missing(backend) is not None:
        return []
    found: list[str] = []
    for kind in _KINDS[backend]:
        if missing(backend, kind) is None:
            found += _numbered(kind)
    return [*found, "cpu"]


def resolve(backend: str, device: str | None) -> str:
    """The full device string for what was asked: "cuda" is "cuda:0"; None is the default device.

    The default is the accelerator where there is one, else the CPU. It does not matter here
    whether the framework is installed: a device that this backend never has is an InputError
    (naming those it has), one that is missing today is for ``missing`` to explain.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; wanted one of {', '.join(BACKENDS)}")
    if device is None:
        return next(iter(available(backend)), "cpu")
    kind, index = split(backend, device)
    if kind in ("cpu", "metal"):
        return kind
    return f"{kind}:{index}"


def split(backend: str, device: str) -> tuple[str, int]:
    """("cuda", 1) of "cuda:1". Raises InputError naming the devices there are."""
    match = _FORM.fullmatch(device)
    kind = match.group(1) if match else ""
    kind = _ALIASES.get((backend, kind), kind)
    if backend == "mlx" and kind == "gpu" and apple.is_apple_silicon():
        kind = "metal"
    index = int(match.group(2) or 0) if match else 0
    if kind not in ("cpu", *_KINDS[backend]) or (kind in ("cpu", "metal") and index):
        raise InputError(
            f"unknown device {device!r} of backend {backend}; wanted one of "
            f"{', '.join(_forms(backend))} (here: {', '.join(available(backend)) or 'none'})"
        )
    return kind, index


def absent(backend: str, device: str) -> str | None:
    """Why a full device string is not usable here, in one line; None where it is."""
    kind, _ = split(backend, device)
    reason = missing(backend, kind)
    if reason is None and device not in available(backend):
        reason = f"there is no {device} here; backend {backend} has {', '.join(available(backend))}"
    return reason


def _forms(backend: str) -> list[str]:
    return ["cpu", *(k if k == "metal" else f"{k}[:i]" for k in _KINDS[backend])]


def _numbered(kind: str) -> list[str]:
    if kind == "metal":
        return ["metal"]
    count = tpu.count() if kind == "tpu" else nvidia.count()
    return [f"{kind}:{index}" for index in range(count)]
