"""FlashMLA and FlashAttention-3 as installed, over latent attention's decode cases.

    ZENREPRO_FLASHMLA_LIBRARY=... ZENREPRO_FA3_LIBRARY=... \
        pytest -m device tests/device/test_mla_peers_on_device.py -s

A peer that is wrong on a case is no failure of ours but must be known: what it is wrong on is
printed, and it may not be wrong on what it is timed on.
"""

from __future__ import annotations

from typing import Any

import pytest

from zenrepro.ops.entry import UnsupportedError
from zenrepro.ops.mla import CASES, TABLE
from zenrepro.ops.mla.cases import CONTRACT
from zenrepro.ops.mla.problem import Problem
from zenrepro.records import Origin

pytestmark = pytest.mark.device
PEERS = [entry for entry in TABLE if entry.origin == Origin.PEER and entry.backend == "torch"]
TIMED = [
    case
    for case in CASES["full"]
    if case.phase == "decode" and case.batch * case.cache_len <= 2**20
]


def tried(backend: Any, device: Any, entry: Any, case: Any) -> str | None:
    """What is wrong, or None; a refusal skips."""
    ok, reason = entry.available(device, case.conditions("bf16"))
    if not ok:
        pytest.skip(f"{entry.name}: {reason}")
    drawn = Problem(backend, case, "bf16", seed=0)
    try:
        verdict = drawn.judge(drawn.call(entry))
    except UnsupportedError as error:
        pytest.skip(f"{entry.name}: {error}")
    return None if verdict.passed else str(verdict.reason)


@pytest.mark.parametrize("case", [c for c in CONTRACT if c.phase == "decode"], ids=lambda c: c.name)
@pytest.mark.parametrize("entry", PEERS, ids=lambda entry: entry.name)
def test_contract(backend: Any, device: Any, entry: Any, case: Any) -> None:
    wrong = tried(backend, device, entry, case)
    print(f"{entry.name} {case.name}: {wrong or 'right'}")


@pytest.mark.parametrize("case", TIMED, ids=lambda case: case.name)
@pytest.mark.parametrize("entry", PEERS, ids=lambda entry: entry.name)
def test_what_is_timed(backend: Any, device: Any, entry: Any, case: Any) -> None:
    assert tried(backend, device, entry, case) is None
    backend.release()
