"""What a point depends on: its modules' imports, followed through the project's own code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from zenrepro.errors import InputError
from zenrepro.paths import Project
from zenrepro.records import Inputs
from zenrepro.sources.files import KERNELS, PACKAGE, Files
from zenrepro.sources.fingerprint import Import

# Never part of a record's sources, since no measured number is made in them: the evidence tower,
# the command line, the set-up; schemas, names and parameters, whose content is in the record and
# compared as such; and what only finds folders, hashes or draws progress. Nothing that computes,
# times or converts may be added.
NEVER = (
    "zenrepro.results", "zenrepro.stats", "zenrepro.audit", "zenrepro.report", "zenrepro.cli",
    "zenrepro.setup", "zenrepro.__main__",
    "zenrepro.records", "zenrepro.conditions", "zenrepro.params", "zenrepro.claims",
    "zenrepro.specs", "zenrepro.printed", "zenrepro.completeness",
    "zenrepro.errors", "zenrepro.paths", "zenrepro.sources", "zenrepro.experiments.events",
    "zenrepro.experiments.progress", "zenrepro.experiments.durations",
    "zenrepro.experiments.drafts", "zenrepro.experiments.table", "zenrepro.experiments.freshness",
    "zenrepro.experiments.provenance",
)  # fmt: skip

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


def inputs(
    project: Project,
    modules: Sequence[str],
    rows: Sequence[str],
    data: Sequence[str],
    without: Sequence[str] = (),
) -> Inputs:
    """Fingerprints of everything that a point was made from.

    ``modules`` are dotted names to start from (or project-relative files: kernels, notebooks); an
    experiment's module brings its notebook along. ``rows`` are "module:row" of literal tables; what
    a row names, modules and kernel files, takes part. "module:" is a table none of whose rows is
    used; one that is not named at all takes part whole. ``data`` are project-relative files.
    ``without`` are modules that some import could load but that this point does not use: the other
    backends. Raises InputError for what is not there or cannot be read.
    """
    walk = _Walk(project, (*NEVER, *without))
    for spec in rows:
        walk.row(spec)
    for module in modules:
        walk.start(module)
    for name in data:
        if name.endswith(".ipynb"):
            walk.source(name)
    walk.follow()
    files = walk.files
    found = {name: _must(files, name, "source") for name in sorted(walk.names)}
    plain = [name for name in sorted(set(data)) if name not in walk.names]
    return Inputs(sources=found, data={name: _must(files, name, "data file") for name in plain})


def _must(files: Files, name: str, what: str) -> str:
    found = files.fingerprint(name)
    if found is None:
        raise InputError(f"{what} {name!r} is not in {files.root} nor in the package; correct it")
    return found


class _Walk:
    """One walk over imports, breadth first, each module once."""

    def __init__(self, project: Project, excluded: Sequence[str]) -> None:
        self.project = project
        self.excluded = excluded
        self.files = Files(project)
        self.names: set[str] = set()
        self._tables: set[str] = set()
        self._seen: set[str] = set()
        self._pending: list[str] = []

    def start(self, module: str) -> None:
        """Begin at a module, which must be there, or take a file in."""
        if "/" in module:
            self.source(module)
            return
        if self.locate(module) is None:
            raise InputError(
                f"module {module!r} is neither in {self.project.root} nor in zenrepro; freshness "
                "follows only these"
            )
        self._pending.append(module)
        for entry in self.project.experiments.values():
            if entry.module == module and (self.project.root / entry.notebook).is_file():
                self.names.add(entry.notebook)

    def row(self, spec: str) -> None:
        """Take one row of a table in, with the modules and files that its texts name."""
        module, _, row = spec.partition(":")
        path = self.locate(module)
        if path is None or ":" not in spec:
            raise InputError(f"table row {spec!r}: wanted module:row of a module of the project")
        code = self.files.code(path)
        if row and row not in code.rows:
            raise InputError(
                f"table row {spec!r}: {module} has no literal row of that name; "
                f"it has {', '.join(code.rows) or 'none'}"
            )
        name = self.name(path)
        self._tables.add(name)
        self.names.add(f"{name}#")
        self._pending.append(module)
        if not row:
            return
        self.names.add(f"{name}#{row}")
        for text in code.rows[row].texts:
            dotted = text.partition(":")[0]
            if "/" in text:
                if self.files.path(text) is not None:
                    self.source(text)
            elif "." in dotted and self.locate(dotted) is not None:
                self._pending.append(dotted)

    def source(self, name: str) -> None:
        """Take a file in; device code brings the files that it includes."""
        if name in self.names:
            return
        path = self.files.path(name)
        if path is None:
            raise InputError(f"source {name!r} is not in {self.project.root} nor in the package")
        self.names.add(name)
        if name.startswith(KERNELS) and path.suffix != ".py":
            for included in _INCLUDE.findall(path.read_bytes()):
                beside = (Path(name).parent / included.decode("utf-8", "replace")).as_posix()
                if self.files.path(beside) is not None:
                    self.source(beside)

    def follow(self) -> None:
        """Follow the imports of all that is pending."""
        while self._pending:
            module = self._pending.pop()
            if module in self._seen or self._is_excluded(module):
                continue
            self._seen.add(module)
            parent = module.rpartition(".")[0]
            if parent:
                self._pending.append(parent)
            path = self.locate(module)
            if path is None:
                continue
            name = self.name(path)
            if name not in self._tables:
                self.names.add(name)
            package = module if path.name == "__init__.py" else parent
            for statement in self.files.code(path).imports:
                self._pending.extend(_imported(statement, package))

    def _is_excluded(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.excluded)

    def locate(self, module: str) -> Path | None:
        """The file of a module of the project or of zenrepro, None for anything else."""
        parts = module.split(".")
        if not all(part.isidentifier() for part in parts):
            return None
        base = PACKAGE.parent if parts[0] == PACKAGE.name else self.project.root
        stem = base.joinpath(*parts)
        for path in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if path.is_file():
                return path
        return None

    def name(self, path: Path) -> str:
        """The name of a located module's file."""
        inside = path.is_relative_to(PACKAGE)
        return path.relative_to(PACKAGE.parent if inside else self.project.root).as_posix()


def _imported(statement: Import, package: str) -> Iterator[str]:
    """The modules that an import statement of a module in ``package`` may load."""
    base = statement.module or ""
    if statement.level:
        anchor = package.split(".")
        anchor = anchor[: len(anchor) - (statement.level - 1)]
        base = ".".join([*anchor, base] if base else anchor)
    if base:
        yield base
    for name in statement.names:
        # A submodule, or something that the package defines: locating it tells.
        yield f"{base}.{name}"
