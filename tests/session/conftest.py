"""A project with one experiment whose points count how often they are measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from zenrepro import backends, hardware, paths
from zenrepro.experiments import session
from zenrepro.experiments.point import Point, Result
from zenrepro.paths import Project
from zenrepro.records import DeviceClass, Environment, Origin

NOTEBOOK = """{"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source":
"backend: str = 'torch'\\nsizes: int = 3"}, {"cell_type": "code", "metadata": {}, "source":
"run()"}], "nbformat": 4}"""


class Parameters(session.Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    backend: Literal["torch", "jax"] = "torch"
    sizes: int = 3
    implementations: str | None = None


class Bench:
    """The project, what was measured, and what its points do."""

    def __init__(self, project: Project, module: ModuleType) -> None:
        self.project = project
        self.module = module
        self.measured: list[int] = []
        self.does: dict[int, Callable[[], list[Result]]] = {}
        self.unavailable: dict[int, tuple[Any, str]] = {}
        module.points = self.points

    def points(self, run: session.Session) -> Iterator[Point]:
        for n in range(1, run.parameters.sizes + 1):
            yield Point(
                implementation=f"{run.parameters.backend}.sum",
                conditions={"op": "copy", "n": n},
                produces=[("time", "per_call")],
                measure=lambda n=n: self.measure(n),
                origin=Origin.OURS,
                unavailable=self.unavailable.get(n),
            )

    def measure(self, n: int) -> list[Result]:
        self.measured.append(n)
        if n in self.does:
            return self.does[n]()
        return [Result(quantity="time", metric="per_call", unit="ms", samples=[float(n)] * 5)]

    def start(self, **given: Any) -> session.Session:
        return session.start("sums", given, self.project)

    def run(self, **given: Any) -> tuple[session.Session, list[Any]]:
        self.measured.clear()
        opened = self.start(**given)
        return opened, opened.measure(self.points(opened))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "zenrepro.toml").write_text(
        'title = "T"\n[experiments.sums]\nnotebook = "sums.ipynb"\nmodule = "sums_module"\n'
    )
    (tmp_path / "sums.ipynb").write_text(NOTEBOOK)
    (tmp_path / "sums_module.py").write_text("SIZE = 1\n")
    module = ModuleType("sums_module")
    module.Parameters = Parameters
    monkeypatch.setitem(sys.modules, "sums_module", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("ZENREPRO_MACHINE", "lab")
    monkeypatch.delenv("ZENREPRO_EVENTS", raising=False)
    # A lock of its own: the machine's real one may be held by a real run.
    monkeypatch.setattr("zenrepro.hardware.locks.folder", lambda: tmp_path)
    monkeypatch.setattr("zenrepro.hardware.locks._lock", _new_lock)
    monkeypatch.setattr(hardware, "absent", lambda backend, device: None)
    monkeypatch.setattr(hardware, "probe", probe)
    monkeypatch.setattr(backends, "open", lambda name, device: FAKE)
    return Bench(paths.load(tmp_path), module)


def probe(backend: str, device: str | None, project: Project) -> hardware.Hardware:
    """A small machine on which every framework is installed."""
    return hardware.Hardware(
        backend=backend,
        device=device or "cpu",
        device_class=DeviceClass(platform="cpu-test", model="Test CPU", memory_bytes=1 << 33),
        environment=Environment(python="3.11", packages={backend: "1.0"}),
        machine="cpu-test-lab",
        compute_capability=None,
        lock_name="cpu",
    )


def _new_lock(name: str) -> Any:
    from filelock import FileLock

    from zenrepro.hardware import locks

    return FileLock(locks.folder() / f"{name}.lock", thread_local=False)


FAKE = SimpleNamespace(is_out_of_memory=lambda error: isinstance(error, MemoryError))
