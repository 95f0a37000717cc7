"""Packages that an interruption left half unpacked are forgotten; whole ones are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenrepro.setup.halfinstalled import drop_half_installed


def unpack(packages: Path, name: str = "thing") -> Path:
    """What pip leaves of a wheel: two files, metadata, a RECORD with sizes."""
    folder, info = packages / name, packages / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    info.mkdir()
    (folder / "__init__.py").write_text("one = 1\n")
    (folder / "data.txt").write_text("two\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(
        f"{name}/__init__.py,sha256=x,8\n{name}/data.txt,sha256=x,4\n"
        f"{name}/__pycache__/__init__.cpython-311.pyc,,\n{info.name}/METADATA,,\n"
        f"{info.name}/RECORD,,\n"
    )
    return folder


def test_a_whole_package_is_kept(tmp_path: Path) -> None:
    unpack(tmp_path)
    assert drop_half_installed(tmp_path) == []
    assert (tmp_path / "thing-1.0.dist-info").exists()


@pytest.mark.parametrize(
    "lost",
    ["thing/data.txt", "thing-1.0.dist-info/RECORD", "thing-1.0.dist-info/METADATA"],
)
def test_a_missing_file(tmp_path: Path, lost: str) -> None:
    unpack(tmp_path)
    unpack(tmp_path, "whole")
    (tmp_path / lost).unlink()
    assert drop_half_installed(tmp_path) == ["thing-1.0.dist-info"]
    assert not (tmp_path / "thing-1.0.dist-info").exists()


def test_a_truncated_file(tmp_path: Path) -> None:
    folder = unpack(tmp_path)
    (folder / "data.txt").write_text("tw")
    assert drop_half_installed(tmp_path) == ["thing-1.0.dist-info"]
