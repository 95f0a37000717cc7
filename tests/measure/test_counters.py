"""Hardware counters: the profiler's table from a real card, what is wrong with one, and its ends.

``data/h200_*.csv`` were printed by Nsight Compute 2025.3 on an NVIDIA H200, for FlashAttention-2
(as torch has it) and for attention that stores its scores, 1 x 8 heads of 128, N = 1024 and 4096,
bf16. Columns that nobody reads and names of the host are left out, and the ranges are renamed.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import counts
from zenrepro.backends import Unavailable
from zenrepro.measure import counters
from zenrepro.measure.counters import CountersError

DATA = Path(__file__).parent / "data"
ONE_PASS = (DATA / "h200_one_pass.csv").read_text()
TEN_PASSES = (DATA / "h200_ten_passes.csv").read_text()
MEMORY = tuple(m for m in counters.MEMORY if m != counters.DRAM_SHARE)
NEAR = (counters.ARRIVED, counters.TENSOR_PIPE, counters.SECONDS)
SHAPE = {"batch": 1, "heads": 8, "kv_heads": 8, "head_dim": 128, "value_dim": 128, "dtype": "bf16"}


def of(kernels: list[counters.Kernel], name: str) -> list[counters.Kernel]:
    return [kernel for kernel in kernels if kernel.label == f"{name}.0.call"]


def total(kernels: list[counters.Kernel], metric: str) -> float:
    return sum(kernel.values[metric] for kernel in kernels)


def test_a_real_table() -> None:
    kernels = counters.parse(ONE_PASS, MEMORY)
    assert [len(of(kernels, n)) for n in ("flash-1024", "flash-4096", "naive-4096")] == [2, 1, 6]
    first = kernels[0]
    assert first.name.startswith("void pytorch_flash::flash_fwd_splitkv_kernel<")
    assert first.passes == 1
    assert first.values[counters.DRAM_READ] == 6_345_472
    assert first.values[counters.L2_READ] == 944_916
    assert first.values[counters.SECONDS] == pytest.approx(20.032e-6)
    again = counters.parse(TEN_PASSES, NEAR)
    assert {kernel.passes for kernel in again} == {10}
    assert again[0].values[counters.TENSOR_PIPE] == 33.97


def test_what_is_counted_is_what_an_h200_saw() -> None:
    """Queries, keys and values come from device memory once; every tile of 128 queries gets all
    keys and values into its multiprocessor, to the byte."""
    memory, near = counters.parse(ONE_PASS, MEMORY), counters.parse(TEN_PASSES, NEAR)
    tiled, stored = of(memory, "flash-4096"), of(memory, "naive-4096")
    tensor = 8 * 4096 * 128 * 2
    assert total(tiled, counters.DRAM_READ) == pytest.approx(3 * tensor, rel=1e-4)
    shape = {**SHAPE, "query_len": 4096, "cache_len": 4096, "causal": False}
    counted = counts.tiled_attention(**shape, rows=128) - tensor  # less the output, which leaves
    assert total(of(near, "flash-4096"), counters.ARRIVED) == counted
    scores = counts.materialised_scores(
        batch=1, query_len=4096, cache_len=4096, heads=8, dtype="bf16"
    )
    moved = total(stored, counters.DRAM_READ) + total(stored, counters.DRAM_WRITTEN)
    # That program also scaled the scores and took them to fp32 and back: ten passes more.
    assert moved == pytest.approx(3.5 * scores, rel=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace('"byte","byte","ns"', '"Kbyte","byte","ns"'), "is in 'Kbyte'"),
        (lambda t: t.replace("dram__bytes_read.sum", "dram__bytes_wrote.sum"), "has 0 columns"),
        (lambda t: t.replace("dram__bytes_write.sum", "dram__bytes_read.sum"), "has 2 columns"),
        (lambda t: t.replace(',"264,192","1"\n', "\n"), "a row of 22 cells in a table of 24"),
        (lambda t: t[: t.index('"264,192"') + 4], "does not parse|a row of"),
        (lambda t: "\n".join(line for line in t.splitlines() if '"","","' not in line[:8]),
         "no row of units|is in"),
        (lambda t: "==ERROR== The application returned an error code (1).\n", "an error code"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_refused(change, words: str) -> None:
    damaged = change(ONE_PASS)
    assert damaged != ONE_PASS
    with pytest.raises(CountersError, match=words):
        counters.parse(damaged, MEMORY)


@pytest.mark.parametrize("cell", ["n/a", "nan", "inf", "-1", "", "(!) 12"])
def test_what_is_no_number_is_left_out(cell: str) -> None:
    kernels = counters.parse(ONE_PASS.replace('"6,345,472"', f'"{cell}"'), MEMORY)
    assert counters.DRAM_READ not in kernels[0].values
    assert counters.DRAM_WRITTEN in kernels[0].values


def test_nothing_was_profiled() -> None:
    assert counters.parse("==WARNING== No kernels were profiled.\n", MEMORY) == []


@given(st.text(max_size=300), st.integers(0, len(ONE_PASS)), st.integers(0, 400))
def test_noise_never_becomes_a_number_that_is_none(noise: str, place: int, cut: int) -> None:
    for text in (noise, ONE_PASS[:place] + noise + ONE_PASS[place + cut :]):
        try:
            kernels = counters.parse(text, MEMORY)
        except CountersError:
            continue
        for kernel in kernels:
            assert set(kernel.values) <= set(MEMORY)
            assert all(0 <= value < float("inf") for value in kernel.values.values())


# -- the profiler itself, played by a script ---------------------------------------------------


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a script that plays ncu first on the path; it gets the log's name as $LOG."""

    def play(body: str) -> None:
        script = tmp_path / "ncu"
        find = 'while [ $# -gt 0 ]; do [ "$1" = --log-file ] && LOG=$2; shift; done\n'
        script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n{find}{body}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return play


