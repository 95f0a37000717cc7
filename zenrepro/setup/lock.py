"""Write the lock of every platform: exact versions of everything an environment may hold.

    .venv/bin/python -m pip install uv && .venv/bin/python -m zenrepro.setup.lock [PLATFORM...]

uv resolves for platforms other than the one it runs on. The oldest supported Python comes first;
the newer ones keep its versions and add what only they need. The bootstrap gives a lock to pip as
constraints, so each step takes from it what it needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from zenrepro.setup.bootstrap import PLATFORMS

TORCH = "torch==2.13.0"
JAX = "jax==0.10.2"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

# glibc 2.36: mlx has wheels from 2.35 on; the others' are for older ones.
TARGETS = {
    "linux-x86_64": "x86_64-manylinux_2_36",
    "linux-aarch64": "aarch64-manylinux_2_36",
    "macos-arm64": "aarch64-apple-darwin",
}

# Come with the registry's Linux build of torch; the "+cpu" build, which has no metadata that uv
# could resolve without PyTorch's own index, does not need them.
CUDA_ONLY = ("cuda-", "nvidia-cu", "nvidia-n")
# Compile the kernels in CUDA C++, on any Linux.
KEPT = ("cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc", "nvidia-ml-py")


def resolve(wanted: list[str], fixed: list[str], python: str, target: str) -> list[str]:
    """The exact pins that satisfy ``wanted`` on one Python and platform, keeping to ``fixed``."""
    with tempfile.TemporaryDirectory() as folder:
        source, constraints = Path(folder) / "requirements.in", Path(folder) / "constraints.txt"
        source.write_text("\n".join(wanted) + "\n")
        constraints.write_text("\n".join(fixed) + "\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", str(source), "--quiet"]
        command += ["--constraints", str(constraints), "--python-version", python]
        command += ["--python-platform", target, "--no-header", "--no-annotate"]
        command += ["--no-config", "--system-certs"]
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
        done = subprocess.run(
            command, check=True, env=environment, stdout=subprocess.PIPE, text=True
        )
    return done.stdout.splitlines()


def write_lock(name: str, project: Path) -> Path:
    """Resolve the lock ``name`` of ``project`` with uv and write it; its path."""
    with (project / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)
    replaced: dict[str, str] = next(
        (p.get("extras", {}) for p in PLATFORMS.values() if p["lock"] == name), {}
    )
    extras = declared["project"]["optional-dependencies"]
    wanted = [TORCH, JAX, *declared["build-system"]["requires"]]
    wanted += declared["project"]["dependencies"]
    for extra in extras:
        is_variant = extra.rpartition("-")[0] in extras
        if extra in replaced.values() or not (is_variant or extra in replaced):
            wanted += extras[extra]
    target = next(value for key, value in TARGETS.items() if name.startswith(key))
    pins: dict[str, str] = {}
    for python in PYTHONS:
        for pin in resolve(wanted, list(pins.values()), python, target):
            pins.setdefault(pin.split("==")[0], pin)
    if name.endswith(("-cpu", "-tpu")):
        pins = {
            key: pin for key, pin in pins.items() if key in KEPT or not key.startswith(CUDA_ONLY)
        }
    head = [
        f"# {name}: everything an environment may hold, for Python >= 3.11.",
        "# Made by: python -m zenrepro.setup.lock   (do not edit)",
    ]
    lock = Path(__file__).parent / "locks" / f"{name}.txt"
    lock.write_text("\n".join([*head, *(pins[key] for key in sorted(pins))]) + "\n")
    return lock


def main(names: list[str]) -> None:
    """Write the locks named, or all of them."""
    for name in names or sorted({platform["lock"] for platform in PLATFORMS.values()}):
        lock = write_lock(name, Path(__file__).resolve().parents[2])
        print(f"{lock.name}: {len(lock.read_text().splitlines()) - 2} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
