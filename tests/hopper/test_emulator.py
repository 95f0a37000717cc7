"""The emulator itself: layouts against numpy, and that it catches what it is for."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from unittest import mock

import emulator
import numpy as np
import pytest

from zenrepro.ops import device_code

REASON = emulator.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(autouse=True)
def _probe() -> Iterator[None]:
    """The probe is not among the shipped kernels."""
    with mock.patch.object(device_code, "path", return_value=emulator.HERE / "probe.cu"):
        yield


def multiply(mode: str, seed: int = 0, **options: int) -> tuple[np.ndarray, np.ndarray]:
    """The probe's product and numpy's, of bf16 values."""
    given = {
        "COLUMNS": 128,
        "MN_MAJOR": 0,
        "WAIT": 1,
        "WAIT_PRODUCT": 1,
        "EXTRA_BYTES": 0,
        "OVERWRITE": 0,
    } | options
    columns = given["COLUMNS"]
    draw = np.random.default_rng(seed)
    a, b = (draw.standard_normal(s, np.float32) for s in ((64, 64), (columns, 64)))
    held = [np.ascontiguousarray(a), np.ascontiguousarray(b.T if given["MN_MAJOR"] else b)]
    bits = [np.ascontiguousarray((x.view(np.uint32) >> 16).astype(np.uint16)) for x in held]
    exact = [(y.astype(np.uint32) << 16).view(np.float32) for y in bits]
    right = exact[1] if given["MN_MAJOR"] else exact[1].T
    out = np.full((64, columns), np.nan, np.float32)
    run = emulator.Emulator(mode, seed)
    rows = bits[1].shape[0]
    maps = [
        run.tensor_map(bits[0].ctypes.data, "bf16", (64, 64), (128,), (64, 64)),
        run.tensor_map(
            bits[1].ctypes.data, "bf16", bits[1].shape[::-1], (bits[1].strides[0],), (64, rows)
        ),
    ]
    kernel = run.function("probe", "probe", defines=(("DTYPE", "BF16"), *sorted(given.items())))
    pointer = ctypes.c_void_p(out.ctypes.data)
    run.launch(kernel, (1, 1, 1), (128, 1, 1), 64 * 1024, 0, [*maps, pointer])
    return out, exact[0].astype(np.float64) @ right.astype(np.float64)


@pytest.mark.parametrize("mode", emulator.MODES)
@pytest.mark.parametrize("options", [{}, {"MN_MAJOR": 1, "COLUMNS": 256}])
def test_a_product_is_numpys(mode: str, options: dict[str, int]) -> None:
    out, wanted = multiply(mode, **options)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-4)


def test_a_read_before_the_copy_landed_is_seen() -> None:
    out, _ = multiply("late", WAIT=0)
    assert np.isnan(out).any()


def test_an_accumulator_read_before_its_wait_is_seen() -> None:
    out, _ = multiply("early", WAIT_PRODUCT=0)
    assert np.isnan(out).all()


def test_bytes_that_never_come_are_a_deadlock() -> None:
    with pytest.raises(emulator.EmulationError, match=r"deadlock.*\n.*mbarrier"):
        multiply("drawn", EXTRA_BYTES=16)


@pytest.mark.parametrize("thread", [1, 127])  # writes to A's first rows; to B
@pytest.mark.parametrize("mode", emulator.MODES)
def test_operands_overwritten_before_their_wait_are_seen(mode: str, thread: int) -> None:
    with pytest.raises(emulator.EmulationError, match="overwritten while a matrix product"):
        multiply(mode, OVERWRITE=thread)
