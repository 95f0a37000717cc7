"""What latent attention moves at the shapes of the project's models: counted, and by counters.

Part of the experiment ``traffic``; prefill and decode, at full scale alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from zenrepro import counts
from zenrepro.experiments import watching
from zenrepro.experiments.point import Point, Result
from zenrepro.ops.mla.cases import CASES, Case
from zenrepro.ops.mla.table import TABLE
from zenrepro.records import Kind, Origin, Work

if TYPE_CHECKING:
    from zenrepro.experiments.session import Session

DTYPE = "bf16"
COUNTED = [("traffic", "least"), ("count", "flops")]
_TABLE = "zenrepro.ops.mla.table"
_CASES = "zenrepro.ops.mla.cases"


def names(backend: str) -> set[str]:
    """How the parameter ``implementations`` may name what is counted here."""
    rows = [entry for entry in TABLE if entry.backend == backend]
    return {entry.name for entry in rows} | {entry.algorithm for entry in rows}


def points(run: Session, rows: Sequence[str], refusals: list[str]) -> Iterator[Point]:
    """Of each case what must move, once; of each implementation what counters tell.

    ``rows``: tables that the experiment's module loads. ``refusals``: see ``watching.Watch``.
    """
    if run.scale != "full" or run.parameters.longest is not None:
        return
    blind, wanted = watching.blind(run), run.parameters.implementations
    chosen = None if wanted is None else {name.strip() for name in wanted.split(",")}
    pairs = [(case, DTYPE) for case in CASES["full"] if case.model is not None]
    counted: set[Case] = set()
    for entry in TABLE:
        if entry.backend != run.parameters.backend:
            continue
        if chosen is not None and not chosen & {entry.name, entry.algorithm}:
            continue
        served = [pair for pair in pairs if pair[0].phase in entry.needs.phases]
        watch = watching.Watch(run, "mla", entry, served, refusals)
        for case, dtype in served:
            conditions = case.conditions(dtype)
            work = counts.mla_of(conditions)
            of_case = f"{_CASES}:{case.name or ''}"
            common: dict[str, Any] = {
                "implementation": entry.name, "conditions": conditions, "origin": entry.origin,
            }  # fmt: skip
            if case not in counted:
                counted.add(case)
                yield Point(
                    implementation=f"{entry.backend}.count_least", conditions=conditions,
                    origin=Origin.OURS, produces=COUNTED, measure=partial(_counted, work),
                    rows=[*rows, f"{_TABLE}:", of_case],
                )  # fmt: skip
            if blind is None or (case, dtype) == served[-1]:
                tables = [*rows, f"{_TABLE}:{entry.name}", of_case]
                yield watch.point(case, dtype, work, rows=tables, unavailable=blind, **common)


def _counted(work: Work) -> list[Result]:
    least, flops = work.bytes or 0.0, work.flops or 0.0
    of = partial(Result, kind=Kind.COUNTED, method="inputs read once, the output written once")
    return [
        of(quantity="traffic", metric="least", unit="B", samples=[least]),
        of(quantity="count", metric="flops", unit="FLOP", samples=[flops]),
    ]
