"""Records: what was measured, on what, from which code, with every raw sample.

The schema of ``data/results/<machine>/<experiment>.json``. Decoding is strict: unknown fields,
wrong types, NaN, negative times and duplicated identities are errors that name the place.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import msgspec

from zenrepro import conditions as conditions_module
from zenrepro.conditions import QUANTITIES
from zenrepro.errors import InputError
from zenrepro.units import UNITS, unit

SCHEMA = 1

# Quantities that no device can make negative.
_NON_NEGATIVE = frozenset(QUANTITIES) - {"quality", "ratio"}
# Quantities that rates divide by: nothing that ran took none of them.
_POSITIVE = frozenset(("time", "latency"))
# A unit of each dimension that a quantity may have; those left out may have several.
_IN = {
    "time": ("s",), "latency": ("s", "ms/token"), "throughput": ("token/s", "token/s/chip"),
    "bandwidth": ("B/s",), "flop_rate": ("FLOP/s",), "memory": ("B",), "power": ("W",),
    "energy_per_token": ("J/token",),
}  # fmt: skip
# Beyond these, sums and quotients of samples leave the range of a float.
_SMALLEST, _LARGEST = 1e-100, 1e100


class Status(StrEnum):
    """How a measurement ended. Only OK and DISTURBED carry samples that are compared or shown."""

    OK = "ok"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    OOM = "oom"
    SKIPPED = "skipped"
    DISTURBED = "disturbed"


class Kind(StrEnum):
    """Where a number comes from; none stands in another's column."""

    MEASURED = "measured"
    COMPILED = "compiled"
    PREDICTED = "predicted"
    COUNTED = "counted"


class Origin(StrEnum):
    """Whose implementation it is."""

    OURS = "ours"
    PEER = "peer"


class DeviceClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What comparisons join on. ``platform`` is the slug of a file in ``data/hardware/`` or a new
    slug made from the model's name."""

    platform: str
    model: str
    form_factor: str | None = None
    memory_bytes: int | None = None
    count: int = 1


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The software and state of the machine. ``None`` means unknown, never zero."""

    # What freshness looks at:
    os: str | None = None
    python: str | None = None
    driver: str | None = None
    runtime: str | None = None
    packages: dict[str, str] = {}
    compilers: dict[str, str] = {}
    power_limit_w: float | None = None
    # Volatile: recorded, never a reason to measure again:
    clocks_mhz: dict[str, float] = {}
    throttle_reasons: list[str] = []
    temperature_c: float | None = None
    other_load: str | None = None
    idle_power_w: float | None = None

    def stable(self) -> dict[str, Any]:
        """The part that freshness compares."""
        return {
            "os": self.os, "python": self.python, "driver": self.driver, "runtime": self.runtime,
            "packages": dict(sorted(self.packages.items())),
            "compilers": dict(sorted(self.compilers.items())),
            "power_limit_w": self.power_limit_w,
        }  # fmt: skip


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Counted work of one call: useful FLOPs and the fewest bytes of device memory it must move."""

    flops: float | None = None
    bytes: float | None = None


class Inputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What freshness rehashes: {project-relative name: hash}. A name may end in ``#row``."""

    sources: dict[str, str] = {}
    data: dict[str, str] = {}


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One quantity under one set of conditions."""

    # Identity (with the file's machine):
    experiment: str
    quantity: str
    metric: str
    implementation: str
    conditions: dict[str, Any]
    # Outcome:
    unit: str
    status: Status
    kind: Kind
    origin: Origin
    machine: str
    device_class: DeviceClass
    environment: Environment
    samples: list[float] = []
    reason: str | None = None
    flags: list[str] = []
    baseline: str | None = None
    work: Work | None = None
    method: str | None = None
    # Provenance:
    inputs: Inputs = Inputs()
    parameters: dict[str, Any] = {}
    seed: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    started: str | None = None

    def identity(self) -> tuple[Any, ...]:
        """What makes a later record replace this one."""
        return (
            self.machine, self.experiment, self.quantity, self.metric, self.implementation,
            tuple(sorted(self.conditions.items())),
        )  # fmt: skip


class ResultsFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The content of one file of results."""

    schema: int
    machine: str
    experiment: str
    records: list[Record]


