"""Every implementation of attention that this GPU can run, over every contract case.

    pytest -m device tests/device/test_attention_on_device.py

ZENREPRO_FA3_LIBRARY names a built FlashAttention-3 where no package is installed.
"""

from __future__ import annotations

from typing import Any

import pytest

from zenrepro.ops.attention import CASES, TABLE
from zenrepro.ops.attention.cases import CONTRACT, Case
from zenrepro.ops.attention.problem import Problem
from zenrepro.ops.entry import Entry, UnsupportedError
from zenrepro.records import Origin

pytestmark = pytest.mark.device
ROWS = [entry for entry in TABLE if entry.backend == "torch" and "cuda" in entry.needs.dtypes]
FAR = 4.0  # times the gate's bound
LAYOUTS = [case for case in CONTRACT if case.name in ("varlen", "paged_16")]
LONG = [
    case
    for case in CASES["full"]
    if case.name in ("full_4096_192", "full_varlen", "full_paged_32_4096_ragged", "full_4096_64")
    or case.name in ("full_paged_1_131072", "full_16384_full")
]


def judged(backend: Any, device: Any, entry: Entry, case: Case, dtype: str) -> str | None:
    """Why the row does not run this case; None when it ran and was right.

    A peer's miss is printed, as the gate reports it in a run: it is that library's. One by more
    than FAR is more likely our call of it, and fails like a miss of ours.
    """
    ok, reason = entry.available(device, case.conditions(dtype))
    if not ok:
        return str(reason)
    drawn = Problem(backend, case, dtype, seed=0)
    call = drawn.call(entry)
    try:
        verdict = drawn.judge(call)
    except UnsupportedError as error:
        return str(error)
    said = f"{entry.name}, {case.name}, {dtype}: {verdict.reason}"
    peer = entry.origin == Origin.PEER
    if not verdict.passed and peer and verdict.error and verdict.error <= FAR * verdict.bound:
        print(f"a peer misses the gate: {said}")
        return None
    assert verdict.passed, said
    return None


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp8_e4m3"])
@pytest.mark.parametrize("entry", ROWS, ids=lambda entry: entry.name)
def test_contract(backend: Any, device: Any, entry: Entry, dtype: str) -> None:
    refused = {}
    cases = [
        case
        for case in (*CASES["smoke"], *CONTRACT)
        if dtype != "fp8_e4m3" or case.layout == "dense"  # what FP8 is measured on
    ]
    for case in cases:
        reason = judged(backend, device, entry, case, dtype)
        if reason is not None:
            refused[case.name] = reason
    for name, reason in refused.items():
        print(f"{entry.name} {dtype} {name}: {reason}")
    if len(refused) == len(cases):
        pytest.skip(f"{entry.name} in {dtype}: {next(iter(refused.values()))}")


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
@pytest.mark.parametrize("entry", ROWS, ids=lambda entry: entry.name)
def test_large_cases(backend: Any, device: Any, entry: Entry, case: Case) -> None:
    if entry.algorithm == "naive":
        pytest.skip("the baseline stores the scores: 8 GiB and more")
    reason = judged(backend, device, entry, case, "bf16")
    backend.release()
    if reason is not None:
        pytest.skip(f"{entry.name}: {reason}")


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: case.name)
@pytest.mark.parametrize("entry", ROWS, ids=lambda entry: entry.name)
def test_a_captured_call_follows_its_index_arrays(
    backend: Any, device: Any, entry: Entry, case: Case
) -> None:
    """A graph is replayed for other lengths: nothing of the first ones may be kept."""
    import torch

    ok, reason = entry.available(device, case.conditions("bf16"))
    if not ok:
        pytest.skip(f"{entry.name}: {reason}")
    if entry.algorithm in ("naive", "flashinfer") and case.layout == "varlen":
        pytest.skip("it reads the offsets on the host")
    drawn = Problem(backend, case, "bf16", seed=0)
    call = drawn.call(entry)
    try:
        first = call().clone()
    except UnsupportedError as error:
        pytest.skip(f"{entry.name}: {error}")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, first) or entry.origin != Origin.OURS
    if case.layout == "varlen":  # none longer than the longest at capture
        changed = {name: [0, 65, 66, 90, 130, 130] for name in drawn.indices}
    else:
        changed = {"cache_seqlens": drawn.indices["cache_seqlens"].tolist()[::-1]}
    for name, numbers in changed.items():
        drawn.indices[name].copy_(torch.tensor(numbers, dtype=torch.int32))
    wanted = call().clone()
    graph.replay()
    torch.cuda.synchronize()
    assert not out.isnan().any()
    assert torch.equal(out, wanted) or (out.float() - wanted.float()).norm() <= (
        0.01 * wanted.float().norm()
    )


@pytest.mark.parametrize("entry", ROWS, ids=lambda entry: entry.name)
def test_what_lies_behind_a_sequence_is_never_seen(backend: Any, device: Any, entry: Entry) -> None:
    """Rows behind the last token, whole unused pages and unused table entries, poisoned.

    Ours must bear it. An installed library need not: what it does is printed.
    """
    import torch

    case = next(case for case in CONTRACT if case.name == "paged_verify")
    ok, reason = entry.available(device, case.conditions("bf16"))
    if not ok:
        pytest.skip(f"{entry.name}: {reason}")
    drawn = Problem(backend, case, "bf16", seed=0)
    try:
        clean = drawn.call(entry)().clone()
    except UnsupportedError as error:
        pytest.skip(f"{entry.name}: {error}")
    table, lengths = drawn.indices["block_table"], drawn.indices["cache_seqlens"].tolist()
    caches = drawn.arrays[1:]
    held = torch.zeros(caches[0].shape[:2], dtype=torch.bool, device="cuda")
    for b, length in enumerate(lengths):
        for i in range(length):
            held[table[b, i // 16].long(), i % 16] = True
    for cache in caches:
        cache[~held] = float("nan")
    if entry.origin == Origin.OURS:
        for b, length in enumerate(lengths):
            table[b, -(-length // 16) :] = -7
    out = drawn.call(entry)()
    torch.cuda.synchronize()
    same = torch.equal(out, clean)
    print(f"{entry.name}: poison behind the sequences {'unseen' if same else 'reaches the output'}")
    assert same or entry.origin != Origin.OURS


@pytest.mark.parametrize("entry", ROWS, ids=lambda entry: entry.name)
def test_bad_indices_are_refused_before_anything_runs(
    backend: Any, device: Any, entry: Entry
) -> None:
    import torch

    for case, name, place, value, message in (
        (LAYOUTS[1], "block_table", (0, 0), 10**6, "^block_table: wants page indices"),
        (LAYOUTS[1], "cache_seqlens", (1,), -1, "^cache_seqlens: wants lengths"),
        (LAYOUTS[0], "cu_seqlens_k", (2,), 200, "^cu_seqlens_k: wants offsets"),
        (LAYOUTS[0], "cu_seqlens_q", (5,), 9, "^cu_seqlens_q: wants "),
    ):
        if not entry.available(device, case.conditions("bf16")).ok:
            continue
        drawn = Problem(backend, case, "bf16", seed=0)
        drawn.indices[name][place] = value
        with pytest.raises(ValueError, match=message):
            drawn.call(entry)()
        torch.cuda.synchronize()  # no fault is pending
