"""What the CUDA driver is asked, told by a stand-in for its library: no GPU is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="a stand-in for libcuda.so.1 takes Linux and gcc",
)

# The shapes of a launch of attention, once for each of the driver's launch attributes.
CALLS = """
import ctypes
from unittest import mock
from zenrepro.ops import nvrtc

m = nvrtc.tensor_map(
    0x7f0000001000, "bf16", (128, 4096, 8, 2), (2048, 256, 2**23), (64, 176, 1, 1)
)
assert m.address % 64 == 0
nvrtc.tensor_map(0x7f0000001000, "uint8", (64, 9), (64,), (64, 9), swizzle=64, l2=128)
with mock.patch.object(nvrtc, "compile", return_value=b"cubin"):
    kernel = nvrtc.function("cuda/none.cu", "none")
given = [m, ctypes.c_int(5)]
for how in ({}, {"cooperative": True}, {"dependent": True}, {"cluster": (2, 1, 1)}):
    nvrtc.launch(kernel, (132, 1, 1), (384, 1, 1), 232160, 7, given, **how)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).parent / "driver_stand_in.c"
    made = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", str(source), "-o", str(made), "-ldl"], check=True
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def calls(told: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [call for call in told if call["call"] == name]


def test_tensor_maps_are_encoded_where_the_driver_wants_them(told: list[dict[str, Any]]) -> None:
    first, second = calls(told, "encode")[:2]
    assert first["off"] == second["off"] == 0, "the driver asks for 64 bytes of alignment"
    assert first["address"] == 0x7F0000001000
    # bf16; no interleave; swizzles of 128 bytes; 256 bytes to L2; zeros outside (cuda.h).
    assert first["modes"] == [9, 0, 3, 3, 0]
    assert first["shape"] == [128, 4096, 8, 2]
    assert first["strides"] == [2048, 256, 2**23]
    assert first["box"] == [64, 176, 1, 1]
    assert first["steps"] == [1, 1, 1, 1]
    assert second["modes"] == [0, 0, 2, 2, 0]
    assert (second["shape"], second["strides"]) == ([64, 9], [64])


def test_launches_say_what_they_are(told: list[dict[str, Any]]) -> None:
    launches = calls(told, "launch")
    for launch in launches:
        assert (launch["grid"], launch["block"]) == ([132, 1, 1], [384, 1, 1])
        # Shared memory; the stream; the tensor map's 128 bytes as encoded; the second argument.
        assert launch["rest"] == [232160, 7, 1, 5]
    plain, cooperative, dependent, cluster = (launch["attributes"] for launch in launches)
    assert plain == []
    assert [a[:2] for a in cooperative] == [[2, 1]]  # CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    assert [a[:2] for a in dependent] == [[6, 1]]  # .._PROGRAMMATIC_STREAM_SERIALIZATION
    assert cluster == [[4, 2, 1, 1]]  # .._CLUSTER_DIMENSION


def test_more_shared_memory_than_48_kib_is_asked_for_once(told: list[dict[str, Any]]) -> None:
    # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert [(a["attribute"], a["value"]) for a in calls(told, "allow")] == [(8, 232160)]


def test_a_kernel_may_be_loaded_during_capture(told: list[dict[str, Any]]) -> None:
    # Loading is relaxed (2), the thread's own mode is put back.
    assert [call["capture_mode"] for call in calls(told, "load")] == [2]
    assert {call["capture_mode"] for call in calls(told, "launch")} == {1}
