"""What the hardware does at most: copying, reading, matrix products, memory, power.

The measured column beside what a report states and what the vendor's datasheet says.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from zenrepro import measure
from zenrepro.experiments import session
from zenrepro.experiments.point import Point, Result
from zenrepro.measure.ceilings import Ceiling, ceilings
from zenrepro.measure.windows import SHORTEST_S
from zenrepro.records import Origin, Status

# A ceiling is recorded under the metric that a datasheet states it by.
METRIC = {"bandwidth": "peak", "flop_rate": "dense"}
UNIT = {"bandwidth": "B/s", "flop_rate": "FLOP/s"}
# Counters move about every 100 ms; a power that is reported wants a steady half minute.
WINDOWS = 3
WINDOW_S = {"small": SHORTEST_S, "full": 10.0}
_MODULES = ["zenrepro.measure.ceilings"]


class Parameters(session.Parameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Backend, device, scale and seed."""


def points(run: session.Session) -> Iterator[Point]:
    """One point for each ceiling, for the memory, and for power: idle, copying, multiplying."""
    found = list(ceilings(run.hardware, run.scale))
    for ceiling in found:
        yield Point(
            implementation=ceiling.implementation,
            conditions=_conditions(run, ceiling.conditions),
            produces=[(ceiling.quantity, METRIC[ceiling.quantity]), ("time", "call")],
            measure=partial(_ceiling, run, ceiling),
            origin=Origin.PEER,
            modules=_MODULES,
            unavailable=ceiling.unavailable,
        )
    yield _capacity(run)
    yield from _power(run, found)


def _conditions(run: session.Session, conditions: dict[str, Any]) -> dict[str, Any]:
    """With the power mode, where a device has several (Jetson)."""
    mode = run.hardware.power_mode
    return conditions | ({"power_mode": mode} if mode else {})


def _ceiling(run: session.Session, ceiling: Ceiling) -> list[Result]:
    work = ceiling.work
    amount = (work.flops if ceiling.quantity == "flop_rate" else work.bytes) or 0.0
    run.backend.release()  # what the point before held
    call = ceiling.prepare(run.backend, run.seed)
    # Ceilings are what the device sustains, not what it reaches before it is warm.
    warmup_s = 2.0 if run.scale == "full" and run.hardware.device != "cpu" else None
    sampled = measure.sample(run.backend, call, scale=run.scale, warmup_s=warmup_s)
    quantity = ceiling.quantity
    return [
        Result.of(
            sampled, quantity, METRIC[quantity], UNIT[quantity], lambda s: amount / s, work=work
        ),
        Result.of(sampled, "time", "call", "s", work=work),
    ]


def _capacity(run: session.Session) -> Point:
    size = run.hardware.device_class.memory_bytes

    def read() -> list[Result]:
        return [
            Result(
                quantity="memory",
                metric="capacity",
                unit="B",
                samples=[] if size is None else [float(size)],
                method="what the driver or the operating system tells",
            )
        ]

    return Point(
        implementation=f"{run.hardware.backend}.device",
        conditions=_conditions(run, {}),
        produces=[("memory", "capacity")],
        measure=read,
        origin=Origin.PEER,
        unavailable=None if size else (Status.UNSUPPORTED, "the device does not tell its memory"),
    )


def _power(run: session.Session, found: list[Ceiling]) -> Iterator[Point]:
    """Power with nothing running, and under the heaviest call on memory and on matrix units."""
    dtype = "fp32" if run.hardware.device == "cpu" else "bf16"
    usable = [ceiling for ceiling in found if ceiling.unavailable is None]
    copies = [c for c in usable if c.conditions["op"] == "copy"]
    products = [c for c in usable if c.conditions["op"] == "matmul"]
    products = [c for c in products if c.conditions["dtype"] == dtype]
    loads = [*copies[-1:], *products[-1:]]
    idle = (f"{run.hardware.backend}.idle", {"op": "idle"}, loads[0], True)
    under = [(load.implementation, load.conditions, load, False) for load in loads]
    for implementation, conditions, load, only_idle in (idle, *under):
        yield Point(
            implementation=implementation,
            conditions=_conditions(run, conditions),
            produces=[("power", "draw")],
            measure=partial(_draw, run, load, only_idle),
            origin=Origin.PEER,
            modules=[*_MODULES, "zenrepro.measure.windows"],
            unavailable=None
            if run.scale in WINDOW_S
            else (Status.SKIPPED, f"{run.scale} scale is too short for an energy counter"),
        )


def _draw(run: session.Session, load: Ceiling, only_idle: bool) -> list[Result]:
    """Mean power over windows of repeated calls, or the power at rest that is taken before."""
    run.backend.release()
    call = load.prepare(run.backend, run.seed)
    result = Result(quantity="power", metric="draw", unit="W")
    for _ in range(1 if only_idle else WINDOWS):
        seconds = SHORTEST_S if only_idle else WINDOW_S[run.scale]
        window = measure.energy(run.backend, call, seconds=seconds)
        power = window.joules / window.seconds if window.joules is not None else None
        if only_idle:
            power = window.idle_w
        if power is None:
            result.status = Status.UNSUPPORTED
            result.reason = window.reason or "the counter did not move while the device was idle"
            result.samples = []
            break
        result.samples.append(power)
        result.method = window.method
    return [result]
