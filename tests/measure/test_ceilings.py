"""Ceilings: their calls compute what they say, and their work is counted."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from zenrepro import backends, hardware
from zenrepro.conditions import canonical
from zenrepro.errors import InputError
from zenrepro.hardware import Hardware
from zenrepro.measure import ceilings
from zenrepro.measure.ceilings import Ceiling
from zenrepro.records import DeviceClass, Environment, Status

# Relative error of a product with these operands, accumulated in fp32 and rounded to the result's
# format: a few units of the operands' last place.
TOLERANCE = {"fp64": 1e-12, "fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2, "int8": 0.0}


def device(backend: str, name: str, **changes: Any) -> Hardware:
    return msgspec.structs.replace(
        Hardware(
            backend=backend, device=name, machine="x-y", lock_name="x", compute_capability=None,
            device_class=DeviceClass(platform="x", model="X", memory_bytes=150 * 10**9),
            environment=Environment(),
        ),
        **changes,
    )  # fmt: skip


@pytest.mark.parametrize("name", backends.NAMES)
def test_every_ceiling_computes_what_it_says(name: str) -> None:
    try:
        backend = backends.open(name, "cpu")
    except backends.Unavailable as error:
        pytest.skip(str(error))
    done = []
    for ceiling in ceilings.ceilings(hardware.probe(name, "cpu"), "smoke"):
        if ceiling.unavailable is None:
            result = backend.numpy(ceiling.prepare(backend, 3)())
            check(backend, ceiling, result)
            done.append(ceiling.conditions["dtype"])
    assert {"fp32", "fp16", "bf16"} <= set(done)


def check(backend: backends.Backend, ceiling: Ceiling, result: np.ndarray) -> None:
    dtype, n = ceiling.conditions["dtype"], ceiling.conditions["n"]
    if ceiling.conditions["op"] == "matmul":
        left, right = (
            backend.numpy(backend.random((n, n), dtype, seed, scale=n**-0.25)).astype(np.float64)
            for seed in (3, 4)
        )
        exact = left @ right
        error = np.linalg.norm(result - exact) / np.linalg.norm(exact)
        assert error <= TOLERANCE[dtype], ceiling
        return
    source = backend.numpy(backend.random((n,), "fp32", 3)).astype(np.float64)
    if ceiling.conditions["op"] == "copy":
        assert np.array_equal(np.abs(result), np.abs(source))
    else:
        # Rounding of a sum of n values of size 1: far below its own spread of sqrt(n).
        assert abs(float(result) - source.sum()) < 0.05 * np.sqrt(n)


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
@pytest.mark.parametrize(
    "where",
    [device("torch", "cuda:0", compute_capability=(9, 0)), device("jax", "tpu:0"),
     device("mlx", "metal"), device("torch", "cpu"), device("jax", "gpu:0")],
    ids=lambda h: f"{h.backend}-{h.device}",
)  # fmt: skip
def test_conditions_are_in_the_vocabulary_and_distinct(where: Hardware, scale: str) -> None:
    seen = set()
    for ceiling in ceilings.ceilings(where, scale):
        conditions = canonical(ceiling.conditions)
        identity = (ceiling.implementation, ceiling.quantity, tuple(conditions.items()))
        assert identity not in seen
        seen.add(identity)
        assert ceiling.implementation.startswith(f"{where.backend}.")
        assert ceiling.work.bytes
        if ceiling.unavailable is not None:
            status, reason = ceiling.unavailable
            assert status is Status.UNSUPPORTED
            assert reason
            assert "\n" not in reason


def find(where: Hardware, scale: str, dtype: str) -> list[Ceiling]:
    return [
        c
        for c in ceilings.ceilings(where, scale)
        if c.conditions["op"] == "matmul" and c.conditions["dtype"] == dtype
    ]


def test_a_hopper_card_multiplies_every_format() -> None:
    h200 = device("torch", "cuda:0", compute_capability=(9, 0))
    for dtype in ("fp64", "fp32", "fp16", "bf16", "fp8_e4m3", "int8"):
        assert all(c.unavailable is None for c in find(h200, "full", dtype)), dtype
    assert [c.implementation for c in find(h200, "full", "fp32")] == [
        "torch.matmul", "torch.matmul_tf32",
    ]  # fmt: skip
    assert [c.conditions["m"] for c in find(h200, "full", "bf16")] == [8192, 16384]


@pytest.mark.parametrize(
    ("capability", "dtype", "there"),
    [((8, 0), "fp8_e4m3", False), ((8, 9), "fp8_e4m3", True), ((7, 5), "bf16", False),
     ((7, 5), "int8", True), ((8, 7), "bf16", True)],
)  # fmt: skip
def test_older_cards_lack_formats(capability: tuple[int, int], dtype: str, there: bool) -> None:
    card = device("torch", "cuda:0", compute_capability=capability)
    (ceiling,) = find(card, "small", dtype)
    assert (ceiling.unavailable is None) is there
    if ceiling.unavailable is not None:
        assert f"{capability[0]}.{capability[1]}" in ceiling.unavailable[1]


def test_work_is_counted() -> None:
    h200 = device("torch", "cuda:0", compute_capability=(9, 0))
    (ceiling,) = find(h200, "small", "fp8_e4m3")
    assert ceiling.work.flops == 2 * 4096**3
    assert ceiling.work.bytes == 4096**2 * (1 + 1 + 2)
    copy = next(c for c in ceilings.ceilings(h200, "full") if c.conditions["op"] == "copy")
    assert copy.work.bytes == 2 * 4 * 2**30


def test_buffers_stay_within_a_sixteenth_of_the_memory() -> None:
    little = DeviceClass(platform="x", model="X", memory_bytes=8 * 2**30)
    card = device("torch", "cuda:0", device_class=little)
    assert ceilings.buffer_bytes(card, "full") == 2**29
    unknown = DeviceClass(platform="x", model="X")
    assert ceilings.buffer_bytes(device("jax", "tpu:0", device_class=unknown), "small") == 2**30


def test_an_unknown_scale_is_bad_input() -> None:
    with pytest.raises(InputError, match="unknown scale 'huge'"):
        next(ceilings.ceilings(device("torch", "cpu"), "huge"))


def test_tf32_leaves_the_setting_as_it_was() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed in this environment")
    before = torch.get_float32_matmul_precision()
    backend = backends.open("torch", "cpu")
    card = device("torch", "cpu")
    ceiling = ceilings.matmul(card, "fp32", 16, tf32=True)
    ceiling.prepare(backend, 0)()
    assert torch.get_float32_matmul_precision() == before
