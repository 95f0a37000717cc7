"""Tables of measurements: published rows by implementation, an op's cases, the ablation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zenrepro import claims, specs
from zenrepro.errors import InputError
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status, Work
from zenrepro.report import ablation, grids, html, kernels, shape
from zenrepro.report import evidence as evidence_module
from zenrepro.report.document import render_tex
from zenrepro.report.exploring import Ceilings
from zenrepro.report.numbers import Missing, Number

SHAPE = {
    "op": "attention", "phase": "prefill", "model": "m", "batch": 32, "seq_len": 4096, "heads": 24,
    "kv_heads": 24, "head_dim": 128, "causal": True, "dtype": "fp16",
}  # fmt: skip


def record(**given: Any) -> Record:
    defaults: dict[str, Any] = {
        "experiment": "attention", "quantity": "time", "metric": "call", "unit": "s",
        "implementation": "torch.naive", "status": Status.OK, "kind": Kind.MEASURED,
        "origin": Origin.OURS, "conditions": SHAPE, "environment": Environment(),
        "samples": [1.0] * 9, "machine": "gpu-lab",
        "device_class": DeviceClass(platform="nvidia-h200", model="GPU"),
    }  # fmt: skip
    return Record(**{**defaults, **given})


def rate(implementation: str, value: float, **given: Any) -> Record:
    return record(
        implementation=implementation, quantity="throughput", metric="rate", unit="token/s",
        samples=[value * f for f in (0.99, 1.0, 1.01)] * 3, **given,
    )  # fmt: skip


def used(implementation: str, metric: str, percent: float, **given: Any) -> Record:
    return record(
        implementation=implementation, quantity="utilisation", metric=metric, unit="%",
        samples=[percent] * 5, **given,
    )  # fmt: skip


def claim(row: str, line: int, printed: str, implementation: str, **more: Any) -> dict[str, Any]:
    return {
        "id": row, "kind": "scalar", "quantity": "throughput", "metric": "rate",
        "printed": printed, "value": float(printed), "unit": "token/s",
        "implementation": implementation,
        "conditions": {"op": "attention", "model": "m", "batch": 32, "seq_len": 4096},
        "where": {"part": "table", "line": line, "table": "attention", "row": row,
                  "column": "tokens/s"},
        **more,
    }  # fmt: skip


READINGS = [
    {"text": "projection included", "conditions": {"op": "mla_prefill"}},
    {"text": "attention alone", "metric": "attention_rate", "implementation": "fa3",
     "conditions": {"op": "mla_prefill"}},
]  # fmt: skip
PUBLICATION = {
    "schema": 1, "report": {"title": "T", "version": "1"},
    "implementations": {"fa2": ["torch.fa2", "torch.flash"], "mla": ["torch.fused"],
                        "fa3": ["torch.fa3"]},
    "claims": [
        claim("naive", 1, "100", "naive"),
        claim("fa2", 2, "250", "fa2"),
        claim("fa3", 3, "350", "fa3"),
        claim("mla", 4, "400", "mla", readings=READINGS),
    ],
}  # fmt: skip

Evidence = Callable[..., evidence_module.Evidence]


@pytest.fixture
def gathered(make_project: Any) -> Evidence:
    def make(
        records: list[Record], sheets: dict[str, specs.Datasheet] | None = None
    ) -> evidence_module.Evidence:
        from zenrepro import audit

        project = make_project(records, sorted({r.machine for r in records}))
        publication = claims.parse(PUBLICATION, "test")
        return evidence_module.assemble(
            project, publication, sheets or {}, records, audit.run(publication, {}), []
        )

    return make


def values(line: grids.Line) -> list[Any]:
    """What stands in a line, numbers rounded."""
    return [round(c.value.value, 3) if isinstance(c.value, Number) else c.value for c in line.cells]


def test_every_implementation_of_a_published_row_has_a_line(gathered: Evidence) -> None:
    mla = SHAPE | {"op": "mla_prefill", "head_dim": 192, "value_dim": 128}
    evidence = gathered(
        [
            rate("torch.naive", 1000.0), rate("jax.naive", 800.0),
            rate("torch.fa2", 9000.0), rate("torch.flash", 7000.0),
            used("torch.fa2", "compute", 45.0), used("torch.fa2", "bandwidth", 3.0),
            used("torch.fa2", "dram", 4.5, experiment="traffic"),
            used("torch.fa2", "compute", 99.0, conditions=SHAPE | {"seq_len": 64}),
            rate("torch.fused", 5000.0, conditions=mla),
            record(implementation="torch.fa3", quantity="throughput", metric="attention_rate",
                   unit="token/s", samples=[12000.0] * 5, conditions=mla),
        ]
    )  # fmt: skip
    made = grids.build(evidence, "shape:attention")
    lines = {line.label or line.group: line for line in made.lines}
    assert list(lines) == [
        "naive", "jax.naive, FP16", "torch.naive, FP16", "fa2", "torch.fa2, FP16",
        "torch.flash, FP16", "fa3", "mla", "torch.fused, FP16: projection included",
        "torch.fa3, FP16: attention alone",
    ]  # fmt: skip
    assert values(lines["fa2"])[:2] == [250, 2.5]
    # The factor is over the naive of the same backend; counters stand beside what was counted.
    assert values(lines["torch.fa2, FP16"]) == ["", "", 9000, 9.0, 45.0, 3.0, 4.5, ""]
    assert values(lines["torch.naive, FP16"])[3] == ""
    assert values(lines["torch.fused, FP16: projection included"])[2:4] == [5000, 5.0]
    assert values(lines["torch.fa3, FP16: attention alone"])[2:4] == [12000, 12.0]
    missing = lines["fa3"].cells[2].value
    assert isinstance(missing, Missing)
    assert lines["fa3"].group == "fa3"


def sheet(*figures: tuple[str, str, str | None]) -> dict[str, specs.Datasheet]:
    """A datasheet of the machine's platform that states these."""
    units = {"flop_rate": "TFLOP/s", "bandwidth": "GB/s"}
    stated = [
        specs.Figure(quantity=q, metric=m, dtype=d, value=1.0, unit=units[q], source=0)
        for q, m, d in figures
    ]
    made = specs.Datasheet(
        schema=1, platform="nvidia-h200", name="GPU", vendor="v", figures=stated,
        sources=[specs.Source(title="t", url="u", publisher="p")],
    )  # fmt: skip
    return {"nvidia-h200": made}


