"""Names of sources and data, the files behind them, and their fingerprints.

A name is relative to the project's folder or, for the package and its kernels, to the folder that
the package lies in: "zenrepro/ops/gate.py" is the same in a checkout and in an installation. A name
that ends in ``#row`` is that row of the literal table in the file; one that ends in ``#`` is the
file without any row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from zenrepro.errors import InputError
from zenrepro.paths import Project
from zenrepro.records import Inputs
from zenrepro.sources import fingerprint
from zenrepro.sources.fingerprint import Code

PACKAGE = Path(__file__).resolve().parent.parent
KERNELS = "kernels/"

_T = TypeVar("_T")
# Computed in this process, by path, valid while the file's time and size stay the same.
_known: dict[tuple[Path, str], tuple[tuple[int, int], object]] = {}


class Files:
    """The files of one project, each looked at once: make a new one for each question asked."""

    def __init__(self, project: Project) -> None:
        self.root = project.root
        self._fingerprints: dict[str, str | None] = {}

    def path(self, name: str) -> Path | None:
        """The file of this name, None where there is none."""
        file = name.partition("#")[0]
        candidates = [self.root / file]
        if file.startswith(f"{PACKAGE.name}/"):
            # The code that runs is the installed one, also where the project has a folder like it.
            candidates = [PACKAGE.parent / file]
        elif file.startswith(KERNELS):
            candidates += [PACKAGE.parent / file, PACKAGE / file]
        return next((path for path in candidates if path.is_file()), None)

    def code(self, path: Path) -> Code:
        """What a Python file is and imports. Raises InputError when it is not Python."""
        return _once(path, "code", lambda data: fingerprint.of_code(data, str(path)))

    def fingerprint(self, name: str) -> str | None:
        """The fingerprint of what has this name, None where it is gone.

        A file that is no longer Python, YAML or a notebook is fingerprinted by its bytes, so that
        it counts as changed.
        """
        if name not in self._fingerprints:
            self._fingerprints[name] = self._fingerprint(name)
        return self._fingerprints[name]

    def _fingerprint(self, name: str) -> str | None:
        path = self.path(name)
        if path is None:
            return None
        try:
            return self._meaning(name, path)
        except InputError:
            return _once(path, "bytes", fingerprint.of_bytes)

    def _meaning(self, name: str, path: Path) -> str | None:
        file, marked, row = name.partition("#")
        if marked:
            code = self.code(path)
            if not row:
                return code.frame
            return code.rows[row].fingerprint if row in code.rows else None
        if file.startswith(KERNELS):
            return _once(path, "bytes", fingerprint.of_bytes)
        if path.suffix == ".py":
            return self.code(path).fingerprint
        if path.suffix == ".ipynb":
            return _once(path, "cells", lambda data: fingerprint.of_notebook(data, str(path)))
        if path.suffix in (".yaml", ".yml"):
            return _once(path, "yaml", lambda data: fingerprint.of_yaml(data, str(path)))
        return _once(path, "bytes", fingerprint.of_bytes)


def changed(project: Project, inputs: Inputs, files: Files | None = None) -> list[str]:
    """What of a record's inputs is no longer as it was, one line each; empty where nothing is.

    ``files`` shares what was looked at between many records of one moment.
    """
    files = files or Files(project)
    out: list[str] = []
    for kind, names in (("source", inputs.sources), ("data", inputs.data)):
        for name, then in names.items():
            now = files.fingerprint(name)
            if now != then:
                out.append(f"{kind} {described(name)} {'is gone' if now is None else 'changed'}")
    return out


def described(name: str) -> str:
    """A name in words."""
    file, marked, row = name.partition("#")
    if not marked:
        return file
    return f"{file}, row {row}" if row else f"{file}, outside its rows"


def _once(path: Path, what: str, compute: Callable[[bytes], _T]) -> _T:
    with _readable(path):
        stat = path.stat()
        signature = (stat.st_mtime_ns, stat.st_size)
        known = _known.get((path, what))
        if known is not None and known[0] == signature:
            return known[1]  # type: ignore[return-value]
        result = compute(path.read_bytes())
    _known[path, what] = (signature, result)
    return result


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
