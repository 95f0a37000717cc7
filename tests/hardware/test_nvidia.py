"""NVIDIA GPUs through a stand-in for NVML: what is read, and what stays unknown."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from zenrepro import hardware
from zenrepro.errors import InputError
from zenrepro.hardware import installed, jetson, nvidia
from zenrepro.paths import Project

OWN = os.getpid()


class FakeNvml:
    """The functions of NVML that are used, over plain data. A key that is missing is an error
    of the driver, as on hardware that does not give the figure."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):  # noqa: N801  (NVML's own name)
        pass

    def __init__(self, gpus: list[dict[str, Any]]) -> None:
        self.gpus = gpus

    def _get(self, handle: int, key: str) -> Any:
        if key not in self.gpus[handle]:
            raise self.NVMLError("Not Supported")
        return self.gpus[handle][key]

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.159.04"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return int(self._get(handle, "clocks")[kind])

    def nvmlDeviceGetTemperature(self, handle: int, _: int) -> int:  # noqa: N802
        return int(self._get(handle, "temperature"))

    def nvmlDeviceGetViolationStatus(self, handle: int, policy: int) -> Any:  # noqa: N802
        return SimpleNamespace(violationTime=self._get(handle, "violations")[policy])

    def nvmlDeviceGetProcessUtilization(self, handle: int, _: int) -> Any:  # noqa: N802
        samples = self._get(handle, "utilisation")
        if samples is None:
            raise self.NVMLError_NotFound("Not Found")
        return [SimpleNamespace(pid=p, smUtil=u, timeStamp=t) for p, u, t in samples]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self._get(handle, "pids")]

    def __getattr__(self, name: str) -> Any:
        keys = {
            "nvmlDeviceGetName": "name",
            "nvmlDeviceGetUUID": "uuid",
            "nvmlDeviceGetMemoryInfo": "memory",
            "nvmlDeviceGetEnforcedPowerLimit": "limit_mw",
            "nvmlDeviceGetPowerUsage": "power_mw",
            "nvmlDeviceGetCudaComputeCapability": "capability",
            "nvmlDeviceGetCurrentClocksEventReasons": "reasons",
        }
        if name not in keys:
            raise AttributeError(name)
        return lambda handle: self._get(handle, keys[name])


