"""One device is held by one process at a time, and let go when it dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zenrepro import hardware
from zenrepro.errors import InputError
from zenrepro.hardware import locks

HOLD = """
import sys
from pathlib import Path
from zenrepro.hardware import locks
locks.folder = lambda: Path(sys.argv[1])
with locks.hold(sys.argv[2], "the card", wait=True):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(locks, "folder", lambda: tmp_path)
    locks._lock.cache_clear()
    yield tmp_path
    locks._lock.cache_clear()


def other(folder: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate("done\n", timeout=30)
    return errors


def wait_until_held(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"


def test_another_process_is_refused_until_the_first_ends(own_folder: Path) -> None:
    process = other(own_folder, "gpu")
    wait_until_held(process)
    with (
        pytest.raises(InputError, match="the card is in use by another zenrepro run"),
        locks.hold("gpu", "the card", wait=False),
    ):
        pass
    with locks.hold("another-gpu", "the other card", wait=False):
        pass
    finish(process)
    with locks.hold("gpu", "the card", wait=False):
        pass


def test_waiting_prints_one_line_and_then_goes_on(own_folder: Path) -> None:
    with locks.hold("gpu", "the card"):
        process = other(own_folder, "gpu")
        assert process.stderr is not None
        line = process.stderr.readline()
    assert line == "waiting for the card: another zenrepro run uses it\n"
    wait_until_held(process)
    assert finish(process) == ""


def test_a_killed_process_lets_go(own_folder: Path) -> None:
    process = other(own_folder, "gpu")
    wait_until_held(process)
    process.kill()
    process.wait(timeout=30)
    with locks.hold("gpu", "the card", wait=False):
        pass
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_a_process_may_hold_what_it_holds() -> None:
    with locks.hold("gpu", "the card", wait=False), locks.hold("gpu", "the card", wait=False):
        pass


def test_an_error_inside_lets_go(own_folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), locks.hold("gpu", "the card"):
        raise ZeroDivisionError
    process = other(own_folder, "gpu")
    wait_until_held(process)
    finish(process)


def test_every_backend_locks_the_same_cpu() -> None:
    found = [item for item in hardware.devices() if isinstance(item, hardware.Hardware)]
    assert {item.lock_name for item in found if item.device == "cpu"} <= {"cpu"}
