"""Compiled kernels are kept by what they were made from, whole, and never trusted blindly."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenrepro.ops import cubins

CUBIN = b"\x7fELF and the rest"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENREPRO_CACHE_DIR", str(tmp_path))


class Compiler:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return CUBIN


def test_the_second_process_compiles_nothing() -> None:
    make = Compiler()
    assert [cubins.kept([b"source", b"sm_90a"], make) for _ in range(2)] == [CUBIN, CUBIN]
    assert make.calls == 1


def test_another_source_option_or_split_of_them_is_another_kernel() -> None:
    make = Compiler()
    for parts in ([b"source", b"a"], [b"source", b"b"], [b"sourcea"], [b"source", b"a", b""]):
        cubins.kept(parts, make)
    assert make.calls == 4


def test_a_damaged_file_is_made_again() -> None:
    make = Compiler()
    cubins.kept([b"source"], make)
    (file,) = cubins.folder().iterdir()
    file.write_bytes(b"")
    assert cubins.kept([b"source"], make) == CUBIN
    assert file.read_bytes() == CUBIN
    assert make.calls == 2


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "cubins").write_text("a file where the folder should be")
    make = Compiler()
    assert [cubins.kept([b"source"], make) for _ in range(2)] == [CUBIN, CUBIN]
    assert make.calls == 2


def test_nothing_half_written_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    assert cubins.kept([b"source"], Compiler()) == CUBIN
    assert list(cubins.folder().iterdir()) == []