FP16, BANDWIDTH = ("flop_rate", "dense", "fp16"), ("bandwidth", "peak", None)


@pytest.mark.parametrize(
    ("sheets", "recorded", "why"),
    [
        ({}, (), "no datasheet of the device is kept to take it of"),
        (sheet(BANDWIDTH), ("bandwidth",), "the vendor states no dense matrix rate in FP16"),
        (sheet(FP16), ("compute",), "the vendor states no memory bandwidth"),
        (sheet(), (), "the vendor states no dense matrix rate in FP16; "
                      "the vendor states no memory bandwidth"),
        (sheet(FP16, BANDWIDTH), ("compute",),
         "records were made before utilisation was recorded beside the time"),
        (sheet(FP16, BANDWIDTH), ("compute", "bandwidth"), None),
    ],
)  # fmt: skip
def test_the_note_says_why_utilisation_is_empty(
    gathered: Evidence, sheets: dict[str, Any], recorded: tuple[str, ...], why: str | None
) -> None:
    made = [rate("torch.naive", 1000.0), *(used("torch.naive", m, 45.0) for m in recorded)]
    note = grids.build(gathered(made, sheets), "shape:attention").note
    assert note == ("" if why is None else f"Compute or memory is empty where {why}.")


def test_rows_stay_before_anything_is_measured(gathered: Evidence) -> None:
    made = grids.build(gathered([record(conditions={"op": "copy"})]), "shape:attention")
    assert [line.group for line in made.lines] == ["naive", "fa2", "fa3", "mla"]
    assert [values(line)[0] for line in made.lines] == [100, 250, 350, 400]
    assert set(made.codes) == {"n"}


