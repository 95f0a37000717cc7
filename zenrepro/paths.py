"""The project folder: where a report's data, notebooks and templates are.

``zenrepro.toml`` marks it. Data, notebooks and templates belong to the project, not to the
installed package, so that another report is another folder.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from zenrepro.errors import InputError

MARKER = "zenrepro.toml"


class ExperimentEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One experiment: its notebook (relative to the project) and the module behind it."""

    notebook: str
    module: str


class _Folders(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    published: str = "data/published"
    hardware: str = "data/hardware"
    models: str = "data/models"
    results: str = "data/results"
    templates: str = "latex"
    build: str = "build"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    title: str
    machines: list[str] = []
    folders: _Folders = _Folders()
    experiments: dict[str, ExperimentEntry] = {}


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project folder. All paths are absolute; ``machines`` orders the report's columns."""

    root: Path
    title: str
    machines: list[str]
    experiments: dict[str, ExperimentEntry]
    published: Path
    hardware: Path
    models: Path
    results: Path
    templates: Path
    build: Path

    @property
    def local(self) -> Path:
        """Git-ignored state of this checkout: the machine's label, drafts."""
        return self.root / ".zenrepro"

    def notebook(self, experiment: str) -> Path:
        """The notebook of an experiment. Raises InputError for an unknown one."""
        if experiment not in self.experiments:
            raise InputError(
                f"unknown experiment {experiment!r}; {self.root / MARKER} lists: "
                f"{', '.join(self.experiments) or 'none'}"
            )
        return self.root / self.experiments[experiment].notebook


def find(start: Path | None = None, given: Path | None = None) -> Project:
    """The project at ``given``, else the nearest one from ``start`` (default: here) upwards.

    Raises InputError when there is none or its file is wrong.
    """
    if given is not None:
        if not (given / MARKER).is_file():
            raise InputError(f"{given}: no {MARKER} there; --project wants a project folder")
        return load(given)
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / MARKER).is_file():
            return load(folder)
    raise InputError(f"{here}: no {MARKER} here or above; go to a project or give --project DIR")


def load(root: Path) -> Project:
    """Read ``root/zenrepro.toml``. Raises InputError naming the file and key."""
    root = root.resolve()
    path = root / MARKER
    try:
        content = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}") from None
    folders = content.folders
    return Project(
        root=root,
        title=content.title,
        machines=content.machines,
        experiments=content.experiments,
        published=root / folders.published,
        hardware=root / folders.hardware,
        models=root / folders.models,
        results=root / folders.results,
        templates=root / folders.templates,
        build=root / folders.build,
    )
