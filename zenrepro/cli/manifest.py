"""Whether the report must be made again: the files it is made from, and what it leaves.

A file whose size and time are as noted was not changed; any other is hashed.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from zenrepro.paths import MARKER, Project
from zenrepro.results.store import write_atomically

PACKAGE = Path(__file__).resolve().parent.parent

# Parts of the package that no page depends on.
_NOT_IN_PRINT = ("cli", "experiments", "ops", "backends", "measure", "hardware", "setup")


class Look(msgspec.Struct, frozen=True, array_like=True):
    """A file's time, size and hash."""

    mtime_ns: int
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the report was made from and by."""

    tools: str
    inputs: dict[str, Look]
    outputs: dict[str, Look]


def is_fresh(project: Project) -> bool:
    """Whether the PDF and the HTML are what making them now would leave."""
    try:
        noted = msgspec.json.decode(_path(project).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):  # none yet, or of another version: make it
        return False
    if noted.tools != _tools() or not noted.outputs:
        return False
    return _same(noted.inputs, _inputs(project), project) and _same(
        noted.outputs, _outputs(project), project
    )


def look(project: Project) -> dict[str, Look]:
    """The inputs as they are before the report is made; what changes meanwhile then shows."""
    return {name: _look(path) for name, path in _inputs(project)}


def write(project: Project, inputs: dict[str, Look]) -> None:
    """Note that the report was made from ``inputs``."""
    outputs = {name: _look(path) for name, path in _outputs(project)}
    content = Manifest(_tools(), inputs, outputs)
    write_atomically(_path(project), msgspec.json.encode(content))


def _path(project: Project) -> Path:
    return project.build / ".report.manifest.json"


def _tools() -> str:
    """What else the pages depend on: the interpreter and the TeX that is found."""
    return f"{sys.version} {shutil.which('latexmk')} {shutil.which('pdflatex')}"


def _inputs(project: Project) -> Iterator[tuple[str, Path]]:
    yield from _files(project.root / MARKER, project)
    for folder in (
        project.results, project.published, project.hardware, project.models,
        project.templates, project.build / "notebooks", PACKAGE,
    ):  # fmt: skip
        yield from _files(folder, project)


def _outputs(project: Project) -> Iterator[tuple[str, Path]]:
    yield from _files(project.build / "report.pdf", project)
    yield from _files(project.build / "html", project)


def _files(path: Path, project: Project) -> Iterator[tuple[str, Path]]:
    """A file, or those below a folder, by name; generated and hidden ones left out."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            hidden = child.name.startswith(".") or child.name == "__pycache__"
            generated = child == project.templates / "generated"
            unprinted = path == PACKAGE and child.name in _NOT_IN_PRINT
            if not (hidden or generated or unprinted):
                yield from _files(child, project)
    elif path.is_file():
        inside = path.is_relative_to(project.root)
        yield str(path.relative_to(project.root) if inside else path), path


def _look(path: Path) -> Look:
    stat = path.stat()
    return Look(stat.st_mtime_ns, stat.st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def _same(noted: dict[str, Look], now: Iterator[tuple[str, Path]], project: Project) -> bool:
    names = set()
    for name, path in now:
        names.add(name)
        then = noted.get(name)
        if then is None:
            return False
        stat = path.stat()
        if (stat.st_mtime_ns, stat.st_size) != (then.mtime_ns, then.size) and (
            stat.st_size != then.size or _look(path).sha256 != then.sha256
        ):
            return False
    return names == set(noted)
