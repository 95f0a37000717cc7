"""Commands that read records and claims and need no framework: results, status, compare, …"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenrepro.cli.arguments import Commands, command, print_json, project

if TYPE_CHECKING:
    from zenrepro.paths import Project
    from zenrepro.results.compare import Row
    from zenrepro.results.freshness import Item


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    results = command(commands, "results", _results, "the records, flat", json_too=True)
    results.add_argument("--experiment", metavar="E", help="of this experiment only")
    results.add_argument("--machine", metavar="M", help="of this machine only")
    command(commands, "status", _status, "what is stale, and why", json_too=True)
    compare = command(
        commands, "compare", _compare, "statistical comparison of two result sets", json_too=True
    )
    compare.add_argument("a", metavar="A", help="a machine, a results folder or a zip archive")
    compare.add_argument("b", metavar="B", help="another one")
    export = command(commands, "export", _export, "pack a machine's results to carry them")
    export.add_argument("machine", metavar="MACHINE")
    export.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE.zip")
    merge = command(
        commands, "merge", _merge, "add results that were exported; newer ones here stay"
    )
    merge.add_argument("archives", nargs="+", type=Path, metavar="FILE.zip")


def _results(given: argparse.Namespace) -> int:
    from zenrepro.results import flat
    from zenrepro.results.store import Store

    here = project(given)
    if given.experiment is not None:
        here.notebook(given.experiment)
    store = Store(here.results)
    machine = None if given.machine is None else store.known(given.machine)
    records = store.load(machine, given.experiment)
    if given.json:
        print(flat.encode(records).decode(), end="")
        return 0
    for record in records:
        row = flat.flatten(record)
        if row["value"] is None:
            value = f"{row['status']}: {row['reason']}"
        else:
            value = f"{row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}] {row['unit']}"
            value += f"  n={row['n']}" + ("" if row["status"] == "ok" else f"  {row['status']}")
        print(
            f"{row['machine']}  {row['experiment']}  {row['implementation']}  {row['quantity']} "
            f"{row['metric']}  {_words(row['conditions'])}  {value}"
        )
    return 0


def _status(given: argparse.Namespace) -> int:
    from zenrepro.results.freshness import stale

    items = _items(project(given))
    if given.json:
        print_json(items)
        return 0
    # A record that is fresh, or another machine's with its sources as they were, needs no line.
    for item in items:
        if item.reasons:
            print(item.line())
    counts = Counter(item.state for item in items)
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    print(f"{len(items)} records: {told or 'none'}")
    if stale(items):
        print("`zenrepro run --all` measures what is stale; with --dry-run it only lists")
    return 0


def _items(here: Project) -> list[Item]:
    from zenrepro import hardware
    from zenrepro.results import freshness

    found = [item for item in hardware.devices(here) if isinstance(item, hardware.Hardware)]
    # Each backend's first device is its default one, where its records come from.
    devices = {(device.machine, device.backend): device for device in reversed(found)}
    return freshness.status(here, list(devices.values()))


def _compare(given: argparse.Namespace) -> int:
    from zenrepro.results import compare

    here = project(given)
    table = compare.compare(
        compare.load(here, given.a), compare.load(here, given.b), (given.a, given.b)
    )
    if given.json:
        print_json(table)
        return 0
    for row in table.rows:
        print(
            f"{row.experiment}  {row.implementation}  {row.quantity} {row.metric}  "
            f"{_words(row.conditions)}  {_compared(row)}"
        )
    print(
        f"{len(table.rows)} in both, {table.only_a} only in {table.a}, {table.only_b} only in "
        f"{table.b}; {table.method}"
    )
    return 0


def _compared(row: Row) -> str:
    notes = f"  ({'; '.join(row.notes)})" if row.notes else ""
    if row.ratio is None:
        return f"not comparable{notes}"
    interval = ""
    if row.ratio_low is not None and row.ratio_high is not None:
        interval = f" [{row.ratio_low:.4g}, {row.ratio_high:.4g}]"
    verdict = {True: "differs", False: "no difference shown", None: "too few samples to tell"}
    return (
        f"{row.a:.4g} -> {row.b:.4g} {row.unit}  x{row.ratio:.4g}{interval}  "
        f"{verdict[row.differs]}{notes}"
    )


def _export(given: argparse.Namespace) -> int:
    from zenrepro.results import transfer
    from zenrepro.results.store import Store

    count = transfer.export(Store(project(given).results), given.machine, given.output)
    print(f"{given.output}: {count} records of {given.machine}")
    return 0


def _merge(given: argparse.Namespace) -> int:
    from zenrepro.results import transfer
    from zenrepro.results.store import Store

    for merged in transfer.merge(Store(project(given).results), given.archives):
        for line in merged.lines():
            print(line)
    return 0


def _words(conditions: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in conditions.items())
