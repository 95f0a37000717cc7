"""The wheel carries what the package needs at run time, and the kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("zenrepro", "kernels"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    (source / "README.md").write_text("# zenrepro\n")
    (source / "kernels/cuda").mkdir(exist_ok=True)
    (source / "kernels/cuda/example.cu").write_text("// device code\n")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run(
        [*build, "--no-build-isolation", "-w", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(source))
        for path in (source / "zenrepro").rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert wanted - held == set()
    assert "zenrepro/kernels/cuda/example.cu" in held
    assert not any(name.startswith("kernels/") for name in held), "would shadow another package"
    assert any(name.endswith("licenses/LICENSE") for name in held)
