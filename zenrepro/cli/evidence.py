"""Commands that read records and claims and need no framework: results, audit, and the like."""

from __future__ import annotations

import argparse

from zenrepro.cli.arguments import Commands, command, project


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    results = command(commands, "results", _results, "the records, flat", json_too=True)
    results.add_argument("--experiment", metavar="E", help="of this experiment only")
    results.add_argument("--machine", metavar="M", help="of this machine only")


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
        conditions = " ".join(f"{k}={v}" for k, v in row["conditions"].items())
        if row["value"] is None:
            value = f"{row['status']}: {row['reason']}"
        else:
            value = f"{row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}] {row['unit']}"
            value += f"  n={row['n']}" + ("" if row["status"] == "ok" else f"  {row['status']}")
        print(
            f"{row['machine']}  {row['experiment']}  {row['implementation']}  {row['quantity']} "
            f"{row['metric']}  {conditions}  {value}"
        )
    return 0
