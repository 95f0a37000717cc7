"""A temporary project with the real experiments, and sessions on the CPU in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zenrepro import paths
from zenrepro.experiments import session

ROOT = Path(__file__).parents[2]
Start = Callable[..., session.Session]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paths.Project:
    """A project with this repository's notebooks and nothing measured."""
    shutil.copy(ROOT / "zenrepro.toml", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setenv("ZENREPRO_MACHINE", "test")
    monkeypatch.delenv("ZENREPRO_EVENTS", raising=False)
    # Locks of its own: the machine's may be held by a real run.
    monkeypatch.setattr("zenrepro.hardware.locks.folder", lambda: tmp_path)
    monkeypatch.setattr("zenrepro.hardware.locks._lock", _new_lock)
    return paths.load(tmp_path)


@pytest.fixture
def start(project: paths.Project) -> Start:
    """Start a session of an experiment on the CPU at smoke scale."""

    def started(experiment: str, **given: Any) -> session.Session:
        pytest.importorskip({"mlx": "mlx.core"}.get(given["backend"], given["backend"]))
        return session.start(experiment, {"device": "cpu", "scale": "smoke", **given}, project)

    return started


def _new_lock(name: str) -> Any:
    from filelock import FileLock

    from zenrepro.hardware import locks

    return FileLock(locks.folder() / f"{name}.lock", thread_local=False)