def test_reading(ncu, tmp_path: Path) -> None:
    ncu(f'cat {DATA}/h200_one_pass.csv > "$LOG"; echo the program also prints')
    kernels = counters.read([sys.executable, "-c", "pass"], MEMORY, timeout_s=20)
    assert len(kernels) == 15
    asked = (tmp_path / "arguments").read_text()
    assert "--clock-control none" in asked
    assert "--cache-control none" in asked
    assert f"--metrics {','.join(MEMORY)}" in asked
    assert "--profile-from-start off" in asked
    assert asked.endswith(f"{sys.executable} -c pass\n")


def test_a_table_on_standard_output_is_read_too(ncu) -> None:
    ncu(f'echo "==PROF== Connected" > "$LOG"; cat {DATA}/h200_one_pass.csv')
    assert len(counters.read(["true"], MEMORY, timeout_s=20)) == 15


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission" > "$LOG"; exit 1',
         "only administrators"),
        ('echo "==ERROR== Failed to initialize the profiler: LibraryNotLoaded"; exit 1',
         "sandboxed"),
        ('echo "==ERROR== Failed to find metric dram__bytes_read.sum" > "$LOG"; exit 1',
         "knows no such counter"),
        ('echo "==ERROR== Profiling is not supported on device 0" > "$LOG"; exit 1',
         "does not support this GPU"),
    ],
)  # fmt: skip
def test_counters_out_of_reach_are_unavailable(ncu, body: str, words: str) -> None:
    ncu(body)
    with pytest.raises(Unavailable, match=words):
        counters.read(["true"], MEMORY, timeout_s=20)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('echo "Traceback"; echo "ValueError: no such thing"; exit 3',
         "ended with 3: ValueError: no such thing"),
        ('echo "==WARNING== No kernels were profiled." > "$LOG"', "saw no kernel"),
        ('exit 0', "saw no kernel: it said nothing"),
        ('echo "what ERR_NVGPUCTRPERM means is a question"; exit 4', "ended with 4"),
    ],
)  # fmt: skip
def test_a_program_that_goes_wrong_is_an_error(ncu, body: str, words: str) -> None:
    ncu(body)
    with pytest.raises(CountersError, match=words):
        counters.read(["true"], MEMORY, timeout_s=20)


def test_a_program_that_hangs_ends_with_its_children(ncu, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    ncu(f"(while :; do date +%s%N > {alive}; sleep 0.05; done) & sleep 60")
    with pytest.raises(CountersError, match="longer than 1 s"):
        counters.read(["true"], MEMORY, timeout_s=1)
    last = alive.read_text()
    time.sleep(0.3)
    assert alive.read_text() == last


def test_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "metal", "tpu:0"):
        assert "only NVIDIA GPUs" in (counters.absent(device) or "")
    monkeypatch.setattr(counters, "executable", lambda: None)
    assert "not installed" in (counters.absent("cuda:0") or "")
    with pytest.raises(Unavailable, match="not installed"):
        counters.read(["true"], MEMORY, timeout_s=1)
    monkeypatch.setattr(counters, "executable", lambda: "/bin/ncu")
    assert counters.absent("cuda:0") is None


def test_labels() -> None:
    text = ONE_PASS.replace("zenrepro.flash-1024.0.call", counters.label("c3.1.drain"))
    assert counters.parse(text, MEMORY)[0].label == "c3.1.drain"
    text = ONE_PASS.replace("zenrepro.flash-1024.0.call", "somebody else's range")
    assert counters.parse(text, MEMORY)[0].label == ""
