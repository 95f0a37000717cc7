"""What a run does: one job an experiment and backend, parameters checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from zenrepro import params
from zenrepro.cli import modules
from zenrepro.errors import InputError
from zenrepro.experiments.session import place
from zenrepro.hardware import Hardware
from zenrepro.params import Parameter
from zenrepro.paths import Project


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line selects; None and empty are each experiment's own defaults."""

    backend: str | None = None
    device: str | None = None
    scale: str | None = None
    assignments: Sequence[str] = ()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One notebook to run on one backend. ``given`` are the parameters that are injected."""

    experiment: str
    backend: str
    notebook: Path
    given: dict[str, Any]
    hardware: Hardware
    missing: str | None

    @property
    def name(self) -> str:
        """What the job's files are called."""
        return f"{self.experiment}-{self.backend}"

    def output(self, build: Path) -> Path:
        """Where the executed notebook goes, under a build folder."""
        return build / "notebooks" / self.hardware.machine / f"{self.name}.ipynb"


def jobs(
    project: Project, experiments: Sequence[str], choice: Choice
) -> tuple[list[Job], list[str]]:
    """The jobs, and a line for each backend that has no such device.

    Raises InputError for an unknown experiment, backend, device, scale or parameter, a value of
    the wrong type, and a notebook whose parameters cell is not as it must be.
    """
    found: list[Job] = []
    left_out: list[str] = []
    for experiment in dict.fromkeys(experiments):
        notebook = project.notebook(experiment)
        declared = declarations(project, experiment)
        given = _given(declared, choice, notebook)
        backends = _backends(declared, choice, experiment)
        refusals: list[InputError] = []
        for backend in backends:
            try:
                hardware, missing = place(backend, choice.device, project)
            except InputError as error:
                refusals.append(error)
                continue
            device = {} if choice.device is None else {"device": hardware.device}
            found.append(
                Job(
                    experiment=experiment,
                    backend=backend,
                    notebook=notebook,
                    given={**given, "backend": backend, **device},
                    hardware=hardware,
                    missing=missing,
                )
            )
        if len(refusals) == len(backends):
            raise InputError("; ".join(dict.fromkeys(map(str, refusals))))
        left_out += [f"{experiment}: {refusal}" for refusal in refusals]
    return found, left_out


def declarations(project: Project, experiment: str) -> list[Parameter]:
    """The parameters of an experiment: its module's, which its notebook's must agree with."""
    notebook = project.notebook(experiment)
    declared = params.of_struct(modules.load(project, experiment).Parameters)
    params.agree(params.read(notebook), declared, str(notebook))
    return declared


def _given(declared: list[Parameter], choice: Choice, notebook: Path) -> dict[str, Any]:
    given = dict(params.parse(text, declared) for text in choice.assignments)
    for name in ("backend", "device"):
        if name in given:
            raise InputError(f"-p {name}: say --{name} {given[name]}")
    if choice.scale is not None:
        if given.get("scale", choice.scale) != choice.scale:
            raise InputError(f"-p scale={given['scale']} and --scale {choice.scale} differ")
        given["scale"] = choice.scale
    params.validate(declared, given, str(notebook))
    return given


def _backends(declared: list[Parameter], choice: Choice, experiment: str) -> list[str]:
    parameter = next((p for p in declared if p.name == "backend"), None)
    if parameter is None or parameter.choices is None:
        raise InputError(
            f"experiment {experiment}: its Parameters needs `backend` limited to the backends it "
            'has, such as Literal["torch"]'
        )
    if choice.backend is None:
        return list(parameter.choices)
    if choice.backend not in parameter.choices:
        raise InputError(
            f"experiment {experiment}: no backend {choice.backend!r}; "
            f"it has {', '.join(parameter.choices)}"
        )
    return [choice.backend]
