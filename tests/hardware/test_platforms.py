"""Slugs of device classes, and matching with datasheets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro.hardware import platforms
from zenrepro.hardware.state import Static

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SHEET = """
schema: 1
platform: {platform}
name: {name}
vendor: ACME
form_factor: SXM
device_names: ["{device}"]
sources: [{{title: t, url: "https://example.org", publisher: ACME}}]
figures: [{{quantity: memory, metric: capacity, value: {gb}, unit: GB, source: 0}}]
"""


@settings(deadline=None)
@given(st.text())
def test_any_name_gives_a_slug(name: str) -> None:
    slug = platforms.slug(name)
    assert SLUG.fullmatch(slug)
    assert len(slug) <= 48
    assert platforms.slug(slug) == slug


@settings(deadline=None)
@given(st.text(), st.integers(1, 4096))
def test_any_cpu_gives_a_slug_that_ends_in_its_cores(model: str, cores: int) -> None:
    slug = platforms.cpu_slug(model, cores)
    assert SLUG.fullmatch(slug)
    assert slug.startswith("cpu-")
    assert slug.endswith(f"-{cores}c")


@settings(deadline=None)
@given(st.floats(0.5, 9.9), st.sampled_from(["GHz", "ghz"]))
def test_the_clock_is_no_part_of_a_cpus_class(clock: float, unit: str) -> None:
    name = f"Intel(R) Xeon(R) Gold 6448Y CPU @ {clock:.2f}{unit}"
    assert platforms.cpu_slug(name, 2) == "cpu-intel-xeon-gold-6448y-2c"


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "cpu-intel-xeon-4c"),
        ("AMD EPYC 7B13", "cpu-amd-epyc-7b13-4c"),
        ("AMD Ryzen 7 5800X 8-Core Processor", "cpu-amd-ryzen-7-5800x-4c"),
        ("AMD Ryzen 5 2500U with Radeon Vega Mobile Gfx", "cpu-amd-ryzen-5-2500u-4c"),
        ("Apple M2", "cpu-apple-m2-4c"),
        ("", "cpu-unknown-4c"),
    ],
)
def test_cpu_names_are_cleaned(model: str, slug: str) -> None:
    assert platforms.cpu_slug(model, 4) == slug


def _sheets(folder: Path) -> Path:
    for platform, name, device, gb in (
        ("acme-one-40", "ACME One 40 GB", "ACME One", 40),
        ("acme-one-80", "ACME One 80 GB", "ACME One", 80),
        ("cpu-acme", "ACME CPU", "ACME Chip", 64),
        ("acme-chip", "ACME Chip GPU", "ACME Chip", 64),
    ):
        text = SHEET.format(platform=platform, name=name, device=device, gb=gb)
        (folder / f"{platform}.yaml").write_text(text)
    return folder


def test_a_datasheet_names_the_platform(tmp_path: Path) -> None:
    folder = _sheets(tmp_path)
    static = Static(names=["acme  ONE"], identity="x", memory_bytes=85_899_345_920)
    found = platforms.classify("cuda", static, None, folder)
    assert (found.platform, found.model, found.form_factor) == (
        "acme-one-80", "ACME One 80 GB", "SXM",
    )  # fmt: skip
    assert found.memory_bytes == 85_899_345_920


def test_one_name_in_two_sizes_is_told_apart_by_its_memory(tmp_path: Path) -> None:
    folder = _sheets(tmp_path)
    static = Static(names=["ACME One"], identity="x", memory_bytes=42_949_672_960)
    assert platforms.classify("cuda", static, None, folder).platform == "acme-one-40"
    static = Static(names=["ACME One"], identity="x", memory_bytes=16 * 2**30)
    assert platforms.classify("cuda", static, None, folder).platform == "acme-one"


def test_cpu_and_gpu_of_one_chip_are_two_classes(tmp_path: Path) -> None:
    folder = _sheets(tmp_path)
    static = Static(names=["ACME Chip"], identity="x", memory_bytes=64 * 10**9)
    assert platforms.classify("cpu", static, 8, folder).platform == "cpu-acme"
    assert platforms.classify("metal", static, None, folder).platform == "acme-chip"


def test_apples_memory_does_not_tell_chips_apart(tmp_path: Path) -> None:
    folder = _sheets(tmp_path)
    static = Static(names=["ACME Chip"], identity="x", memory_bytes=36 * 2**30)
    assert platforms.classify("metal", static, None, folder).platform == "acme-chip"
    assert platforms.classify("cuda", static, None, folder).model == "ACME Chip"


def test_without_a_datasheet_the_name_is_the_class() -> None:
    static = Static(names=["NVIDIA GeForce RTX 4090"], identity="x")
    found = platforms.classify("cuda", static, None, None)
    assert found.platform == "nvidia-geforce-rtx-4090"
    assert found.model == "NVIDIA GeForce RTX 4090"
    assert found.memory_bytes is None
