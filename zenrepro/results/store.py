"""The store: ``data/results/<machine>/<experiment>.json``, safe against crashes and second writers.

A file is replaced whole (temporary file, fsync, rename) under a lock, after what is on disk was
read and merged. So a kill at any moment leaves the old or the new file, and two writers lose
nothing of each other's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import filelock
import msgspec

from zenrepro import records
from zenrepro.errors import InputError
from zenrepro.paths import MARKER
from zenrepro.records import Record, ResultsFile

# One path component, the same on every file system: no separators, no leading or trailing dot.
_SLUG = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*", re.ASCII)
_LONGEST = 100
# A second writer waits this long; a write takes milliseconds.
LOCK_TIMEOUT_S = 60.0


def check_slug(name: str, what: str, place: str) -> str:
    """Return ``name`` if it may name a machine or an experiment, else raise InputError."""
    if len(name) > _LONGEST or not _SLUG.fullmatch(name):
        raise InputError(
            f"{place}: {what} {name!r} is not a name; wanted lower-case letters, digits and single "
            f"- . _ between them, at most {_LONGEST} characters"
        )
    return name


class Store:
    """The records under one results folder."""

    def __init__(self, folder: Path) -> None:
        """``folder`` need not exist; the first ``put`` makes it."""
        self.folder = Path(folder)
        # Decoded content by path, valid while the file's inode, time and size stay the same.
        self._decoded: dict[Path, tuple[tuple[int, int, int], ResultsFile]] = {}

    def machines(self) -> list[str]:
        """Machines with results, sorted. Raises InputError for a folder that names none."""
        return [
            check_slug(path.name, "machine", str(self.folder))
            for path in _listed(self.folder)
            if path.is_dir() and any(_results_in(path))
        ]

    def experiments(self, machine: str) -> list[str]:
        """Experiments that this machine has results of, sorted."""
        check_slug(machine, "machine", str(self.folder))
        return [path.stem for path in _results_in(self.folder / machine)]

    def known(self, machine: str) -> str:
        """Return ``machine`` if it has results here, else raise InputError that lists those."""
        if machine not in self.machines():
            have = ", ".join(self.machines()) or "none"
            raise InputError(f"{self.folder}: no machine {machine!r}; it has results of: {have}")
        return machine

    def load(self, machine: str | None = None, experiment: str | None = None) -> list[Record]:
        """Records, validated, in a fixed order; of one machine or experiment where given.

        Raises InputError naming the file that is not a whole results file.
        """
        if machine is not None:
            check_slug(machine, "machine", str(self.folder))
        if experiment is not None:
            check_slug(experiment, "experiment", str(self.folder))
        out: list[Record] = []
        for name in self.machines() if machine is None else [machine]:
            for path in _results_in(self.folder / name):
                if experiment is None or path.stem == experiment:
                    out += self._read(path).records
        return out

    def put(
        self, new: Sequence[Record], replaces: Callable[[Record, Record], bool] | None = None
    ) -> None:
        """Add records; one of equal identity replaces the earlier one.

        ``replaces(new, old)`` may say that an earlier one stays. Records of several files are all
        on disk before the first file is replaced. Raises InputError for a record that is not valid,
        for a file that cannot be read back, and when the disk is full or the folder read-only. The
        files are then as they were before.
        """
        by_file: dict[Path, list[Record]] = {}
        for record in new:
            place = f"record of {record.experiment}"
            check_slug(record.machine, "machine", place)
            check_slug(record.experiment, "experiment", place)
            path = self.folder / record.machine / f"{record.experiment}.json"
            by_file.setdefault(path, []).append(records.check(record, place))
        with contextlib.ExitStack() as held:
            # In one order everywhere, so that two writers cannot wait for each other.
            for path in sorted(by_file):
                held.enter_context(self._lock(path))
            staged: dict[Path, tuple[Path, ResultsFile]] = {}
            try:
                for path, group in sorted(by_file.items()):
                    with _writing(path):
                        path.parent.mkdir(parents=True, exist_ok=True)
                        _clear_leftovers(path)
                        old = self._read(path).records if path.exists() else []
                        file = ResultsFile(
                            schema=records.SCHEMA,
                            machine=path.parent.name,
                            experiment=path.stem,
                            records=merged(old, group, replaces),
                        )
                        staged[path] = (_stage(path, records.encode(file)), file)
                for path, (temporary, file) in staged.items():
                    with _writing(path):
                        _put_in_place(temporary, path)
                        self._decoded[path] = (_signature(path.stat()), file)
            finally:
                for temporary, _ in staged.values():
                    temporary.unlink(missing_ok=True)

    def _read(self, path: Path) -> ResultsFile:
        try:
            signature = _signature(path.stat())
            known = self._decoded.get(path)
            if known and known[0] == signature:
                return known[1]
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            content = records.decode(data, str(path))
        except InputError as error:
            mend = (
                "" if "delete" in str(error) else "; restore the file, or delete it and run again"
            )
            raise InputError(f"{error}{mend}") from None
        for found, expected, what in (
            (content.machine, path.parent.name, "machine"),
            (content.experiment, path.stem, "experiment"),
        ):
            if found != expected:
                raise InputError(
                    f"{path}: {what} is {found!r}, but the path says {expected!r}; move the file"
                )
        self._decoded[path] = (signature, content)
        return content

    @contextlib.contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        with _writing(path):
            lock = filelock.FileLock(_lock_path(path), timeout=LOCK_TIMEOUT_S)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise InputError(
                    f"{path}: another process has been writing for {LOCK_TIMEOUT_S:.0f} s; "
                    f"end it, then run again (its lock is {lock.lock_file})"
                ) from None
        try:
            yield
        finally:
            lock.release()


def merged(
    old: Iterable[Record],
    new: Iterable[Record],
    replaces: Callable[[Record, Record], bool] | None = None,
) -> list[Record]:
    """Records by identity, the new ones winning where ``replaces(new, old)`` does not object, in
    the order in which files keep them."""
    by_identity = {record.identity(): record for record in old}
    for record in new:
        known = by_identity.get(record.identity())
        if known is None or replaces is None or replaces(record, known):
            by_identity[record.identity()] = record
    return sorted(by_identity.values(), key=_order)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by a whole new one that is on disk before it has the name."""
    temporary = _stage(path, data)
    try:
        _put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _stage(path: Path, data: bytes) -> Path:
    """Write data to a new file beside ``path``, down to the disk."""
    with _naming(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return Path(name)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error name the file: a full disk says none, a read-only one says the temporary's."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _put_in_place(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # A system that cannot open folders (Windows) has no way to sync them.
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems refuse to sync a folder; the rename itself has happened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line that says what is left."""
    try:
        yield
    except OSError as error:
        mend = {
            errno.ENOSPC: "free some space and run again",
            errno.EDQUOT: "free some space and run again",
            errno.EROFS: "the file system is read-only; copy the project to one that is not",
        }.get(error.errno or 0, "make the folder writable and run again")
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); earlier results are untouched; {mend}"
        ) from None


def _clear_leftovers(path: Path) -> None:
    """Remove temporary files of killed writers: under the lock, no live one can have any."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _lock_path(path: Path) -> Path:
    """Where the lock of a results file lies: in the project's local state, which git ignores.

    Outside a project (a merge target, a test) it lies in the user's temporary folder.
    """
    resolved = path.absolute().resolve()
    root = next((p for p in resolved.parents if (p / MARKER).is_file()), None)
    if root is not None:
        # By the path inside the project: two containers may have it mounted at different places.
        key = resolved.relative_to(root)
        folder = root / ".zenrepro" / "locks"
    else:
        key = resolved
        user = str(os.getuid()) if hasattr(os, "getuid") else "user"
        folder = Path(tempfile.gettempdir()) / f"zenrepro-{user}" / "locks"
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:24] + ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _signature(stat: os.stat_result) -> tuple[int, int, int]:
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _results_in(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.suffix == ".json"]


def _order(record: Record) -> tuple[str, ...]:
    """Sorts records so that a new point is a few new lines in one place of the file."""
    return (
        record.implementation,
        *(f"{key}={_sortable(value)}" for key, value in sorted(record.conditions.items())),
        "",
        record.quantity,
        record.metric,
    )


def _sortable(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:024.6f}"
    return msgspec.json.encode(value).decode()
