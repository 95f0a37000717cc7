"""The hardware experiment: ceilings, memory, and a power that stays unknown without a counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zenrepro import measure
from zenrepro.experiments import hardware, session
from zenrepro.records import Status

Start = Callable[..., session.Session]


@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_smoke_measures_copy_read_products_and_memory(start: Start, backend: str) -> None:
    opened = start("hardware", backend=backend)
    records = opened.measure(hardware.points(opened))
    value = {
        (r.quantity, r.conditions.get("op"), r.conditions.get("dtype")): r.samples[0]
        for r in records
        if r.samples
    }
    for key in (("bandwidth", "copy", "fp32"), ("bandwidth", "read", "fp32")):
        assert value[key] > 0
    assert value[("flop_rate", "matmul", "fp32")] > 0
    assert value[("memory", None, None)] > 1e8
    draws = [r for r in records if r.quantity == "power"]
    assert {r.status for r in draws} == {Status.SKIPPED}
    assert {r.conditions["op"] for r in draws} == {"idle", "copy", "matmul"}
    for record in records:
        assert record.samples or record.reason
        if record.quantity == "flop_rate" and record.samples:
            side = record.conditions["m"]
            assert record.work is not None
            assert record.work.flops == 2 * side**3


def window(joules: float | None, idle_w: float | None) -> measure.EnergyWindow:
    reason = None if joules is not None else "no counter here"
    return measure.EnergyWindow(
        joules=joules, seconds=2.0, calls=3, idle_w=idle_w, reason=reason, method="a counter"
    )


def draws(
    start: Start, monkeypatch: pytest.MonkeyPatch, answer: measure.EnergyWindow
) -> dict[str, Any]:
    """The power points' results at small scale, without their loads."""
    opened = start("hardware", backend="torch", scale="small")
    monkeypatch.setattr(measure, "energy", lambda backend, call, seconds: answer)
    found = {}
    for point in hardware.points(opened):
        if ("power", "draw") in point.produces:
            assert point.unavailable is None
            load = point.measure.args[1]
            found[point.conditions["op"]] = hardware._draw(
                opened, _Idle(load), point.measure.args[2]
            )[0]
    return found


class _Idle:
    """A load that prepares nothing."""

    def __init__(self, load: Any) -> None:
        self.conditions = load.conditions

    def prepare(self, backend: Any, seed: int) -> Callable[[], None]:
        return lambda: None


def test_power_is_joules_over_seconds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    found = draws(start, monkeypatch, window(100.0, 7.0))
    assert found["copy"].samples == [50.0] * hardware.WINDOWS
    assert found["matmul"].samples == [50.0] * hardware.WINDOWS
    assert found["idle"].samples == [7.0]


def test_unknown_power_is_a_reason_and_never_zero(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = draws(start, monkeypatch, window(None, None))
    for result in found.values():
        assert result.status == Status.UNSUPPORTED
        assert result.samples == []
        assert result.reason == "no counter here"