def test_what_was_not_in_a_table_of_implementations_is_an_error(gathered: Evidence) -> None:
    evidence = gathered([record()])
    with pytest.raises(InputError, match="tables that name implementations: attention"):
        grids.build(evidence, "shape:moe")
    with pytest.raises(InputError, match="ops of such tables are attention, mla_prefill"):
        grids.build(evidence, "kernels:gemm")
    with pytest.raises(InputError, match="grids: shape:TABLE, kernels:OP, ablation"):
        grids.build(evidence, "nonsense")


DECODE = {
    "op": "mla_decode", "phase": "decode", "batch": 64, "query_len": 1, "cache_len": 4096,
    "heads": 64, "head_dim": 576, "value_dim": 512, "causal": True, "dtype": "bf16",
}  # fmt: skip
MOST = [
    record(experiment="hardware", quantity="bandwidth", unit="B/s", samples=[4e12] * 3,
           conditions={"op": "copy"}),
    record(experiment="hardware", quantity="flop_rate", unit="FLOP/s", samples=[7e14] * 3,
           conditions={"op": "matmul", "dtype": "bf16"}),
]  # fmt: skip


def timed(name: str, us: float, ours: bool = True, beside: str = "", **given: Any) -> Record:
    said = f"by graph; in turn with {beside}" if beside else "by graph; by itself"
    return record(
        experiment="mla", implementation=name, samples=[us * 1e-6] * 5, method=said,
        origin=Origin.OURS if ours else Origin.PEER, work=Work(flops=5.7e10, bytes=3.1e8),
        baseline=None if name == "torch.absorbed" else "torch.absorbed",
        **{"conditions": DECODE, **given},
    )  # fmt: skip


def test_a_row_compares_our_fastest_kernel_with_the_fastest_peer() -> None:
    found = [
        timed("torch.absorbed", 50.0),  # the plain twin: not what is compared, however fast
        timed("torch.triton", 120.0, beside="torch.flash_mla, torch.fa3_package"),
        timed("torch.hopper", 95.0, beside="torch.flash_mla, torch.fa3_package"),
        timed("torch.flash_mla", 114.0, ours=False), timed("torch.fa3_package", 107.0, ours=False),
        record(experiment="mla", implementation="jax.absorbed", conditions=DECODE, samples=[],
               status=Status.OOM, reason="too large"),
    ]  # fmt: skip
    (row,) = kernels.rows(found, ("mla_decode",), Ceilings(MOST))
    assert row.ours is not None
    assert row.peer is not None
    assert (row.ours.implementation, row.peer.implementation) == (
        "torch.hopper", "torch.fa3_package",
    )  # fmt: skip
    assert row.speed is not None
    assert row.speed.value == pytest.approx(107 / 95)
    assert row.reached is True
    assert row.in_turn
    assert row.least_s == pytest.approx(max(5.7e10 / 7e14, 3.1e8 / 4e12))
    assert row.bound == "FLOPs"
    assert row.share_of_least(row.ours) == pytest.approx(5.7e10 / 7e14 / 95e-6)
    assert [one.implementation for one in row.missed] == ["jax.absorbed"]


@pytest.mark.parametrize(
    ("op", "us", "reached"),
    [("mla_decode", 108.0, False), ("mla_decode", 107.0, True),
     ("attention", 112.0, True), ("attention", 113.0, False)],
)  # fmt: skip
def test_the_bar_is_each_ops_own(op: str, us: float, reached: bool) -> None:
    given = DECODE | {"op": op}
    found = [
        timed("torch.hopper", us, conditions=given),
        timed("torch.fa3_package", 107.0, ours=False, conditions=given),
    ]
    (row,) = kernels.rows(found, (op,), Ceilings([]))
    assert row.reached is reached
    assert not row.in_turn
    assert row.least_s is None


