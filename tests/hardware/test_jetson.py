"""A Jetson from stand-ins for its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenrepro import hardware
from zenrepro.hardware import installed, jetson


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n",
        "model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "meminfo": "MemTotal:       64346312 kB\nMemFree: 1 kB\n",
        "status": "pmode:0002\n",
        "modes": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    gpu = tmp_path / "devfreq" / "17000000.gpu"
    gpu.mkdir(parents=True)
    (gpu / "cur_freq").write_text("612000000\n")
    zone = tmp_path / "thermal" / "thermal_zone1"
    zone.mkdir(parents=True)
    (zone / "type").write_text("gpu-thermal\n")
    (zone / "temp").write_text("45500\n")
    for constant, name in {
        "_RELEASE": "release", "_MODEL": "model", "_MEMORY": "meminfo", "_POWER_MODE": "status",
        "_POWER_MODES": "modes", "_DEVFREQ": "devfreq", "_THERMAL": "thermal",
    }.items():  # fmt: skip
        monkeypatch.setattr(jetson, constant, tmp_path / name)
    return tmp_path


def test_the_board_is_described(board: Path) -> None:
    found = jetson.static()
    assert found.names[0] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert "NVIDIA Jetson AGX Orin" in found.names
    assert found.memory_bytes == 64346312 * 1024  # All of it: the GPU shares it.
    assert found.driver == "L4T 36.4.3"
    assert found.compute_capability == (8, 7)
    assert found.power_mode == "MODE_30W"


def test_its_state_is_read(board: Path) -> None:
    now = jetson.state()
    assert now.clocks_mhz == {"sm": 612.0}
    assert now.temperature_c == 45.5
    assert now.other_processes is None


def test_missing_files_leave_everything_unknown(board: Path) -> None:
    for path in ("meminfo", "status", "release", "model"):
        (board / path).unlink()
    found = jetson.static()
    assert (found.memory_bytes, found.driver, found.power_mode) == (None, None, None)


def test_a_jetson_is_a_cuda_device(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "is_jetson", lambda: True)
    monkeypatch.setattr(installed, "missing", lambda backend: None)
    monkeypatch.setattr(installed, "missing_cuda", lambda backend: None)
    monkeypatch.setenv("ZENREPRO_MACHINE", "bench")
    hardware._static.cache_clear()
    try:
        found = hardware.probe("torch", None)
    finally:
        hardware._static.cache_clear()
    assert found.device == "cuda:0"
    assert found.machine == "nvidia-jetson-agx-orin-developer-kit-bench"
    assert found.power_mode == "MODE_30W"
    assert found.environment.other_load is None