def gpu(**changes: Any) -> dict[str, Any]:
    return {
        "name": "NVIDIA H200", "uuid": "GPU-1111", "memory": SimpleNamespace(total=150754820096),
        "limit_mw": 700000, "power_mw": 77000, "capability": (9, 0), "reasons": 0x1,
        "clocks": {1: 345, 2: 3201}, "temperature": 30, "pids": [],
        "violations": {0: 0, 1: 0, 3: 0, 5: 0}, "utilisation": None, **changes,
    }  # fmt: skip


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put these GPUs into the machine, and a torch built for CUDA."""

    def install(*gpus: dict[str, Any]) -> FakeNvml:
        fake = FakeNvml(list(gpus))
        nvidia._visible.cache_clear()
        hardware._static.cache_clear()
        monkeypatch.setattr(nvidia, "_load", lambda: (fake, None))
        monkeypatch.setattr(installed, "missing", lambda backend: None)
        monkeypatch.setattr(installed, "missing_cuda", lambda backend: None)
        monkeypatch.setattr(jetson, "is_jetson", lambda: False)
        return fake

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ZENREPRO_MACHINE", "lab")
    yield install
    nvidia._visible.cache_clear()
    hardware._static.cache_clear()


def test_a_gpu_is_described(use: Any) -> None:
    use(gpu())
    found = hardware.probe("torch", "cuda")
    assert found.device == "cuda:0"
    assert found.machine == "nvidia-h200-lab"
    assert found.compute_capability == (9, 0)
    assert found.device_class.memory_bytes == 150754820096
    assert found.environment.driver == "580.159.04"
    assert found.environment.power_limit_w == 700
    assert found.environment.clocks_mhz == {"sm": 345.0, "memory": 3201.0}
    assert found.environment.temperature_c == 30
    assert found.environment.throttle_reasons == []  # Idle is no throttling.
    assert found.environment.other_load == "none"


def test_what_the_driver_does_not_give_is_none_and_never_zero(use: Any) -> None:
    bare = {"name": b"Old GPU", "uuid": b"GPU-2"}
    use(bare)
    found = hardware.probe("torch", "cuda")
    assert found.device_class.model == "Old GPU"
    assert found.device_class.memory_bytes is None
    assert found.compute_capability is None
    environment = found.environment
    assert environment.power_limit_w is None
    assert environment.temperature_c is None
    assert environment.clocks_mhz == {}
    assert environment.other_load is None
    now = hardware.state("torch", "cuda:0")
    assert now.power_w is None
    assert now.other_processes is None
    assert now.throttled_s == {}


def test_throttle_reasons_are_named(use: Any) -> None:
    use(gpu(reasons=0x4 | 0x40 | 0x1))
    now = hardware.state("torch", "cuda:0")
    assert now.throttle_reasons == ["power cap", "thermal, hardware"]


def test_violation_counters_are_seconds(use: Any) -> None:
    use(gpu(violations={0: 2_000_000_000, 1: 500_000_000, 3: 0, 5: 0}))
    totals = hardware.state("torch", "cuda:0").throttled_s
    assert totals == {"power": 2.0, "thermal": 0.5, "board limit": 0.0, "reliability": 0.0}


def test_other_processes_are_counted_and_ours_is_not(use: Any) -> None:
    use(gpu(pids=[OWN, 77], utilisation=[(77, 10, 1), (77, 90, 2), (OWN, 50, 2)]))
    now = hardware.state("torch", "cuda:0", holds_context=True)
    assert now.other_processes == 1
    assert now.other_utilisation == 0.9  # The latest sample, without our own.


def test_in_a_container_one_unknown_process_is_ours(use: Any) -> None:
    use(gpu(pids=[4242]))
    assert hardware.state("torch", "cuda:0", holds_context=True).other_processes == 0
    assert hardware.state("torch", "cuda:0", holds_context=False).other_processes == 1


def test_an_idle_other_process_uses_nothing(use: Any) -> None:
    use(gpu(pids=[OWN, 77], utilisation=None))
    assert hardware.state("torch", "cuda:0").other_utilisation == 0.0


def test_unknown_use_by_another_process_stays_unknown(use: Any) -> None:
    card = gpu(pids=[OWN, 77])
    del card["utilisation"]
    use(card)
    assert hardware.state("torch", "cuda:0").other_utilisation is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["A", "B", "C"]), ("2,0", ["C", "A"]), ("GPU-B", ["B"]), ("1,7,0", ["B"]),
        ("", []), ("-1", []),
    ],
)  # fmt: skip
def test_cuda_visible_devices_renumbers(
    use: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    use(*(gpu(name=name, uuid=f"GPU-{name}") for name in "ABC"))
    assert nvidia.count() == len(names)
    assert [nvidia.static(i).names[0] for i in range(len(names))] == names
    if not names:
        with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
            hardware.probe("torch", "cuda")


def test_one_lock_for_one_gpu_whatever_the_backend(use: Any) -> None:
    use(gpu(uuid="GPU-1"), gpu(uuid="GPU-2"))
    names = {hardware.probe(b, d).lock_name for b, d in (("torch", "cuda:1"), ("jax", "gpu:1"))}
    assert len(names) == 1
    assert hardware.probe("torch", "cuda:0").lock_name not in names


def test_nothing_recorded_tells_the_card_apart(use: Any, project: Project) -> None:
    import msgspec

    use(gpu(uuid="GPU-secret"))
    found = hardware.probe("torch", "cuda", project)
    recorded = msgspec.json.encode([found.device_class, found.environment, found.machine])
    for private in (b"secret", os.uname().nodename.encode(), str(project.root).encode()):
        assert private not in recorded


def test_without_a_driver_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "is_jetson", lambda: False)
    monkeypatch.setattr(nvidia, "_load", lambda: (None, "no NVIDIA driver (not found)"))
    nvidia._visible.cache_clear()
    assert nvidia.missing() == "no NVIDIA driver (not found)"
    assert nvidia.count() == 0
