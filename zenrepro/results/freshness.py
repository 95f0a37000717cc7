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
from zenrepro.paths import Project
from zenrepro.records import DeviceClass, Environment, Record, Status
from zenrepro.results.store import Store
from zenrepro.sources import changed
from zenrepro.sources.files import Files

State = Literal["fresh", "stale", "elsewhere", "sources changed since"]

# Reasons that a line has room for; all of them are in ``Item.reasons``.
SHOWN = 3
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
    own = {(device.machine, device.backend): device for device in here}
    machines = {device.machine for device in here}
    defaults = _Defaults(project)
    known: dict[int, list[str]] = {}
    out: list[Item] = []
    for record in Store(project.results).load(machine):
        # Records of one point share their inputs: compare them once.
        key = hash((tuple(record.inputs.sources.items()), tuple(record.inputs.data.items())))
        if key not in known:
            known[key] = changed(project, record.inputs, files)
        reasons = list(known[key])
        if record.machine in machines:
            device = own.get((record.machine, _backend(record)))
            reasons += _of_outcome(record)
            if device is not None:
                reasons += compare_device(record, device.device_class, device.environment)
            now = defaults.of(record.experiment)
            wanted = (scale or {}).get(record.machine)
            reasons += compare_parameters(
                record, now if wanted is None else now | {"scale": wanted}
            )
            state: State = "stale" if reasons else "fresh"
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


class _Defaults:
    """The parameters that an experiment's notebook declares now, read once each."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._known: dict[str, dict[str, Any] | None] = {}

    def of(self, experiment: str) -> dict[str, Any]:
        """Name to default. ``scale`` is left out: its default depends on the machine."""
        if experiment not in self._known:
            self._known[experiment] = self._read(experiment)
        return self._known[experiment] or {}

    def _read(self, experiment: str) -> dict[str, Any]:
        declared = params.read(self.project.notebook(experiment))
        return {p.name: p.default for p in declared if p.name != "scale"}


def _of_outcome(record: Record) -> list[str]:
    return ["it failed before"] if record.status is Status.FAILED else []


def _backend(record: Record) -> str:
    given = record.parameters.get("backend")
    return given if isinstance(given, str) else record.implementation.partition(".")[0]


def _shown(value: object) -> str:
    return "unknown" if value is None else str(value)
