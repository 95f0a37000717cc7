"""The attention experiment: what it records, what it refuses, and what a wrong output gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zenrepro import measure, sources
from zenrepro.errors import InputError
from zenrepro.experiments import attention, operation, session
from zenrepro.ops.entry import Entry, UnsupportedError
from zenrepro.records import Record, Status

Start = Callable[..., session.Session]
MEASURED = (Status.OK, Status.DISTURBED)


def run(opened: session.Session) -> list[Record]:
    return opened.measure(attention.points(opened))


def by_quantity(records: list[Record], implementation: str) -> dict[str, Record]:
    return {r.quantity: r for r in records if r.implementation == implementation}


@pytest.mark.parametrize(
    ("backend", "fast"), [("torch", "sdpa_flash"), ("jax", "xla"), ("mlx", "fast")]
)
def test_records_of_one_decode_case(start: Start, backend: str, fast: str) -> None:
    given = {"backend": backend, "phase": "decode", "dtype": "fp32", "layout": "dense"}
    records = run(start("attention", implementations=f"naive,{backend}.{fast}", **given))
    assert {r.implementation for r in records} == {f"{backend}.naive", f"{backend}.{fast}"}
    for name in ("naive", fast):
        found = by_quantity(records, f"{backend}.{name}")
        assert {r.status for r in found.values()} <= set(MEASURED)
        assert set(found) == {"error", "time", "flop_rate", "throughput", "bandwidth"}
        assert 0 <= found["error"].samples[0] < 1e-5
        assert "2 of 2 batches, 4 of 4 heads" in str(found["error"].method)
        work = found["time"].work
        assert work is not None
        for seconds, rate, tokens, moved in zip(
            *(found[q].samples for q in ("time", "flop_rate", "throughput", "bandwidth")),
            strict=True,
        ):
            assert rate == pytest.approx((work.flops or 0) / seconds)
            assert moved == pytest.approx((work.bytes or 0) / seconds)
            assert tokens == pytest.approx(2 / seconds)
        assert found["time"].conditions["tokens"] == 2
        assert found["time"].baseline == (None if name == "naive" else f"{backend}.naive")


def test_nothing_is_measured_twice_and_selecting_makes_nothing_stale(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = measure.sample_together

    def counted(backend: Any, given: Any, **more: Any) -> Any:
        calls.extend(given)
        return real(backend, given, **more)

    monkeypatch.setattr(measure, "sample_together", counted)
    given = {
        "backend": "torch", "phase": "prefill", "dtype": "fp32", "batch": 1, "seq_len": 9,
        "layout": "dense",
    }  # fmt: skip
    first = run(start("attention", **given))
    assert len(calls) == 4  # two smoke cases, naive and sdpa_flash
    again = run(start("attention", **given))
    run(start("attention", implementations="naive", **given))
    assert len(calls) == 4
    assert [r.samples for r in again] == [r.samples for r in first]


def test_records_name_what_an_implementation_loads_besides_its_backend(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"backend": "torch", "phase": "decode", "dtype": "fp32", "layout": "dense"}
    plain = run(start("attention", implementations="naive", **given))
    assert all("flash-attn-4" not in record.environment.packages for record in plain)
    monkeypatch.setattr(Entry, "versions", lambda self: {"flash-attn-4": "4.0.0"})
    opened = start("attention", implementations="sdpa_flash", **given)
    assert {r.environment.packages["flash-attn-4"] for r in run(opened)} == {"4.0.0"}
    again = start("attention", implementations="sdpa_flash", **given)
    assert [why for _, why in again.plan(attention.points(again))] == [None]  # still fresh


def test_what_cannot_run_here_is_two_records_with_the_reason(start: Start) -> None:
    given = {"backend": "torch", "phase": "decode", "implementations": "sdpa_cudnn"}
    opened = start("attention", layout="dense", **given)
    records = run(opened)
    assert {(r.quantity, r.metric) for r in records} == set(operation.NOT_RUN)
    assert {r.status for r in records} == {Status.UNSUPPORTED}
    assert {r.reason for r in records} == {"torch.sdpa_cudnn runs on cuda, not on cpu"}


def broken(defect: str) -> Callable[..., Any]:
    def function(q: Any, k: Any, v: Any, *, causal: bool, scale: float | None = None) -> Any:
        from zenrepro.ops.attention.torch_naive import attention as right

        if defect == "scale":
            return right(q, k, v, causal=causal, scale=1.05 * q.shape[-1] ** -0.5)
        if defect == "mask":
            return right(q, k, v, causal=False)
        out = right(q, k, v, causal=causal).contiguous()
        if defect == "head":
            out[:, :, -1] = 0
        elif defect == "unwritten":
            out[:, -1] = float("nan")
        elif defect == "shape":
            out = out[:, :-1]
        elif defect == "memory":
            raise MemoryError("no room")
        elif defect == "refused":
            raise UnsupportedError("head_dim is odd")
        elif defect == "error":
            raise RuntimeError("something else\nand more")
        return out

    return function


@pytest.mark.parametrize(
    ("defect", "status", "reason"),
    [
        ("scale", Status.FAILED, "relative error"),
        ("mask", Status.FAILED, "relative error"),
        ("head", Status.FAILED, "relative error"),
        ("unwritten", Status.FAILED, "NaN or infinite"),
        ("shape", Status.FAILED, "its shape is"),
        ("memory", Status.OOM, "no room"),
        ("refused", Status.UNSUPPORTED, "torch.naive: head_dim is odd"),
        ("error", Status.FAILED, "something else"),
    ],
)
def test_a_wrong_output_has_a_reason_and_no_speed(
    start: Start, monkeypatch: pytest.MonkeyPatch, defect: str, status: Status, reason: str
) -> None:
    monkeypatch.setattr(Entry, "load", lambda self, layout: broken(defect))
    opened = start(
        "attention", backend="torch", phase="prefill", implementations="naive", dtype="fp32",
        layout="dense",
    )  # fmt: skip
    records = run(opened)
    assert len(records) == 8  # two cases of four quantities
    for record in records:
        assert record.status == status
        assert reason in str(record.reason)
        assert record.samples == []


def test_freshness_follows_the_row_the_case_and_the_implementation(start: Start) -> None:
    opened = start("attention", backend="torch", phase="decode", implementations="sdpa_flash")
    point = next(attention.points(opened))
    found = sources.inputs(
        opened.project, [attention.__name__, *point.modules], point.rows, point.data
    ).sources
    ops = "zenrepro/ops/attention"
    assert f"{ops}/table.py#torch.sdpa_flash" in found
    assert f"{ops}/cases.py#smoke_decode" in found
    assert f"{ops}/torch_sdpa.py" in found
    assert f"{ops}/torch_naive.py" not in found  # another implementation
    assert f"{ops}/table.py" not in found  # the whole table: adding a row would make it stale
    assert not any(name.startswith("zenrepro/report") for name in found)


def parameters(**given: Any) -> attention.Parameters:
    return attention.Parameters(**{"scale": "full", **given})


def test_sizes_replace_those_of_every_case() -> None:
    given = {"batch": 2, "seq_len": 64, "heads": 4, "head_dim": 32, "causal": True}
    found = attention.cases(parameters(layout="dense", **given))
    assert {(c.batch, c.cache_len, c.heads, c.kv_heads) for c in found} == {(2, 64, 4, 4)}
    assert {c.query_len for c in found if c.phase == "decode"} == {1}
    assert len(found) == 2  # prefill and decode, in every format that one of them asks for
    assert all(c.both_formats for c in found if c.phase == "prefill")
    assert all(c.name is None and c.model is None for c in found)
    grouped = attention.cases(parameters(phase="decode", kv_heads=4))
    assert {(c.heads, c.kv_heads) for c in grouped} == {(32, 4)}


SIZES: list[dict[str, Any]] = [
    {}, {"seq_len": 2048}, {"phase": "prefill", "seq_len": 4096}, {"heads": 8}, {"batch": 2},
    {"head_dim": 64}, {"causal": False}, {"batch": 2, "seq_len": 256, "heads": 8, "head_dim": 64},
]  # fmt: skip


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
@pytest.mark.parametrize("given", SIZES, ids=str)
def test_no_two_cases_write_the_same_record(scale: str, given: dict[str, Any]) -> None:
    asked = attention.Parameters(scale=scale, **given)  # type: ignore[arg-type]
    for kind in ("cpu", "cuda", "tpu"):
        written = [
            tuple(sorted(case.conditions(dtype).items()))
            for case in attention.cases(asked)
            for dtype in attention.dtypes(asked, case, kind)
        ]
        assert len(set(written)) == len(written)


def test_lengths_are_spread_unless_that_leaves_a_sequence_nothing() -> None:
    def skews(**given: Any) -> set[float]:
        return {case.skew for case in attention.cases(parameters(layout="varlen", **given))}

    assert skews() == skews(seq_len=64) == {0.9}
    assert skews(seq_len=3) == {0.0}
    paged = attention.cases(parameters(layout="paged", seq_len=4, batch=4))
    assert {(case.query_len, case.skew) for case in paged} == {(1, 0.0), (4, 0.0)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kv_heads": 5}, "kv_heads: wants a number that divides the 32 heads, got 5"),
        ({"batch": 0}, "batch: wants a positive whole number, got 0"),
        ({"seq_len": -1}, "seq_len: wants a positive whole number, got -1"),
    ],
)
def test_sizes_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention.cases(parameters(**given))


def test_an_unknown_implementation_is_one_line() -> None:
    with pytest.raises(InputError, match="torch has no attention 'flash'; it has naive, "):
        attention.chosen(parameters(implementations="naive,flash"))


def test_full_scale_on_a_gpu_measures_the_reports_baseline_in_fp16() -> None:
    case = next(c for c in attention.cases(parameters()) if c.model)
    assert attention.dtypes(parameters(), case, "cuda") == ("bf16", "fp16")
    assert attention.dtypes(parameters(dtype="fp32"), case, "cuda") == ("fp32",)
    stated = operation.Peaks(989e12, 4.8e12)
    found = operation.produces(case.phase, "cuda", stated)
    assert ("memory", "working") in found
    assert ("utilisation", "compute") in found
    assert ("utilisation", "compute") not in operation.produces("prefill", "cpu", operation.Peaks())
