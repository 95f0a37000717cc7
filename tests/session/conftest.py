"""A project with one experiment whose points count how often they are measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from zenrepro import backends, hardware, measure, paths
from zenrepro.experiments import session
from zenrepro.experiments.point import Point, Prepared, Result
from zenrepro.measure import Sampled
from zenrepro.paths import Project
from zenrepro.records import DeviceClass, Environment, Origin, Status

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
        self.groups: dict[int, str] = {}
        self.prepared: list[int] = []
        self.rounds: list[list[str]] = []
        module.points = self.points

    def points(self, run: session.Session) -> Iterator[Point]:
        for n in range(1, run.parameters.sizes + 1):
            grouped = n in self.groups
            yield Point(
                implementation=f"{run.parameters.backend}.sum",
                conditions={"op": "copy", "n": n},
                produces=[("time", "per_call")],
                measure=None if grouped else lambda n=n: self.measure(n),
                prepare=(lambda n=n: self.prepare(n)) if grouped else None,
                group=self.groups.get(n),
                origin=Origin.OURS,
                unavailable=self.unavailable.get(n),
            )

    def prepare(self, n: int) -> Prepared | list[Result]:
        self.prepared.append(n)
        if n in self.does:
            done = self.does[n]()
            if done is not None:
                return done

        def finish(sampled: Any) -> list[Result]:
            self.measured.append(n)
            return [Result.of(sampled, "time", "per_call", "ms", lambda s: float(n))]

        return Prepared(lambda: n, finish)

    def sample_together(self, backend: Any, calls: Any, *, scale: str) -> dict[str, Sampled]:
        """In place of ``measure.sample_together``: notes who was sampled with whom."""
        self.rounds.append([str(call()) for call in calls.values()])
        return {
            name: Sampled(
                seconds=[1.0] * 5, method=f"in turn with {len(calls) - 1}", flags=[],
                status=Status.OK, reason=None, peak_bytes=None, state=Environment(),
            )
            for name in calls
        }  # fmt: skip

    def measure(self, n: int) -> list[Result]:
        self.measured.append(n)
        if n in self.does:
            return self.does[n]()
        return [Result(quantity="time", metric="per_call", unit="ms", samples=[float(n)] * 5)]

    def start(self, **given: Any) -> session.Session:
        return session.start("sums", given, self.project)

    def run(self, **given: Any) -> tuple[session.Session, list[Any]]:
        self.measured.clear()
        self.prepared.clear()
        self.rounds.clear()
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
    monkeypatch.setattr(FAKE, "lost", lambda: False)
    one = Bench(paths.load(tmp_path), module)
    monkeypatch.setattr(measure, "sample_together", one.sample_together)
    return one


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


FAKE = SimpleNamespace(
    is_out_of_memory=lambda error: isinstance(error, MemoryError), lost=lambda: False
)
