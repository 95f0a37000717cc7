"""`zenrepro hardware` and `zenrepro list`: what is here, and what could run on it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from zenrepro.cli.arguments import Commands, command, print_json, project
from zenrepro.errors import InputError

if TYPE_CHECKING:
    from zenrepro.hardware import Hardware
    from zenrepro.paths import Project


# The ceilings among what the hardware experiment measures, and the unit that shows them.
_SHOWN_IN = {"bandwidth": "GB/s", "flop_rate": "TFLOP/s", "memory": "GB", "power": "W"}


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    command(
        commands, "hardware", _hardware,
        "devices, backends (and why one is missing), datasheet and measured ceilings",
        json_too=True,
    )  # fmt: skip
    command(
        commands, "list", _list,
        "experiments, their implementations, and why one can't run here",
        json_too=True,
    )  # fmt: skip


def _hardware(given: argparse.Namespace) -> int:
    from zenrepro import hardware, specs

    try:
        here = project(given)
    except InputError:
        if given.project is not None:
            raise
        here = None  # the devices can be told anywhere; ceilings and results need a project
    sheets = specs.load(here.hardware) if here is not None and here.hardware.is_dir() else {}
    rows: list[dict[str, Any]] = []
    for found in hardware.devices(here):
        if isinstance(found, hardware.Missing):
            rows.append({"backend": found.backend, "device": found.device, "missing": found.reason})
            continue
        sheet = sheets.get(found.device_class.platform)
        rows.append(
            {
                "backend": found.backend,
                "device": found.device,
                "missing": None,
                "machine": found.machine,
                "device_class": found.device_class,
                "compute_capability": found.compute_capability,
                "power_mode": found.power_mode,
                "environment": found.environment,
                "datasheet": None if sheet is None else sheet.figures,
                "measured": _measured(here, found),
            }
        )
    if given.json:
        print_json(rows)
    else:
        _print_hardware(rows)
    return 0


def _measured(here: Project | None, found: Hardware) -> list[dict[str, Any]]:
    """This device's measured ceilings, as flat records."""
    if here is None:
        return []
    from zenrepro.results.flat import flatten
    from zenrepro.results.store import Store

    store = Store(here.results)
    if found.machine not in store.machines():
        return []
    return [
        flatten(record)
        for record in store.load(found.machine, "hardware")
        if record.samples
        and record.quantity in _SHOWN_IN
        and record.parameters.get("backend") == found.backend
        and record.parameters.get("device") == found.device
    ]


def _print_hardware(rows: list[dict[str, Any]]) -> None:
    from zenrepro.units import convert

    for row in rows:
        name = f"{row['backend']} {row['device'] or ''}".strip()
        if row["missing"] is not None:
            print(f"{name}: not here: {row['missing']}")
            continue
        of, environment = row["device_class"], row["environment"]
        memory = "" if of.memory_bytes is None else f", {of.memory_bytes / 1e9:.1f} GB"
        print(f"{name}: {of.model}{memory}  ({row['machine']})")
        for label, value in (
            ("driver", environment.driver),
            ("runtime", environment.runtime),
            ("packages", ", ".join(f"{n} {v}" for n, v in environment.packages.items())),
            ("power limit", _with_unit(environment.power_limit_w, "W")),
            ("clocks", ", ".join(f"{n} {v:.0f} MHz" for n, v in environment.clocks_mhz.items())),
            ("throttled", ", ".join(environment.throttle_reasons)),
            ("other load", environment.other_load),
        ):
            if value:
                print(f"  {label}: {value}")
        if row["datasheet"] is None:
            print(f"  datasheet: none (data/hardware/{of.platform}.yaml would hold it)")
        for figure in row["datasheet"] or ():
            kind = " ".join(filter(None, (figure.quantity, figure.metric, figure.dtype)))
            print(f"  datasheet: {kind} {figure.value:g} {figure.unit}")
        for record in row["measured"]:
            unit = _SHOWN_IN[record["quantity"]]
            value = convert(record["value"], record["unit"], unit)
            algorithm = record["implementation"].partition(".")[2]
            dtype = record["conditions"].get("dtype")
            name = algorithm if dtype is None else f"{algorithm} {dtype}"
            print(f"  measured: {name} {value:.4g} {unit}")


def _with_unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:g} {unit}"


def _list(given: argparse.Namespace) -> int:
    from zenrepro.cli import jobs
    from zenrepro.experiments import events

    here = project(given)
    os.environ[events.VARIABLE] = os.devnull
    rows: list[dict[str, Any]] = [
        {
            "experiment": experiment,
            "notebook": entry.notebook,
            "module": entry.module,
            "parameters": jobs.declarations(here, experiment),
            "implementations": _implementations(here, experiment),
        }
        for experiment, entry in here.experiments.items()
    ]
    if given.json:
        print_json(rows)
        return 0
    for row in rows:
        print(f"{row['experiment']}  ({row['notebook']})")
        for parameter in row["parameters"]:
            shown = "" if parameter.default is None else f" = {parameter.default}"
            print(f"  -p {parameter.name}{shown}: {parameter.wants()}")
        for item in row["implementations"]:
            state = "available" if item["available"] else f"not here: {item['reason']}"
            print(f"  {item['implementation']}: {state}")
    return 0


def _implementations(here: Project, experiment: str) -> list[dict[str, Any]]:
    """Each implementation of the experiment's points: available when any of its points is."""
    from zenrepro.cli import jobs, modules
    from zenrepro.experiments import session

    found: dict[str, dict[str, Any]] = {}
    try:
        selected, _ = jobs.jobs(here, [experiment], jobs.Choice())
    except InputError as error:  # no framework at all: the experiments can still be listed
        print(f"zenrepro: {error}", file=sys.stderr)
        return []
    for job in selected:
        opened = session.start(experiment, job.given, here)
        for point in modules.points(opened):
            reason = opened.missing or (point.unavailable[1] if point.unavailable else None)
            row = found.setdefault(
                point.implementation,
                {
                    "implementation": point.implementation,
                    "backend": job.backend,
                    "device": job.hardware.device,
                    "origin": point.origin,
                    "available": reason is None,
                    "reason": reason,
                },
            )
            if reason is None:
                row["available"], row["reason"] = True, None
    return list(found.values())
