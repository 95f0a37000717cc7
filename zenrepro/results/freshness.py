"""What is stale, and why: told from files and the state of the machine, without running anything.

``docs/decisions/freshness.md`` has the rules. Only a machine's own records can be stale; others'
are at most made from sources that have changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from zenrepro import params
from zenrepro.conditions import KEYS
from zenrepro.paths import MARKER, Project
from zenrepro.records import DeviceClass, Environment, Kind, Record, Status
from zenrepro.results.store import Store
from zenrepro.sources import changed
from zenrepro.sources.files import Files

State = Literal["fresh", "stale", "elsewhere", "sources changed since"]

# Reasons that a line has room for; all of them are in ``Item.reasons``.
SHOWN = 3
# Flag of a record whose reason was known without measuring (see experiments.freshness).
NOT_ATTEMPTED = "not attempted"
SCALES = ("smoke", "small", "full")
# Parameters that something else in the record tells (its device class, implementation, conditions),
# or that only choose among points.
_NOT_COMPARED = frozenset(("device", "backend", "implementations", *KEYS))


class Device(Protocol):
    """What freshness needs to know of a device that is here (``hardware.Hardware`` has it)."""

    @property
    def backend(self) -> str: ...
    @property
    def machine(self) -> str: ...
    @property
    def device_class(self) -> DeviceClass: ...
    @property
    def environment(self) -> Environment: ...


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One record and its state. ``reasons`` has a line for each thing that is no longer as it was;
    it is empty for ``fresh`` and ``elsewhere``."""

    machine: str
    experiment: str
    implementation: str
    quantity: str
    metric: str
    conditions: dict[str, Any]
    state: State
    reasons: list[str]

    def line(self) -> str:
        """The item in one line, with the first reasons."""
        under = " ".join(f"{key}={value}" for key, value in self.conditions.items())
        what = f"{self.experiment} {self.implementation} {self.quantity}/{self.metric} {under}"
        shown = self.reasons[:SHOWN]
        if len(self.reasons) > SHOWN:
            shown.append(f"and {len(self.reasons) - SHOWN} more")
        why = f": {'; '.join(shown)}" if shown else ""
        return f"{self.state}: {self.machine} {what}{why}"


def status(
    project: Project,
    here: Sequence[Device],
    machine: str | None = None,
    scale: Mapping[str, str] | None = None,
) -> list[Item]:
    """The state of every record (of one machine where given), in the store's order.

    ``here`` are the devices of this machine; with none of them, every record is another's.
    ``scale`` is the scale that a run would have now, by machine; left out, scales are not compared.
    Raises InputError for results that are not whole.
    """
    files = Files(project)
    records = Store(project.results).load(machine)
    now = _Now(project, here, scale or {}, records)
    known: dict[int, list[str]] = {}
    out: list[Item] = []
    for record in records:
        # Records of one point share their inputs: compare them once.
        key = hash((tuple(record.inputs.sources.items()), tuple(record.inputs.data.items())))
        if key not in known:
            known[key] = changed(project, record.inputs, files)
        reasons = list(known[key])
        state: State
        if record.machine in now.machines:
            reasons += now.reasons(record)
            state = "stale" if reasons else "fresh"
        else:
            state = "sources changed since" if reasons else "elsewhere"
        out.append(
            Item(
                machine=record.machine,
                experiment=record.experiment,
                implementation=record.implementation,
                quantity=record.quantity,
                metric=record.metric,
                conditions=dict(record.conditions),
                state=state,
                reasons=reasons,
            )
        )
    return out


def compare_device(record: Record, now: DeviceClass, environment: Environment) -> list[str]:
    """What of the device and its software is not as it was, one line each.

    A package or tool that the record knows and this environment does not name is no change: only an
    open framework knows them all.
    """
    out: list[str] = []
    then_class, now_class = msgspec.to_builtins(record.device_class), msgspec.to_builtins(now)
    for name in sorted({*then_class, *now_class}):
        if then_class.get(name) != now_class.get(name):
            out.append(f"device {name} was {then_class.get(name)}, is {now_class.get(name)}")
    then, today = record.environment.stable(), environment.stable()
    for name, was in then.items():
        is_ = today[name]
        if isinstance(was, dict):
            for part in sorted(is_):
                if was.get(part) != is_[part]:
                    out.append(f"{part} was {was.get(part, 'absent')}, is {is_[part]}")
        elif was != is_:
            out.append(f"{name} was {_shown(was)}, is {_shown(is_)}")
    return out


