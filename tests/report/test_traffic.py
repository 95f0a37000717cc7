"""Traffic and caches in print: series, exponents, the figure's lines, and the table of caches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zenrepro import architecture
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status
from zenrepro.report import caches, exploring_traffic, figures, tables, traffic
from zenrepro.report.numbers import Missing, Number

MODELS = Path(__file__).parents[2] / "data" / "models"
LENGTHS = (512, 1024, 2048, 4096)
SHAPE = {"op": "attention", "batch": 1, "heads": 8, "head_dim": 128, "causal": False}


def record(metric: str, value: float, **given: Any) -> Record:
    out: dict[str, Any] = {
        "experiment": "traffic", "quantity": "traffic", "metric": metric,
        "implementation": "torch.fa2", "unit": "B", "status": Status.OK, "kind": Kind.MEASURED,
        "origin": Origin.OURS, "machine": "m", "environment": Environment(), "samples": [value],
        "device_class": DeviceClass(platform="p", model="p"), "conditions": {}, **given,
    }  # fmt: skip
    return Record(**out)


def grown(metric: str, value: Any, **given: Any) -> list[Record]:
    given = {"kind": Kind.COUNTED if metric in ("least", "counted") else Kind.MEASURED, **given}
    conditions = given.pop("conditions", {})
    return [
        record(metric, value(n), conditions={"seq_len": n, **SHAPE, **conditions}, **given)
        for n in LENGTHS
    ]


def everything() -> list[Record]:
    """What a machine with counters would write: an L2 that hides all that tiles read again."""
    stored = {"implementation": "torch.naive"}
    of_tiles, of_scores = ({"implementation": f"torch.count_{n}"} for n in ("tiled", "stored"))
    return [
        *grown("least", lambda n: 1000.0 * n, **of_tiles),
        *grown("counted", lambda n: 8.0 * n * n, **of_tiles),
        *grown("device", lambda n: 1010.0 * n),
        *grown("multiprocessors", lambda n: 8.0 * n * n),
        *grown("l2", lambda n: 6.0 * n * n),
        *grown("least", lambda n: 1000.0 * n, **of_scores),
        *grown("counted", lambda n: 64.0 * n * n, **of_scores),
        *grown("device", lambda n: 70.0 * n * n, **stored),
        *grown("multiprocessors", lambda n: 90.0 * n * n, **stored),
        record("device", 5.0, conditions={"seq_len": 4096, "heads": 24, "model": "zen-mode-7b"}),
        record("device", 0.0, conditions={"seq_len": 8192, "heads": 8}, samples=[],
               status=Status.FAILED, reason="broke"),
    ]  # fmt: skip


def test_series_are_of_one_set_of_conditions_and_hold_what_was_measured() -> None:
    found = {(s.implementation, s.metric): s for s in traffic.series(everything())}
    assert len(found) == 9
    device = found["torch.fa2", "device"]
    assert device.lengths == list(LENGTHS)  # not the model's own shape, not what failed
    assert device.values[0] == 1010.0 * 512


def test_exponents_tell_what_the_l2_hides() -> None:
    found = {(s.implementation, s.metric): traffic.growth(s) for s in traffic.series(everything())}
    powers = {key: g.exponent.value for key, g in found.items() if g}
    assert powers["torch.fa2", "device"] == pytest.approx(1)
    assert powers["torch.fa2", "multiprocessors"] == pytest.approx(2)
    assert powers["torch.naive", "device"] == pytest.approx(2)
    few = traffic.Series("a", "device", [1, 2, 4], [1.0, 2.0, 4.0])
    assert traffic.growth(few) is None
    assert traffic.growth(traffic.Series("a", "b", [1, 2, 4, 8], [0.0, 1.0, 2.0, 4.0])) is None


def test_the_figure_draws_lines_counted_and_points_measured() -> None:
    panel = traffic.panel_of("card", everything())
    lines = {key: values for key, _, values in traffic._lines(panel)}
    assert list(lines) == ["least", "tiled", "stored"]
    assert lines["stored"][0] == 64.0 * 512 * 512
    assert {s[1] for s in panel["measured"]} == {"device", "multiprocessors"}
    axis = traffic.plot([panel]).axes[0]
    assert len(axis.lines) == 3 + 4
    assert axis.get_title() == "card, 1 × 8 heads of 128"
    assert axis.get_xscale() == axis.get_yscale() == "log"
    filled = [line for line in axis.lines if line.get_markerfacecolor() not in ("white",)]
    assert len(filled) == 5  # three lines, and device memory of two implementations


def test_other_ops_have_no_part_in_the_figure() -> None:
    """What the forms of latent attention move is counted too, by another experiment."""
    latent = grown("counted", lambda n: 2.0 * n, implementation="torch.count_absorbed",
                   conditions={"op": "mla_prefill", "head_dim": 192})  # fmt: skip
    whole = [latent[0], *everything(), *latent[1:]]
    assert traffic.panel_of("card", whole) == traffic.panel_of("card", everything())


def test_a_model_of_the_l2_is_a_line_of_its_own() -> None:
    model = grown("expected", lambda n: 1500.0 * n, kind=Kind.PREDICTED)
    panel = traffic.panel_of("card", [*everything(), *model])
    lines = {key: values for key, _, values in traffic._lines(panel)}
    assert lines["expected"][0] == 1500.0 * 512
    assert len(traffic.plot([panel]).axes[0].lines) == 4 + 4


@pytest.mark.parametrize("form", ["stored", "tiled"])
def test_a_form_that_is_counted_alone_is_drawn_as_itself(form: str) -> None:
    one = [r for r in everything() if r.implementation == f"torch.count_{form}"]
    keys = [key for key, _, _ in traffic._lines(traffic.panel_of("card", one))]
    assert keys == ["least", form]


def test_counts_of_older_records_are_drawn_unless_newer_ones_say_the_same() -> None:
    """They bear the name of an implementation that was not run, which does not tell the form."""
    renamed = {"torch.count_tiled": "torch.fa3", "torch.count_stored": "torch.naive"}
    new = [r for r in everything() if r.implementation in renamed]
    old = [msgspec.structs.replace(r, implementation=renamed[r.implementation]) for r in new]
    for records, keys in (
        (old, ["least", "counted", "counted"]),
        (old + new, ["least", "tiled", "stored"]),
        (new + old, ["least", "tiled", "stored"]),
    ):
        panel = traffic.panel_of("card", records)
        assert [key for key, _, _ in traffic._lines(panel)] == keys
        labels = [text.get_text() for text in traffic.plot([panel]).legends[0].get_texts()]
        assert len(labels) == len(set(keys))


def test_counted_lines_need_no_machine_with_counters(make_project: Any) -> None:
    from zenrepro.report import gather

    counted = [r for r in everything() if r.kind is Kind.COUNTED]
    project = make_project(counted)
    write_publication(project)
    data, reason = traffic.collect(gather(project))
    assert reason == ""
    assert [panel["title"] for panel in data] == ["counted"]
    drawn = {f.name: f for f in figures.draw(gather(project), project.templates / "generated")}
    assert drawn["traffic"].file == "traffic.pdf"
    empty = make_project([record("device", 1.0, status=Status.SKIPPED, samples=[], reason="r")])
    (project.results / "m" / "traffic.json").unlink()
    data, reason = traffic.collect(gather(empty))
    assert data is None
    assert "once the experiment traffic has run" in reason


def write_publication(project: Any) -> None:
    text = "schema: 1\nreport: {title: t, version: '1'}\nclaims: []\n"
    (project.published / "t.yaml").write_text(text)


def test_notebook_tables() -> None:
    records = everything()
    growths = {(r[0], r[1]): r[2] for r in exploring_traffic.exponents(records).rows}
    assert growths["torch.fa2", "device memory"] == "N^1.00"
    assert growths["torch.naive", "device memory"] == "N^2.00"
    ratios = {(r[0], r[1]): r[4] for r in exploring_traffic.hidden(records).rows}
    assert float(ratios["torch.fa2", "4096"]) == pytest.approx(8 * 4096 / 1010, rel=1e-3)
    shares = [
        record("dram", 90.0, quantity="utilisation", unit="%", conditions={"seq_len": 512}),
        record("tensor_pipe", 12.5, quantity="utilisation", unit="%", conditions={"seq_len": 512}),
    ]
    assert exploring_traffic.busy(shares).rows == [["torch.fa2", "512", "—", "90", "12.5"]]
    refused = grown("device", lambda n: 0.0, status=Status.UNSUPPORTED, samples=[], reason="why")
    assert exploring_traffic.unread(refused) == "4 records unsupported: why"
    assert exploring_traffic.unread(records[:4]) == ""
    assert "svg" in exploring_traffic.drawing(records, "50% of $x$")._repr_svg_()
    assert "nothing was measured" in exploring_traffic.drawing([], "none")._repr_svg_()


# -- caches ----------------------------------------------------------------------------------------


def cache_records(machine: str, off: float = 0.0) -> list[Record]:
    model = architecture.load(MODELS)["zen-mode-7b"]
    out = []
    for cache in architecture.caches(model):
        row = cache.elements * 2
        conditions = {
            "model": model.name, "dtype": "bf16", "kv_heads": cache.kv_heads,
            "head_dim": cache.head_dim, "value_dim": cache.value_dim,
        }  # fmt: skip
        name = f"torch.{cache.form}"
        out += [
            record("cache", model.num_layers * row, quantity="size", unit="B/token",
                   kind=Kind.COUNTED, implementation=name, conditions=conditions, machine=machine),
            record("cache", row * 2 * 64 + off, quantity="memory", implementation=name,
                   conditions=conditions | {"batch": 2, "seq_len": 64}, machine=machine),
        ]  # fmt: skip
    return out


def gathered(make_project: Any, records: list[Record]) -> Any:
    from zenrepro.report import gather

    project = make_project(records)
    write_publication(project)
    shutil.copytree(MODELS, project.models)
    return gather(project)


def test_the_table_of_caches(make_project: Any) -> None:
    table = caches.build(gathered(make_project, cache_records("m")))
    assert [row.model for row in table.rows] == [
        "zen-mode-1.5b", "zen-mode-7b", "zen-mode-32b", "zen-mode-72b",
    ]  # fmt: skip
    seven = table.rows[1]
    assert seven.ordinary == Number(393.216, "kB/token")
    assert seven.latent == Number(36.864, "kB/token")
    assert seven.latent_fp8 == Number(32 * 656 / 1000, "kB/token")
    assert seven.readings[0] == Number(6.0, "x")
    assert isinstance(seven.readings[2], Number)
    assert seven.readings[2].value == pytest.approx(32 / 3)
    assert table.allocated == "3 on p, as counted to the byte"


@pytest.mark.parametrize(("off", "words"), [(1e9, "as counted to within"), (0.001, "0.01 %")])
def test_caches_that_are_not_as_counted_are_told(make_project: Any, off: float, words: str) -> None:
    table = caches.build(gathered(make_project, cache_records("m", off)))
    assert words in table.allocated
    assert "to the byte" not in table.allocated


def test_a_project_without_models_has_no_table(evidence: Any) -> None:
    assert caches.build(evidence).rows == []


def test_heads_that_cannot_be_shared_leave_a_dash() -> None:
    import msgspec

    odd = msgspec.structs.replace(architecture.load(MODELS)["zen-mode-7b"], num_heads=30)
    assert isinstance(caches._shared(odd), Missing)


def test_both_editions_print_caches_and_growth(make_project: Any) -> None:
    from zenrepro.report import document, html

    found = gathered(make_project, cache_records("m"))
    assert "10.7" in _html(html, found)
    assert document.render_tex(found, [])


def _html(html: Any, found: Any) -> str:
    page: str = html.environment().get_template("tables.html.jinja").render(
        **html._shared(found, [], []), tables=[], caches=caches.build(found), up=""
    )  # fmt: skip
    return page


@pytest.mark.parametrize(
    ("value", "low", "high", "text", "tex"),
    [
        (1.98, 1.89, 2.07, "N^(1.98 ± 0.09)", "N^{1.98 \\pm 0.09}"),
        (2.000000000000001, 2.0, 2.000000000000007, "N^2", "N^{2}"),
        (1.05, None, None, "N^1.05", "N^{1.05}"),
    ],
)
def test_a_growth_is_printed_as_a_power(
    value: float, low: float | None, high: float | None, text: str, tex: str
) -> None:
    shown = tables.power("N", Number(value, "1", low, high))
    assert shown.text == text
    assert tex in shown.tex
