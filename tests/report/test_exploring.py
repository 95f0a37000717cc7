"""What notebooks show of a session's records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from zenrepro import paths
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status, Work
from zenrepro.report import exploring

PLAIN = Record(
    experiment="attention",
    quantity="time",
    metric="call",
    implementation="torch.naive",
    conditions={"op": "attention", "phase": "prefill", "causal": True, "seq_len": 256,
                "dtype": "bf16"},
    unit="s",
    status=Status.OK,
    kind=Kind.MEASURED,
    origin=Origin.OURS,
    machine="cpu-test",
    device_class=DeviceClass(platform="cpu", model="Test"),
    environment=Environment(),
    samples=[0.2] * 9,
    work=Work(flops=2e9, bytes=1e6),
)  # fmt: skip


def record(**change: Any) -> Record:
    return msgspec.structs.replace(PLAIN, **change)


def ceiling(quantity: str, value: float, **conditions: Any) -> Record:
    return record(quantity=quantity, samples=[value], unit="1", conditions=conditions)


def test_grid_in_text_and_html_shows_a_dash_for_what_is_unknown() -> None:
    grid = exploring.Grid(["a<b", "value"], [["x", None], ["y", 0.123456]])
    assert repr(grid).splitlines() == ["a<b  value", "x    —", "y    0.1235"]
    assert "<th>a&lt;b</th>" in grid._repr_html_()


def test_ceilings_are_the_best_measured_and_unknown_without_any() -> None:
    found = exploring.Ceilings(
        [
            ceiling("bandwidth", 5.0, op="copy"),
            ceiling("bandwidth", 7.0, op="read"),
            ceiling("bandwidth", 99.0, op="attention"),
            ceiling("flop_rate", 3.0, op="matmul", dtype="bf16"),
            record(quantity="flop_rate", status=Status.FAILED, reason="no", samples=[],
                   conditions={"op": "matmul", "dtype": "fp32"}),
        ]
    )  # fmt: skip
    assert (found.bandwidth, found.flop_rate) == (7.0, {"bf16": 3.0})
    assert exploring.Ceilings([]).bandwidth is None


def test_speed_over_the_baseline_compares_equal_conditions_only() -> None:
    fast = record(implementation="torch.fast", samples=[0.1] * 9, baseline="torch.naive")
    other = msgspec.structs.replace(fast, conditions={**PLAIN.conditions, "seq_len": 512})
    grid = exploring.against_baseline([PLAIN, fast, other])
    assert [row[0] for row in grid.rows] == ["torch.fast"]
    assert grid.rows[0][2:] == ["2.00 ×", "2.00 to 2.00"]


@pytest.mark.parametrize("name", ["rates", "decode", "roofline", "reached"])
def test_every_figure_draws_and_says_so_when_there_is_nothing(name: str) -> None:
    pytest.importorskip("matplotlib")
    prefill = [
        record(quantity="flop_rate", unit="FLOP/s", samples=[1e12, 2e12],
               conditions={**PLAIN.conditions, "seq_len": n}) for n in (256, 512)
    ]  # fmt: skip
    step = {"phase": "decode", "dtype": "bf16", "op": "attention"}
    decode = [record(quantity="bandwidth", unit="B/s", samples=[1e9], conditions=step)]
    ceilings = [
        ceiling("bandwidth", 5e9, op="copy", dtype="fp32"),
        ceiling("flop_rate", 3e12, op="matmul", dtype="bf16", m=128),
    ]
    found = exploring.Ceilings(ceilings)
    drawn, empty = {
        "rates": lambda: (exploring.rates(prefill), exploring.rates([])),
        "decode": lambda: (exploring.decode(decode, 5e9), exploring.decode([])),
        "roofline": lambda: (
            exploring.roofline([PLAIN], found, "a_b"), exploring.roofline([], found, "x")),
        "reached": lambda: (
            exploring.reached(ceilings, {("bandwidth", None): 6e9}), exploring.reached([], {})),
    }[name]()  # fmt: skip
    assert "<svg" in drawn._repr_svg_()
    assert len(drawn.svg) > 2000
    assert "<svg" in empty._repr_svg_()
    assert name == "reached" or "nothing was measured" in empty.svg


def test_where_the_records_are_is_relative(tmp_path: Path) -> None:
    (tmp_path / "zenrepro.toml").write_text('title = "T"\n')
    project = paths.load(tmp_path)
    assert "data/results/cpu-test/attention.json" in exploring.where(project, [PLAIN])
    assert exploring.where(project, []) == "no records"
    assert exploring.ceilings(project, "cpu-test").bandwidth is None
