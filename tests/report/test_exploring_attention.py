"""What the notebooks `attention` and `mla` show of records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zenrepro import architecture
from zenrepro.records import DeviceClass, Environment, Kind, Origin, Record, Status, Work
from zenrepro.report import exploring
from zenrepro.report import exploring_attention as views

MODELS = architecture.load(Path(__file__).parents[2] / "data" / "models")
DECODE = {
    "op": "attention", "phase": "decode", "batch": 1, "query_len": 1, "cache_len": 4096,
    "heads": 8, "kv_heads": 8, "head_dim": 64, "causal": True, "dtype": "fp32",
}  # fmt: skip


def timed(name: str, ms: float | None, **conditions: Any) -> Record:
    return Record(
        experiment="attention", quantity="time", metric="call", implementation=name, unit="s",
        conditions=DECODE | conditions, kind=Kind.MEASURED, machine="cpu-test",
        status=Status.UNSUPPORTED if ms is None else Status.OK,
        reason="wants a GPU" if ms is None else None,
        origin=Origin.PEER if "sdpa" in name else Origin.OURS,
        device_class=DeviceClass(platform="cpu", model="Test"), environment=Environment(),
        samples=[] if ms is None else [ms * 1e-3] * 9, work=Work(flops=1e9, bytes=1e8),
        baseline=None if "naive" in name else "torch.naive",
    )  # fmt: skip


def ceiling(quantity: str, value: float, **conditions: Any) -> Record:
    one = timed("torch.x", 1.0)
    return Record(**{
        **{f: getattr(one, f) for f in one.__struct_fields__},
        "quantity": quantity, "samples": [value], "conditions": conditions,
    })  # fmt: skip


def test_the_cache_is_drawn_and_told_by_form() -> None:
    drawing = views.cache_by_length(MODELS, "zen-mode-7b", longest=4096)
    assert drawing.svg.startswith("<?xml")
    assert "nothing was measured" in views.cache_by_length({}, "zen-mode-7b").svg
    grid = views.cache_table(MODELS)
    one = {row[1]: row for row in grid.rows if row[0] == "zen-mode-7b"}
    assert one["one latent"][-1] == "1"
    # 24 heads of 128 + 128 against 512 + 64: 10.67 times.
    assert one["a key a head"][-1] == "10.67"
    assert float(one["a key a head"][3]) == pytest.approx(51.54, abs=0.01)
    assert "32 × 4096" in repr(grid)


def test_series_over_batches_keep_to_one_shape() -> None:
    records = [
        *(timed("torch.fa2", 2.0 * b, batch=b) for b in (1, 2, 4)),
        timed("torch.naive", 9.0, batch=1), timed("torch.naive", 30.0, batch=4),
        *(timed("torch.fa2", 8.0 * b, batch=b, cache_len=9) for b in (1, 2)),
    ]  # fmt: skip
    assert "<svg" in views.by_batch(records).svg
    assert "nothing was measured" in views.by_batch(records[:1]).svg
    assert "nothing was measured" in views.by_batch([timed("torch.fa3", None)]).svg


def test_forms_by_queries_take_both_kinds_of_length() -> None:
    given = {"op": "mla_prefill", "phase": "prefill", "query_len": None, "kv_heads": None}
    base = {k: v for k, v in (DECODE | given).items() if v is not None}

    def prefill(name: str, ms: float, **lengths: int) -> Record:
        own = {k: v for k, v in base.items() if k != "cache_len"} | lengths
        one = timed(name, ms)
        return Record(**{
            **{f: getattr(one, f) for f in one.__struct_fields__}, "conditions": own,
        })  # fmt: skip

    records = [
        prefill("torch.absorbed", 1.0, query_len=1, cache_len=64),
        prefill("torch.absorbed", 9.0, seq_len=64),
    ]
    assert "<svg" in views.by_queries(records, {"absorbed": {1: 1e-3, 64: 8e-3}, "fused": {}}).svg
    assert "nothing was measured" in views.by_queries(records[:1]).svg


def test_what_did_not_run_is_told_once() -> None:
    records = [timed("torch.fa3", None, batch=b) for b in (1, 2)] + [timed("torch.naive", 1.0)]
    assert views.not_run(records).rows == [["torch.fa3", "unsupported", "2", "wants a GPU"]]


def test_peers_stand_beside_ours_and_the_least() -> None:
    most = exploring.Ceilings(
        [ceiling("bandwidth", 1e10, op="copy"), ceiling("flop_rate", 2e11, op="matmul",
                                                        dtype="fp32")]
    )  # fmt: skip
    records = [
        timed("torch.naive", 50.0), timed("torch.fa2", 20.0), timed("torch.sdpa_flash", 25.0),
        timed("torch.sdpa_flash", 12.0, batch=2),
    ]  # fmt: skip
    first, second = views.against_peers(records, most, "attention").rows
    assert first == [
        "batch=1", "10", "bytes", "torch.fa2", "20", "50%", "torch.sdpa_flash", "25", "1.25 ×",
        "yes",
    ]  # fmt: skip
    assert second[0] == "batch=2"
    assert second[3] == "—"