def test_an_ops_table_shows_times_gaps_and_the_bar(gathered: Evidence) -> None:
    records = [
        *MOST,
        timed("torch.hopper", 95.0, beside="torch.fa3_package"),
        timed("torch.fa3_package", 107.0, ours=False, beside="torch.hopper"),
        timed("torch.hopper", 60.0, conditions=DECODE | {"format": "fp8_e4m3"}),
        record(experiment="mla", implementation="torch.fa3_package", origin=Origin.PEER,
               conditions=DECODE | {"format": "fp8_e4m3"}, samples=[],
               status=Status.UNSUPPORTED, reason="no FP8 cache"),
    ]  # fmt: skip
    made = grids.build(gathered(records), "kernels:mla_decode")
    assert made.head == ["Case", "least", "by", "hopper", "fa3 package", "over peer"]
    first, second = made.lines
    assert first.label == "64 × 4,096, 64 heads"
    assert made.note.startswith("BF16. ")
    assert values(first) == [81.4, "FLOPs", 95, 107, 1.126]
    assert first.cells[-1].mark == "✓"
    assert second.label == "64 × 4,096, 64 heads, FP8 cache"
    assert isinstance(second.cells[3].value, Missing)
    assert second.cells[3].value.code == "u"
    assert second.cells[-1].value == ""
    assert set(made.marked) == {"✓"}
    assert "ahead of it" in made.note


def test_records_that_were_not_sampled_in_turn_say_so(gathered: Evidence) -> None:
    def note(beside: str | None) -> str:
        records = [
            timed("torch.hopper", 95.0, beside=beside),
            timed("torch.fa3_package", 107.0, ours=False),
        ]
        return grids.build(gathered(records), "kernels:mla_decode").note

    assert "one implementation after the other, not in turn" in note(None)
    assert "one implementation after the other" not in note("torch.fa3_package")
    alone = grids.build(gathered([timed("torch.hopper", 95.0)]), "kernels:mla_decode")
    assert "one implementation after the other" not in alone.note


def form(name: str, queries: int, ms: float | None, flops: float, moved: float) -> list[Record]:
    given = {
        "op": "mla_prefill", "phase": "prefill", "batch": 1, "heads": 16, "head_dim": 192,
        "value_dim": 128, "causal": True, "dtype": "bf16", "cache_len": 1024, "query_len": queries,
    }  # fmt: skip
    common: dict[str, Any] = {"experiment": "mla", "conditions": given}
    counted = {**common, "implementation": f"torch.count_{name}", "kind": Kind.COUNTED}
    out = [
        record(quantity="count", metric="flops", unit="FLOP", samples=[flops], **counted),
        record(quantity="traffic", metric="counted", unit="B", samples=[moved], **counted),
    ]
    if ms is not None:
        timed_by = {**common, "implementation": f"torch.{name}"}
        out.append(record(samples=[ms * 1e-3] * 5, **timed_by))
    return out


def test_the_ablation_sets_counts_beside_times_and_marks_the_fastest(gathered: Evidence) -> None:
    records = [
        *MOST,
        *form("decompressed", 1, 4.0, 4e9, 5e7), *form("absorbed", 1, 1.0, 4e7, 1e7),
        *form("fused", 1, None, 4e9, 1e7),
        *form("decompressed", 256, 6.0, 7e9, 6e7), *form("absorbed", 256, 9.0, 9e9, 5e7),
    ]  # fmt: skip
    evidence = gathered(records)
    made = grids.build(evidence, "ablation")
    assert [line.label for line in made.lines] == ["1", "256"]
    one, many = (values(line) for line in made.lines)
    assert one[:3] == [4.0, 50, 4.0]
    assert one[3:6] == [0.04, 10, 1.0]
    assert one[6:8] == [4.0, 10]
    assert isinstance(one[8], Missing)
    assert [cell.mark for cell in made.lines[0].cells] == ["", "", "", "", "", "•", "", "", ""]
    assert made.lines[1].cells[2].mark == "•"
    assert many[2] == 6.0
    panels, reason = ablation.collect(evidence)
    assert reason == ""
    assert panels[0]["measured"]["absorbed"][0][:2] == [1, 1e-3]
    assert panels[0]["least"]["fused"] == [[1, pytest.approx(4e9 / 7e14)]]
    assert panels[0]["measured"]["fused"] == []
    assert ablation.plot(panels) is not None


def test_without_two_numbers_of_queries_there_is_no_ablation(gathered: Evidence) -> None:
    evidence = gathered(form("absorbed", 1, 1.0, 1.0, 1.0))
    assert grids.build(evidence, "ablation").empty
    assert ablation.collect(evidence)[0] is None