_FILE = msgspec.json.Decoder(ResultsFile)


def check(record: Record, place: str) -> Record:
    """Return the record with canonical conditions. Raises InputError naming ``place``."""
    if record.quantity not in QUANTITIES:
        raise InputError(
            f"{place}: unknown quantity {record.quantity!r}; known: {', '.join(QUANTITIES)}"
        )
    try:
        own = unit(record.unit)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    wanted = _IN.get(record.quantity)
    if wanted and own.dimension not in [UNITS[symbol].dimension for symbol in wanted]:
        raise InputError(
            f"{place}: {record.quantity} in {record.unit!r}; wanted a unit like "
            f"{' or '.join(wanted)}"
        )
    has_value = record.status in (Status.OK, Status.DISTURBED)
    if has_value and not record.samples:
        raise InputError(f"{place}: status is {record.status} but there are no samples")
    if not has_value and record.samples:
        raise InputError(f"{place}: status is {record.status}, so it must have no samples")
    if not has_value and not record.reason:
        raise InputError(f"{place}: status is {record.status} but no reason is given")
    for sample in record.samples:
        if not math.isfinite(sample):
            raise InputError(f"{place}: a sample is {sample}; only finite numbers are measured")
        if sample < 0 and record.quantity in _NON_NEGATIVE:
            raise InputError(f"{place}: {record.quantity} has a negative sample {sample}")
        if sample == 0 and record.quantity in _POSITIVE:
            raise InputError(f"{place}: {record.quantity} has a sample of 0; nothing takes no time")
        if sample != 0 and not _SMALLEST < abs(sample) < _LARGEST:
            raise InputError(f"{place}: a sample is {sample}; no device measures such a number")
    typed = conditions_module.canonical(record.conditions, f"{place}, conditions")
    return msgspec.structs.replace(record, conditions=typed)


def decode(data: bytes, place: str) -> ResultsFile:
    """Decode and validate one results file.

    Raises InputError naming ``place`` for anything that is not exactly a results file of this
    schema version: truncated JSON, another version, a record of another machine or experiment,
    or two records of one identity.
    """
    try:
        out = _FILE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        out = _explained(data, place)
    if out.schema != SCHEMA:
        raise InputError(f"{place}: schema version is {out.schema!r}, this zenrepro reads {SCHEMA}")
    seen: set[tuple[Any, ...]] = set()
    for index, record in enumerate(out.records):
        where = f"{place}, records[{index}]"
        if record.machine != out.machine:
            raise InputError(f"{where}: machine is {record.machine!r}, the file's {out.machine!r}")
        if record.experiment != out.experiment:
            raise InputError(
                f"{where}: experiment is {record.experiment!r}, the file's {out.experiment!r}"
            )
        out.records[index] = checked = check(record, where)
        if checked.identity() in seen:
            raise InputError(f"{where}: a second record of the same identity; delete one of them")
        seen.add(checked.identity())
    return out


def _explained(data: bytes, place: str) -> ResultsFile:
    """Decode step by step what did not decode at once, and say at which step it fails."""
    try:
        head = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{place}: not a whole JSON file ({error}); restore it or delete it and run again"
        ) from None
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        found = head.get("schema") if isinstance(head, dict) else None
        raise InputError(f"{place}: schema version is {found!r}, this zenrepro reads {SCHEMA}")
    try:
        return msgspec.convert(head, ResultsFile)
    except msgspec.ValidationError as error:
        raise InputError(f"{place}: {' '.join(str(error).split())}") from None


def encode(content: ResultsFile) -> bytes:
    """Encode a results file: JSON with one record a line, so that a difference shows records.

    Records stand in the given order, their keys in the schema's.
    """
    head = {key: getattr(content, key) for key in ("schema", "machine", "experiment")}
    opening = msgspec.json.encode(head)[:-1] + b',"records":['
    lines = b",\n".join(msgspec.json.encode(record) for record in content.records)
    return opening + b"\n" + lines + b"\n]}\n"
