"""The datasheets: sane figures, sources with addresses, names that tell devices apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenrepro import specs
from zenrepro.conditions import FORMATS

SHEETS = specs.load(Path(__file__).parents[2] / "data" / "hardware")
REAL = {name: sheet for name, sheet in SHEETS.items() if sheet.exists}


def test_the_report_s_platforms_and_the_measuring_one_are_there() -> None:
    assert set(SHEETS) >= {
        "nvidia-a100-sxm-80gb", "nvidia-h100-sxm", "nvidia-h200", "google-tpu-v5e",
        "apple-m4-ultra", "apple-m4-max", "apple-m3-ultra", "nvidia-jetson-agx-orin-64gb",
    }  # fmt: skip


def test_what_does_not_exist_has_no_figures_but_neighbours() -> None:
    for name, sheet in SHEETS.items():
        assert sheet.exists == (name != "apple-m4-ultra")
        if not sheet.exists:
            assert sheet.figures == []
            assert all(SHEETS[near].exists for near in sheet.nearest)
            assert sheet.nearest


@pytest.mark.parametrize("name", sorted(SHEETS))
def test_sources(name: str) -> None:
    sheet = SHEETS[name]
    assert sheet.sources
    assert all(source.url.startswith("https://") and source.title for source in sheet.sources)
    assert sheet.note  # how far the figures were checked


@pytest.mark.parametrize("name", sorted(REAL))
def test_figures(name: str) -> None:
    sheet = REAL[name]
    assert sheet.figure("bandwidth", "peak")
    assert sheet.figure("memory", "capacity")
    assert sheet.device_names
    keys = [(f.quantity, f.metric, f.dtype) for f in sheet.figures]
    assert len(keys) == len(set(keys))
    for f in sheet.figures:
        assert f.value > 0
        assert (f.dtype in FORMATS) if f.quantity == "flop_rate" else f.dtype is None
    assert set(sheet.native) <= set(FORMATS)
    for dtype in FORMATS:
        dense = sheet.figure("flop_rate", "dense", dtype)
        sparse = sheet.figure("flop_rate", "sparse", dtype)
        if dense and sparse and not name.endswith("orin-64gb"):
            assert sparse == pytest.approx(2 * dense, rel=1e-3)


def test_drivers_names_tell_devices_apart() -> None:
    names = [n for sheet in SHEETS.values() for n in sheet.device_names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "quantity", "metric", "dtype", "wanted"),
    [
        ("nvidia-a100-sxm-80gb", "bandwidth", "peak", None, 2.039e12),
        ("nvidia-h100-sxm", "flop_rate", "dense", "fp8_e4m3", 1978.9e12),
        ("nvidia-h200", "memory", "capacity", None, 141e9),
        ("google-tpu-v5e", "bandwidth", "peak", None, 819e9),
        ("google-tpu-v5e", "power", "tdp", None, None),
        ("apple-m4-max", "flop_rate", "dense", "bf16", None),
        ("nvidia-jetson-agx-orin-64gb", "count", "cores", None, 2048),
    ],
)  # fmt: skip
def test_known_figures_and_unknown_ones(
    name: str, quantity: str, metric: str, dtype: str | None, wanted: float | None
) -> None:
    found = SHEETS[name].figure(quantity, metric, dtype)
    assert found == (None if wanted is None else pytest.approx(wanted))
