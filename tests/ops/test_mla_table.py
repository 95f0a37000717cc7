"""Latent attention's table: literal, complete, lazy; its cases, conditions, counts, roofline."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import conditions, counts
from zenrepro.errors import InputError
from zenrepro.ops.mla import CASES, TABLE
from zenrepro.ops.mla.cases import CONTRACT, decode, prefill
from zenrepro.ops.mla.prediction import predict
from zenrepro.ops.mla.table import load

ROOT = Path(__file__).parents[2]
ROWS = {entry.name: entry for entry in TABLE}


class Device:
    """A device as a table row sees it."""

    def __init__(self, backend: str, device: str, cc: tuple[int, int] | None = None) -> None:
        self.backend, self.device, self.compute_capability = backend, device, cc


CPU = Device("torch", "cpu")


def test_reading_the_table_and_cases_imports_no_framework() -> None:
    code = (
        "import sys, zenrepro.ops.mla as m; m.TABLE, m.CASES, m.reference;"
        "import zenrepro.ops.mla.prediction, zenrepro.ops.mla.problem;"
        "assert not {'torch', 'jax', 'mlx', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_each_row_is_literal_and_its_module_has_the_phases_functions() -> None:
    for entry in TABLE:
        module, _, first = entry.function.partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {first, *entry.needs.phases} <= defined, entry.name
        assert first in entry.needs.phases, entry.name
        assert entry.paper, entry.name
        for source in entry.sources:
            assert (ROOT / source).is_file()


def test_rows_say_what_they_do_not_serve() -> None:
    fp8 = decode(None, 2, 16, 64, fp8=True).conditions("bf16")
    assert ROWS["torch.absorbed"].available(CPU, fp8).ok
    tpu = Device("jax", "tpu:0")
    reason = ROWS["jax.pallas"].available(tpu, fp8).reason
    assert reason == "serves no format but the inputs' dtype, not fp8_e4m3"
    assert ROWS["jax.pallas"].available(tpu, fp8 | {"format": None}).ok
    assert ROWS["jax.pallas"].available(Device("jax", "cpu")).reason == "runs on tpu, not on cpu"
    reason = ROWS["torch.decompressed"].available(CPU, {"phase": "decode"}).reason
    assert reason == "serves prefill, not decode"
    with pytest.raises(ValueError, match=r"^phase: torch\.decompressed serves prefill, not decode"):
        load(ROWS["torch.decompressed"], "decode")


def test_every_case_has_canonical_conditions_of_its_own() -> None:
    for cases in (*CASES.values(), CONTRACT):
        seen = set()
        for case in cases:
            for kind in ("cpu", "cuda", "gpu", "tpu", "metal"):
                for dtype in case.dtypes(kind):
                    told = case.conditions(dtype)
                    assert conditions.canonical(told).items() >= told.items()
                    assert (counts.mla_of(told).flops or 0) > 0
            seen.add(tuple(case.conditions("bf16").items()))
            assert str(case)
        assert len(seen) == len(cases)


# Counts -----------------------------------------------------------------------------------------


def test_decode_by_hand() -> None:
    told = decode(None, 2, 3, 5, query_len=2).conditions("bf16")
    work = counts.mla_of(told)
    assert work.flops == 2 * 2 * 3 * (4 + 5) * (576 + 512)
    assert work.bytes == 2 * (2 * 5 * 576 + 2 * 2 * 3 * (576 + 512))
    stored = counts.mla_of(told | {"format": "fp8_e4m3"})
    assert stored.flops == work.flops
    assert work.bytes - stored.bytes == 2 * 5 * (1152 - 656)


def test_prefill_takes_the_form_with_fewer_flops() -> None:
    many = counts.mla_of(prefill(None, 2, 3, 64).conditions("fp32"))
    pairs = 64 * 65 // 2
    assert many.flops == 2 * 2 * 3 * (64 * 512 * 256 + pairs * 320)
    one = counts.mla_of(prefill(None, 2, 3, 64, query_len=1).conditions("fp32"))
    assert one.flops == 2 * 2 * 3 * (512 * 256 + 64 * 1088)
    assert one.bytes == 4 * (2 * 3 * 320 + 2 * 64 * 576 + 3 * 512 * 256)


@given(st.integers(1, 200), st.integers(1, 5000), st.floats(0, 0.99))
def test_ragged_lengths_keep_their_mean(batch: int, mean: int, skew: float) -> None:
    if batch > 1 and mean - round(mean * skew) < 1:
        with pytest.raises(InputError, match="without a token"):
            counts.ragged_lengths(batch, mean, skew)
        return
    lengths = counts.ragged_lengths(batch, mean, skew)
    assert len(lengths) == batch
    assert sum(lengths) == batch * mean
    assert list(lengths) == sorted(lengths)
    if batch > 1:
        assert abs(lengths[0] - (1 - skew) * mean) <= 0.5 + 1e-6
    # That is all that decode's work depends on.
    assert sum(counts.attended_pairs(1, n, True) for n in lengths) == batch * mean


def test_counts_say_what_is_wrong() -> None:
    told = decode(None, 2, 3, 5).conditions("bf16")
    with pytest.raises(InputError, match="mla conditions lack 'batch'"):
        counts.mla_of({key: value for key, value in told.items() if key != "batch"})
    with pytest.raises(InputError, match="want seq_len, or query_len and cache_len"):
        counts.mla_of({"op": "mla_decode"})
    with pytest.raises(InputError, match="op wants mla_decode or mla_prefill, got 'attention'"):
        counts.mla_of(told | {"op": "attention"})
    with pytest.raises(InputError, match="cache_format of latent rows wants fp8_e4m3"):
        counts.mla_of(told | {"format": "int8"})
    for skew in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="skew wants a number from 0 to below 1"):
            counts.ragged_lengths(2, 10, skew)


@pytest.mark.parametrize(
    ("name", "microseconds", "bound"),
    [
        ("full_128_16_4096", 141, "bandwidth"), ("full_128_24_4096", 142, "bandwidth"),
        ("full_64_64_4096", 72, "bandwidth"), ("full_64_64_16384", 283, "bandwidth"),
        ("full_64_128_4096", 106, "compute"), ("full_8_16_32768", 70, "bandwidth"),
        ("full_1_16_131072", 35, "bandwidth"),
    ],
)  # fmt: skip
def test_floors_of_an_h200(name: str, microseconds: int, bound: str) -> None:
    """At 4.3 TB/s and 690 TFLOP/s, both measured."""
    case = next(case for case in CASES["full"] if case.name == name)
    found = predict(case, "bf16", 690e12, 4.3e12)
    assert found.bound == bound
    assert found.seconds is not None
    assert found.seconds * 1e6 == pytest.approx(microseconds, abs=0.6)
    unknown = predict(case, "bf16", None, 4.3e12)
    assert (unknown.seconds, unknown.bound, unknown.flops) == (None, None, found.flops)