@pytest.mark.parametrize(
    ("method", "other", "expected"),
    [
        ("graph; in turn with a.b, c.d", "c.d", True),
        ("graph; in turn with a.b, c.d", "c", False),
        ("graph; by itself", "a.b", False),
        (None, "a.b", False),
    ],
)
def test_who_was_sampled_with_whom(method: str | None, other: str, expected: bool) -> None:
    assert kernels.beside(record(method=method), other) is expected


def test_columns_leave_the_label_its_room() -> None:
    cells = [grids.Cell(Number(123456.0, "us", 123000.0, 124000.0))] * 6
    line = grids.Line("a case of many words " * 4, cells)
    wide = grids.Grid("n", "t", ["Case", *["implementation"] * 6], [line])
    narrow = grids.Grid("n", "t", ["Case", "ms"], [grids.Line("1", cells[:1])])
    assert 18 <= wide.label_mm < 60
    assert narrow.label_mm == 18


def test_print_and_screen_have_the_tables(gathered: Evidence, tmp_path: Any) -> None:
    evidence = gathered([*MOST, rate("torch.naive", 1000.0), *form("absorbed", 1, 1.0, 1.0, 1.0),
                         *form("absorbed", 16, 1.0, 1.0, 1.0)])  # fmt: skip
    evidence.project.templates.mkdir(parents=True, exist_ok=True)
    (evidence.project.templates / "report.tex.jinja").write_text(
        "\\VAR{grid('shape:attention')} \\VAR{grid('ablation')} \\VAR{grid('kernels:attention')}"
    )
    document = render_tex(evidence, [])
    assert "torch.naive, FP16" in document
    assert "GFLOP" in document
    assert "No machine has timed attention" in document
    page = (html.write(evidence, [], tmp_path / "html").parent / "kernels.html").read_text()
    assert "torch.naive, FP16" in page
    assert "GFLOP" in page
    assert [grid.name for grid in grids.every(evidence)] == [
        "shape:attention", "kernels:mla_prefill", "ablation",
    ]  # fmt: skip
    assert shape.tables(evidence) == ["attention"]


def test_a_page_holds_the_fast_ones_and_rows_are_told_apart(gathered: Evidence) -> None:
    peers = {"torch.flash_mla": 110.0, "torch.fa3_package": 107.0, "torch.a": 500.0,
             "torch.b": 600.0, "torch.c": 700.0}  # fmt: skip
    wide = DECODE | {"heads": 128, "page_size": 64, "layout": "paged"}
    records = [
        timed("torch.absorbed", 900.0), timed("torch.triton", 120.0), timed("torch.hopper", 95.0),
        *(timed(name, us, ours=False) for name, us in peers.items()),
        timed("torch.hopper", 130.0, conditions=wide),
        timed("torch.hopper", 131.0, conditions=wide | {"page_size": 16, "query_len": 4}),
    ]  # fmt: skip
    made = grids.build(gathered([*MOST, *records]), "kernels:mla_decode")
    assert made.head[3:-1] == ["hopper", "triton", "a", "b", "fa3 package", "flash mla"]
    assert [line.label for line in made.lines] == [
        "64 × 4,096, 64 heads", "64 × 4,096, 128 heads, pages of 64",
        "64 × 4,096, 4 queries, 128 heads, pages of 16",
    ]  # fmt: skip
    assert made.note.startswith("BF16. ")


def test_a_forms_fastest_implementation_stands_for_it(gathered: Evidence) -> None:
    given = form("absorbed", 1, 9.0, 1.0, 1.0)[0].conditions
    fast = record(experiment="mla", implementation="torch.decompressed_fa3", conditions=given,
                  samples=[2e-3] * 5)  # fmt: skip
    broken = record(experiment="mla", implementation="torch.decompressed_fa2", conditions=given,
                    samples=[], status=Status.FAILED, reason="wrong")  # fmt: skip
    slow = form("decompressed", 1, 4.0, 1.0, 1.0)
    rest = [*form("absorbed", 1, 9.0, 1.0, 1.0), *form("absorbed", 16, 9.0, 1.0, 1.0)]
    for order in ([*slow, fast, broken], [broken, fast, *slow]):
        made = grids.build(gathered([*order, *rest]), "ablation")
        assert values(made.lines[0])[2] == 2.0
        assert "torch.decompressed fa3, torch.absorbed" in made.note
