"""Write the lock of every platform: exact versions of everything an environment may hold.

    .venv/bin/python -m pip install uv && .venv/bin/python -m zenrepro.setup.lock [PLATFORM...]

uv resolves for platforms other than the one it runs on. The oldest supported Python is resolved
for; its versions also exist for the newer ones. The bootstrap gives a lock to pip as constraints,
so each step takes from it what it needs.
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

# glibc 2.36: mlx has wheels from 2.35 on; the others' are for older ones.
TARGETS = {
    "linux-x86_64": "x86_64-manylinux_2_36",
    "linux-aarch64": "aarch64-manylinux_2_36",
    "macos-arm64": "aarch64-apple-darwin",
}

# Come with the registry's Linux build of torch; the "+cpu" build, which has no metadata that uv
# could resolve without PyTorch's own index, does not need them.
CUDA_ONLY = ("cuda-", "nvidia-cu", "nvidia-n")


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
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "requirements.in"
        source.write_text("\n".join(wanted) + "\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", str(source), "--quiet"]
        command += ["--python-version", "3.11", "--python-platform", target]
        command += ["--no-header", "--no-annotate", "--no-config", "--system-certs"]
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
        pins = subprocess.run(
            command, check=True, env=environment, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()
    if name.endswith(("-cpu", "-tpu")):
        pins = [pin for pin in pins if not pin.startswith(CUDA_ONLY)]
    head = [
        f"# {name}: everything an environment may hold, for Python >= 3.11.",
        "# Made by: python -m zenrepro.setup.lock   (do not edit)",
    ]
    lock = Path(__file__).parent / "locks" / f"{name}.txt"
    lock.write_text("\n".join([*head, *pins]) + "\n")
    return lock


def main(names: list[str]) -> None:
    """Write the locks named, or all of them."""
    for name in names or sorted({platform["lock"] for platform in PLATFORMS.values()}):
        lock = write_lock(name, Path(__file__).resolve().parents[2])
        print(f"{lock.name}: {len(lock.read_text().splitlines()) - 2} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
