"""The CPU's description, from stand-ins for the system's files and for psutil."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zenrepro import hardware
from zenrepro.hardware import cpu


@pytest.fixture(autouse=True)
def fresh() -> Any:
    cached = (cpu.static, cpu.model, cpu.cores, cpu.memory_bytes, cpu.last_level_cache_bytes)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


class FakePsutil:
    """A machine with 8 cores of which 2 s of CPU time were used."""

    Error = OSError
    battery: Any = None

    def cpu_count(self, logical: bool) -> int:
        return 16 if logical else 8

    def virtual_memory(self) -> Any:
        return SimpleNamespace(total=67_300_000_000)

    def cpu_freq(self) -> Any:
        return SimpleNamespace(current=3200.04)

    def cpu_times(self) -> Any:
        from collections import namedtuple

        times = namedtuple("times", "user nice system idle iowait guest")
        return times(1.5, 0.0, 0.5, 90.0, 7.0, 0.25)

    def sensors_battery(self) -> Any:
        return self.battery

    def Process(self) -> Any:  # noqa: N802  (psutil's own name)
        return SimpleNamespace(children=lambda recursive: [])


@pytest.fixture
def psutil(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePsutil:
    fake = FakePsutil()
    monkeypatch.setattr(cpu, "_psutil", lambda: fake)
    monkeypatch.setattr(cpu, "_CGROUP", tmp_path)
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 16)
    if hasattr(cpu.os, "sched_getaffinity"):
        monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(16)))
    return fake


def test_physical_cores_count(psutil: FakePsutil) -> None:
    assert cpu.cores() == 8


def test_a_cgroup_holds_cores_and_memory_back(psutil: FakePsutil, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    assert cpu.cores() == 3
    assert cpu.memory_bytes() == 4 * 2**30


def test_an_unlimited_cgroup_holds_nothing_back(psutil: FakePsutil, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu.cores() == 8
    assert cpu.memory_bytes() == 67_300_000_000


def test_affinity_holds_cores_back(psutil: FakePsutil, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(cpu.os, "sched_getaffinity"):
        pytest.skip("this system has no processor affinity")
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1})
    assert cpu.cores() == 2


def test_memory_is_rounded_so_that_a_new_kernel_is_no_new_machine(psutil: FakePsutil) -> None:
    memory = cpu.static().memory_bytes
    assert memory == 63 * 2**30


def test_busy_time_leaves_idle_waiting_and_guests_out(psutil: FakePsutil) -> None:
    assert cpu.state().busy_s == pytest.approx(2.0)
    assert cpu.state().clocks_mhz == {"cpu": 3200.0}


@pytest.mark.parametrize(
    ("battery", "answer"),
    [
        (None, False),
        (SimpleNamespace(power_plugged=True), False),
        (SimpleNamespace(power_plugged=False), True),
        (SimpleNamespace(power_plugged=None), None),
    ],
)
def test_battery(psutil: FakePsutil, battery: Any, answer: bool | None) -> None:
    psutil.battery = battery
    assert cpu.on_battery() is answer


def test_without_psutil_load_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_psutil", lambda: None)
    monkeypatch.setattr(cpu, "_load_average", lambda: None)
    assert hardware.describe_load(cpu.state()) is None
    now = cpu.state()
    assert (now.busy_s, now.own_busy_s, now.on_battery, now.clocks_mhz) == (None, None, None, {})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: Intel(R) Xeon(R)\nmodel name\t: x\n", "Intel(R) Xeon(R)"),
        ("Hardware\t: BCM2835\n", "BCM2835"),
    ],
)
def test_the_model_is_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.platform, "system", lambda: "Linux")
    assert cpu.model() == name


def test_the_largest_cache_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, size in enumerate(("48K", "32768K", "2M")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(size + "\n")
    monkeypatch.setattr(cpu, "_CACHES", tmp_path)
    monkeypatch.setattr(cpu.platform, "system", lambda: "Linux")
    assert cpu.last_level_cache_bytes() == 32 * 2**20


def test_no_cache_told_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CACHES", tmp_path)
    monkeypatch.setattr(cpu.platform, "system", lambda: "Linux")
    assert cpu.last_level_cache_bytes() is None


def test_this_machines_cpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENREPRO_MACHINE", "here")
    found = [item for item in hardware.devices() if isinstance(item, hardware.Hardware)]
    if not found:
        pytest.skip("no framework is installed in this environment")
    one = next(item for item in found if item.device == "cpu")
    assert one.machine == f"{one.device_class.platform}-here"
    assert one.device_class.platform.startswith("cpu-")
    assert one.device_class.platform.endswith(f"-{cpu.cores()}c")
    assert one.environment.packages
    assert one.environment.python is not None
    assert one.environment.other_load is not None
    assert f"on {cpu.cores()} cores" in one.environment.other_load