def compare_parameters(record: Record, now: Mapping[str, Any]) -> list[str]:
    """Which parameters differ from ``now``, one line each.

    A larger scale serves a smaller one. Lists say which points there are, and a record's own point
    is in its conditions. A parameter that is None now is decided by the run.
    """
    out: list[str] = []
    for name in sorted({*record.parameters, *now} - _NOT_COMPARED):
        was = record.parameters.get(name)
        is_ = now.get(name)
        if name not in now:
            if name != "scale":
                out.append(f"parameter {name} was {was!r}, is gone")
            continue
        if is_ is None or was == is_ or isinstance(is_, list | tuple):
            continue
        if name not in record.parameters:
            out.append(f"parameter {name} is new, {is_!r}")
            continue
        if name == "scale" and was in SCALES and is_ in SCALES:
            if SCALES.index(was) >= SCALES.index(is_):
                continue
            out.append(f"scale was {was}, is {is_}")
            continue
        out.append(f"parameter {name} was {was!r}, is {is_!r}")
    return out


def stale(items: Iterable[Item]) -> list[Item]:
    """The items that a run would measure again."""
    return [item for item in items if item.state == "stale"]


class _Now:
    """What a run would find now: devices, the notebooks' parameters, the scale."""

    def __init__(
        self,
        project: Project,
        here: Sequence[Device],
        scale: Mapping[str, str],
        records: Sequence[Record],
    ) -> None:
        self.machines = {device.machine for device in here}
        self._devices = {(device.machine, device.backend): device for device in here}
        self._project = project
        self._scale = scale
        self._declared: dict[str, dict[str, Any]] = {}
        self._reached: dict[tuple[str, str, str], int] = {}
        for record in records:
            run = (record.machine, record.experiment, _backend(record))
            self._reached[run] = max(self._reached.get(run, -1), _rank(record))

    def reasons(self, record: Record) -> list[str]:
        """Why a record of this machine is stale, besides its sources and data."""
        out = ["it failed before"] if record.status is Status.FAILED else []
        if record.kind is Kind.COUNTED and not record.inputs.sources:
            return out  # that a notebook ran through: counted by the run itself, from no source
        device = self._devices.get((record.machine, _backend(record)))
        if device is not None:
            out += compare_device(record, device.device_class, device.environment)
        if record.experiment not in self._project.experiments:
            return [*out, f"{MARKER} no longer lists the experiment"]
        if NOT_ATTEMPTED in record.flags:
            return out  # why it could not run does not depend on parameters
        return out + compare_parameters(record, self._parameters(record))

    def _parameters(self, record: Record) -> dict[str, Any]:
        """The parameters of a run now, by name."""
        if record.experiment not in self._declared:
            notebook = self._project.notebook(record.experiment)
            declared = params.read(notebook)
            self._declared[record.experiment] = {
                p.name: p.default for p in declared if p.name != "scale"
            }
        out = self._declared[record.experiment]
        wanted = self._scale.get(record.machine)
        # Once a run reached the scale, it measured anew what it shares with a smaller one; what is
        # left of that one, no run measures again.
        run = (record.machine, record.experiment, _backend(record))
        if wanted in SCALES and self._reached[run] < SCALES.index(wanted):
            return out | {"scale": wanted}
        return out


def _rank(record: Record) -> int:
    scale = record.parameters.get("scale")
    return SCALES.index(scale) if scale in SCALES else -1


def _backend(record: Record) -> str:
    given = record.parameters.get("backend")
    return given if isinstance(given, str) else record.implementation.partition(".")[0]


def _shown(value: object) -> str:
    return "unknown" if value is None else str(value)
