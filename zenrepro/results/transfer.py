"""Carrying results between machines: one zip a machine, checked before anything is written.

An archive is not trusted: only ``<machine>/<experiment>.json`` entries that are plain files of a
sane size and decode as results are read, into memory, and nothing is ever extracted by its path.
``docs/decisions/archives.md`` has the rules.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from zenrepro import records
from zenrepro.errors import InputError
from zenrepro.records import Record
from zenrepro.results.store import Store, check_slug, write_atomically

# 200 bytes a sample and 10,000 records of 1,000 samples would not reach these.
LARGEST_FILE_BYTES = 256 * 2**20
LARGEST_ARCHIVE_BYTES = 1024 * 2**20
MOST_FILES = 10_000
_CHUNK = 2**20
# The same records give the same archive: no time of day enters it.
_DATE = (1980, 1, 1, 0, 0, 0)


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What merging one archive did. ``kept`` lists records that were here already and newer, which
    the archive's did not replace; ``same`` counts those that are equal."""

    archive: str
    machines: list[str]
    added: int
    replaced: int
    same: int
    kept: list[str]

    def lines(self) -> list[str]:
        """The outcome, one line each."""
        head = (
            f"{self.archive}: {', '.join(self.machines)}: {self.added} added, {self.replaced} "
            f"replaced by newer ones, {self.same} the same, {len(self.kept)} kept"
        )
        return [head, *(f"kept, newer here: {line}" for line in self.kept)]


def export(store: Store, machine: str, output: Path) -> int:
    """Write all results of a machine to a zip archive; returns the number of records.

    Raises InputError when the machine has none, a file is not whole, or the archive can't be
    written; an archive that was there is then as it was.
    """
    store.known(machine)
    count = 0
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for experiment in store.experiments(machine):
            found = store.load(machine, experiment)
            file = records.ResultsFile(
                schema=records.SCHEMA, machine=machine, experiment=experiment, records=found
            )
            entry = zipfile.ZipInfo(f"{machine}/{experiment}.json", date_time=_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, records.encode(file))
            count += len(found)
    try:
        write_atomically(Path(output), packed.getvalue())
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror}); give another place with -o"
        ) from None
    return count


def read(archive: Path) -> list[Record]:
    """All records of an archive, validated. Raises InputError naming the archive and entry."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return [record for entry in _checked(opened, archive) for record in entry]
    except OSError as error:
        raise InputError(f"{archive}: cannot be read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: encrypted. NotImplementedError: a compression that Python lacks.
        raise InputError(f"{archive}: not a whole zip archive ({error}); export it again") from None


def merge(store: Store, archives: Sequence[Path]) -> list[Merged]:
    """Add the records of archives to a store; a record that is newer in the store stays.

    Every archive is read and checked before the first record is written. Records are compared by
    when they were started; without that on either side the store's stays. Raises InputError for an
    archive that isn't one of results; the store is then as it was.
    """
    incoming = [(archive, read(Path(archive))) for archive in archives]
    # A store that is broken shall say so before anything is written, too.
    here = {record.identity(): record for record in store.load()}
    out: list[Merged] = []
    writes: list[Record] = []
    for archive, found in incoming:
        added = replaced = same = 0
        kept: list[str] = []
        for record in found:
            old = here.get(record.identity())
            if old is None:
                added += 1
            elif old == record:
                same += 1
                continue
            elif _newer(record, old):
                replaced += 1
            else:
                kept.append(f"{_described(old)} ({_time(old)}; the archive's {_time(record)})")
                continue
            here[record.identity()] = record
            writes.append(record)
        out.append(
            Merged(
                archive=Path(archive).name,
                machines=sorted({record.machine for record in found}),
                added=added,
                replaced=replaced,
                same=same,
                kept=kept,
            )
        )
    # Asked again under the lock: a run may have measured one meanwhile.
    store.put(list({record.identity(): record for record in writes}.values()), _newer)
    return out


def _checked(opened: zipfile.ZipFile, archive: Path) -> Iterator[list[Record]]:
    entries = opened.infolist()
    if len(entries) > MOST_FILES:
        raise InputError(f"{archive}: {len(entries)} entries; results have at most {MOST_FILES}")
    seen: set[str] = set()
    left = LARGEST_ARCHIVE_BYTES
    files = [entry for entry in entries if not _is_folder(entry, archive)]
    if not files:
        raise InputError(f"{archive}: holds no results; make it with `zenrepro export`")
    for entry in files:
        place = f"{archive}, {entry.filename!r}"
        machine, experiment = _names(entry, place)
        if entry.filename.casefold() in seen:
            raise InputError(f"{place}: is there twice; export the archive again")
        seen.add(entry.filename.casefold())
        data = _bytes(opened, entry, place, min(left, LARGEST_FILE_BYTES))
        left -= len(data)
        try:
            content = records.decode(data, place)
        except InputError as error:
            told = str(error).partition("; restore it or delete it")[0]
            raise InputError(f"{told}; mend its machine's results and export them again") from None
        if (content.machine, content.experiment) != (machine, experiment):
            raise InputError(
                f"{place}: holds {content.experiment!r} of {content.machine!r}; its name says "
                "otherwise; export it again"
            )
        yield content.records


def _is_folder(entry: zipfile.ZipInfo, archive: Path) -> bool:
    """Whether an entry is a plain folder of a machine, which says nothing and is passed over."""
    if not entry.is_dir():
        return False
    check_slug(entry.filename.rstrip("/"), "machine", str(archive))
    return True


def _names(entry: zipfile.ZipInfo, place: str) -> tuple[str, str]:
    """The machine and experiment that an entry's name says; refuses anything else."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise InputError(f"{place}: is a link or a device, not a plain file; export it again")
    machine, slash, file = entry.filename.partition("/")
    if not slash or not file.endswith(".json"):
        raise InputError(f"{place}: is not <machine>/<experiment>.json; results hold nothing else")
    check_slug(machine, "machine", place)
    return machine, check_slug(file.removesuffix(".json"), "experiment", place)


def _bytes(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, place: str, most: int) -> bytes:
    """An entry's content, counted while it unpacks: its header may lie about the size."""
    out = bytearray()
    with opened.open(entry) as file:
        while chunk := file.read(_CHUNK):
            out += chunk
            if len(out) > most:
                raise InputError(f"{place}: unpacks to more than {most >> 20} MiB; refused")
    return bytes(out)


def _newer(record: Record, old: Record) -> bool:
    """Whether a record was started later; not where either does not tell."""
    then, now = _started(old), _started(record)
    return then is not None and now is not None and now > then


def _started(record: Record) -> datetime | None:
    try:
        time = datetime.fromisoformat(record.started or "")
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _described(record: Record) -> str:
    under: dict[str, Any] = record.conditions
    listed = " ".join(f"{key}={value}" for key, value in under.items())
    return (
        f"{record.machine} {record.experiment} {record.implementation} "
        f"{record.quantity}/{record.metric} {listed}"
    )


def _time(record: Record) -> str:
    return record.started or "no time"
