"""Every row of latent attention over every small case, on the best device that each backend has.

    pytest -m device tests/device/test_mla_rows_on_device.py [-k jax]

On a CUDA GPU, a TPU or a Mac. A backend that has only the CPU here skips with that as its reason.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from zenrepro import backends, hardware
from zenrepro.errors import InputError
from zenrepro.ops.entry import Entry, UnsupportedError
from zenrepro.ops.mla import CASES, TABLE
from zenrepro.ops.mla.cases import CONTRACT, decode
from zenrepro.ops.mla.problem import Problem

pytestmark = pytest.mark.device
SMALL = (*CASES["smoke"], *CONTRACT)
LONG = (decode("context_128k", 1, 16, 131072), decode("context_128k_fp8", 1, 16, 131001, fp8=True))


@functools.cache
def accelerator(name: str) -> hardware.Hardware | str:
    """The backend's best device, or why there is none but the CPU."""
    try:
        found = hardware.probe(name, None)
    except InputError as error:
        return str(error)
    return f"{name} has only the CPU here" if found.device.startswith("cpu") else found


def ready(entry: Entry) -> tuple[hardware.Hardware, backends.Backend]:
    found = accelerator(entry.backend)
    if isinstance(found, str):
        pytest.skip(found)
    here = entry.available(found)
    if not here.ok:
        pytest.skip(f"{entry.name} {here.reason}")
    return found, backends.open(entry.backend, found.device)


def dtypes(found: hardware.Hardware, entry: Entry) -> tuple[str, ...]:
    return entry.needs.dtypes[found.device.partition(":")[0]]


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_contract(entry: Entry) -> None:
    found, backend = ready(entry)
    wrong, ran = [], 0
    for dtype in dtypes(found, entry):
        for case in (*SMALL, *(LONG if dtype == "bf16" else ())):
            if not entry.available(found, case.conditions(dtype)).ok:
                continue
            problem = Problem(backend, case, dtype, seed=0)
            try:
                verdict = problem.judge(problem.call(entry))
            except UnsupportedError as error:
                print(f"{entry.name} {dtype} {case.name}: {error}")
                continue
            ran += 1
            if not verdict.passed:
                wrong.append(f"{dtype} {case.name}: {verdict.reason}")
    assert not wrong, "\n".join(wrong)
    assert ran, "no case was served"


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_same_bits_from_run_to_run(entry: Entry) -> None:
    found, backend = ready(entry)
    phase = entry.needs.phases[-1] if "decode" not in entry.needs.phases else "decode"
    case = next(c for c in SMALL if c.phase == phase and c.name in ("ragged", "chunk"))
    dtype = dtypes(found, entry)[-1]
    problem = Problem(backend, case, dtype, seed=0)
    call: Any = problem.call(entry)
    first = backend.numpy(call())
    for _ in range(20):
        assert np.array_equal(backend.numpy(call()), first)
