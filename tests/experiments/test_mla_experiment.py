"""The experiment on latent attention: what it records, groups and counts, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from zenrepro import counts, measure, sources
from zenrepro.errors import InputError
from zenrepro.experiments import mla, session
from zenrepro.experiments.point import together
from zenrepro.ops.mla import cases, forms
from zenrepro.records import Kind, Record, Status

Start = Callable[..., session.Session]
MEASURED = (Status.OK, Status.DISTURBED)


def run(opened: session.Session) -> list[Record]:
    return opened.measure(mla.points(opened))


@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_records_of_one_decode_case(start: Start, backend: str) -> None:
    given = {"backend": backend, "phase": "decode", "query_len": 4, "seq_len": 100}
    records = run(start("mla", implementations="absorbed", cache_format="same", **given))
    found = {(r.quantity, r.metric): r for r in records if r.conditions.get("skew")}
    assert {r.status for r in found.values()} <= set(MEASURED)
    assert set(found) == {
        ("error", "relative"), ("time", "call"), ("flop_rate", "rate"), ("throughput", "rate"),
        ("bandwidth", "rate"),
    }  # fmt: skip
    time = found["time", "call"]
    assert time.conditions["op"] == "mla_decode"
    assert time.work == counts.mla_decode(
        batch=2, query_len=4, cache_len=100, heads=16, head_dim=576, value_dim=512, dtype="fp32"
    )
    for seconds, tokens in zip(time.samples, found["throughput", "rate"].samples, strict=True):
        assert tokens == pytest.approx(8 / seconds)


def test_prefill_has_two_forms_in_turn_and_three_counted(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    together_: list[list[str]] = []
    real = measure.sample_together

    def noted(backend: Any, calls: Any, **more: Any) -> Any:
        together_.append(list(calls))
        return real(backend, calls, **more)

    monkeypatch.setattr(measure, "sample_together", noted)
    records = run(start("mla", backend="torch", phase="prefill"))
    assert together_ == [["torch.decompressed", "torch.absorbed"]] * 2
    one = [r for r in records if r.conditions.get("query_len") == 1]
    counted = {(r.implementation, r.quantity): r.samples[0] for r in one if r.kind is Kind.COUNTED}
    for form in forms.FORMS:
        work = forms.work(form, forms.Shape(1, 1, 65, 4), dtype="fp32")
        assert counted[f"torch.count_{form}", "count"] == work.flops
        assert counted[f"torch.count_{form}", "traffic"] == work.bytes
    timed = {r.implementation: r for r in one if r.quantity == "time"}
    assert "in turn with torch.absorbed" in str(timed["torch.decompressed"].method)
    # Both forms' rates count the same work: that of the cheaper form.
    assert timed["torch.absorbed"].work == timed["torch.decompressed"].work
    assert timed["torch.absorbed"].baseline == "torch.decompressed"
    assert timed["torch.decompressed"].baseline is None


def test_a_models_prefill_is_also_told_without_its_projection(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cases.prefill(None, 1, 2, 9, model="zen-mode-7b")
    monkeypatch.setitem(mla.CASES, "smoke", (own,))
    monkeypatch.setitem(mla.ABLATION, "smoke", ())
    opened = start("mla", backend="torch", implementations="decompressed,naive")
    points = list(mla.points(opened))
    alone = [p for p in points if p.implementation == "torch.naive"]
    assert [p.produces for p in alone] == [
        [("error", "relative"), ("time", "attention"), ("flop_rate", "rate"),
         ("throughput", "attention_rate")]
    ]  # fmt: skip
    grouped = [p for p in points if p.prepare is not None]
    assert len(list(together(grouped))) == 1  # sampled in turn with the whole
    records = opened.measure(points)
    found = {(r.implementation, r.quantity, r.metric): r for r in records}
    whole = found["torch.decompressed", "throughput", "rate"]
    part = found["torch.naive", "throughput", "attention_rate"]
    assert {whole.status, part.status} <= set(MEASURED)
    assert whole.conditions == part.conditions
    assert whole.conditions["op"] == "mla_prefill"
    assert part.work is not None
    assert whole.work is not None
    assert (part.work.flops or 0) < (whole.work.flops or 0)


def test_sizes_replace_those_of_every_case() -> None:
    given = mla.Parameters(scale="full", phase="decode", heads=8, seq_len=256, batch=3)
    found = mla.cases(given)
    assert {(c.batch, c.heads, c.cache_len) for c in found} == {(3, 8, 256)}
    assert {c.query_len for c in found} == {1, 2, 4, 8}
    assert all(c.name is None and c.model is None for c in found)
    fp8 = mla.cases(mla.Parameters(scale="full", cache_format="fp8_e4m3"))
    assert {c.format for c in fp8} == {"fp8_e4m3"}
    whole = mla.cases(mla.Parameters(scale="full", phase="prefill", seq_len=512))
    assert all(c.query_len <= c.cache_len == 512 for c in whole)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "batch: wants a positive whole number, got 0"),
        ({"phase": "prefill", "query_len": 9, "seq_len": 4}, "seq_len: 9 queries want as many"),
        ({"query_len": 9}, "query_len: a decode step has 1 to 8 query tokens, got 9"),
        ({"heads": 129}, "heads: wants 1 to 128, got 129"),
    ],
)
def test_sizes_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mla.cases(mla.Parameters(scale="smoke", **given))


def test_an_unknown_implementation_is_one_line() -> None:
    with pytest.raises(InputError, match="torch has no mla 'flash'; it has"):
        mla.chosen(mla.Parameters(implementations="flash"))
    # A name of the op attention stands for the attention alone, so it is known.
    assert mla.chosen(mla.Parameters(implementations="naive")) == []


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_the_ablation_has_one_prefix_and_no_case_twice(scale: Any) -> None:
    shapes = mla.ablation(mla.Parameters(scale=scale))
    assert len(shapes) > 1
    assert len({(s.batch, s.cache_len, s.heads) for s in shapes}) == 1
    assert [s.query_len for s in shapes] == sorted({s.query_len for s in shapes})
    assert shapes[0].query_len == 1
    assert shapes[-1].query_len == shapes[-1].cache_len
    every = [*cases.CASES[scale], *cases.ABLATION[scale]]
    for a, b in itertools.combinations(every, 2):
        assert a.conditions("bf16") != b.conditions("bf16"), (a.name, b.name)
    assert mla.ablation(mla.Parameters(scale=scale, phase="decode")) == []


def test_freshness_follows_the_row_the_case_and_the_kernel(start: Start) -> None:
    opened = start("mla", backend="torch", phase="prefill")
    own = [p for p in mla.points(opened) if p.implementation == "torch.absorbed"]
    point = next(p for p in own if p.prepare is not None)
    found = sources.inputs(
        opened.project, [mla.__name__, *point.modules], point.rows, point.data
    ).sources
    assert "zenrepro/ops/mla/table.py#torch.absorbed" in found
    assert "zenrepro/ops/mla/cases.py#smoke_prefill" in found
    assert "zenrepro/ops/mla/torch_absorbed.py" in found
    assert "zenrepro/ops/mla/torch_decompressed.py" not in found
    fused = next(e for e in mla.TABLE if e.name == "torch.decompressed_fa3")
    row = [f"zenrepro.ops.mla.table:{fused.name}"]
    found = sources.inputs(opened.project, [fused.module], row, []).sources
    assert "kernels/cuda/attention_hopper.cu" in found


def test_a_cache_format_only_selects(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"backend": "torch", "phase": "decode", "query_len": 1, "seq_len": 70}
    first = run(start("mla", **given))
    monkeypatch.setattr(
        measure, "sample_together", lambda *_, **__: pytest.fail("measured once more")
    )
    again = run(start("mla", cache_format="fp8_e4m3", **given))
    assert again
    assert {msgspec.json.encode(r) for r in again} <= {msgspec.json.encode(r) for r in first}
