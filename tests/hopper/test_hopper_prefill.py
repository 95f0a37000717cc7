"""The Hopper attention kernel, run by the emulator: shapes, schedules, and defects put in."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import emulator
import pytest
import torch

from zenrepro.ops import device_code
from zenrepro.ops.attention import torch_fa3
from zenrepro.ops.attention.fa3_variant import Variant

REASON = emulator.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

SMALL = Variant(64, 64, True, False, "BF16", 2, 64, 2)
CUT = SMALL._replace(causal=False, split=True)
CUT_SHAPE = (1, 200, 600, 7, 1)  # 14 tiles on 4 multiprocessors: 2 are cut
# A unit roundoff of the weights: 3.9e-3 and 4.9e-4; half of e4m3's 6.3e-2.
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "E4M3": torch.float8_e4m3fn}
BOUND = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float8_e4m3fn: 3.2e-2}


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """fp64, one sequence [T, H, D]; rows that see no key are zero."""
    T, S, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).double() for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q.double(), k) * q.shape[2] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(T, S, dtype=torch.bool).triu(S - T + 1), -torch.inf)
    return torch.einsum("hts,shd->thd", scores.softmax(-1).nan_to_num(0.0), v)


def error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, Frobenius; NaN where out has any."""
    return float((out.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def poisoned(*size: int, dtype: torch.dtype, device: object) -> torch.Tensor:
    return torch.full(size, float("nan") if dtype.is_floating_point else 0x7F, dtype=dtype)


def worst(
    chosen: Variant,
    shape: tuple[int, int, int, int, int],
    *,
    mode: str = "drawn",
    seed: int = 0,
    dims: tuple[int, int] | None = None,
    scaled: float = 1.0,
) -> float:
    """The worst sequence's error for (B, T, S, H, Hkv) on four multiprocessors, output and partial
    sums poisoned."""
    B, T, S, H, Hkv = shape
    D, Dv = dims or (chosen.head_dim, chosen.value_dim)
    dtype = DTYPES[chosen.dtype]
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (
        (torch.randn(size, generator=draw) * scale).to(dtype)
        for size, scale in (((B, T, H, D), scaled), ((B, S, Hkv, D), scaled), ((B, S, Hkv, Dv), 1))
    )
    out_dtype = torch.bfloat16 if chosen.dtype == "E4M3" else dtype
    out = torch.full((B, T, H, Dv), float("nan"), dtype=out_dtype)
    with (
        emulator.emulated(mode, seed),
        mock.patch.object(torch_fa3, "_processors", return_value=4),
        mock.patch.object(torch, "empty", poisoned),
    ):
        torch_fa3.run(chosen, q, k, v, out, scale=D**-0.5)
    q, k, v = (x.float() for x in (q, k, v))
    return max(error(out[b], reference(q[b], k[b], v[b], chosen.causal)) for b in range(B))


@pytest.mark.parametrize("mode", emulator.MODES)
def test_lengths_heads_and_batches(mode: str) -> None:
    for seed, shape in enumerate(((1, 300, 300, 2, 1), (2, 129, 200, 2, 2), (1, 1, 1, 2, 1))):
        assert worst(SMALL, shape, mode=mode, seed=seed) <= BOUND[torch.bfloat16]
    assert worst(SMALL, (1, 3, 130, 4, 2), mode=mode, dims=(48, 32)) <= BOUND[torch.bfloat16]


@pytest.mark.parametrize("scaled", [1e-3, 8.0])
def test_tiny_and_large_scores(scaled: float) -> None:
    assert worst(SMALL, (1, 130, 260, 2, 2), scaled=scaled) <= BOUND[torch.bfloat16]


@pytest.mark.parametrize(
    ("chosen", "shape"),
    [
        (Variant(128, 128, False, False, "F16", 2, 80, 2), (1, 300, 333, 2, 1)),
        (Variant(192, 128, True, False, "BF16", 2, 112, 2, q_registers=True), (1, 150, 333, 2, 1)),
        (SMALL._replace(ping_pong=False), (2, 200, 300, 2, 1)),
        (Variant(64, 64, True, False, "BF16", 3, 64, 2, 2), (1, 400, 300, 2, 1)),
        (CUT, CUT_SHAPE),
        (SMALL._replace(dtype="E4M3", block_n=128), (2, 200, 300, 2, 1)),
    ],
    ids=["128-fp16", "192-128-queries-in-registers", "no-turns", "three", "split", "e4m3"],
)
def test_sizes_and_schedules(chosen: Variant, shape: tuple[int, int, int, int, int]) -> None:
    assert worst(chosen, shape, mode="late") <= BOUND[DTYPES[chosen.dtype]]


def test_packed_sequences_keep_to_themselves() -> None:
    """Empty sequences, more queries than keys, and NaN and infinity in a neighbour."""
    queries, keys, poisoned = [5, 0, 1, 130, 3, 90], [5, 2, 0, 150, 1, 40], 4
    q_at, k_at = (torch.tensor([0, *x]).cumsum(0).int() for x in (queries, keys))
    draw = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(sum(n), heads, 64, generator=draw).bfloat16()
        for n, heads in ((queries, 4), (keys, 2), (keys, 2))
    )
    k[k_at[poisoned] : k_at[poisoned + 1]] = float("nan")
    v[k_at[poisoned] : k_at[poisoned + 1]] = float("inf")
    out = torch.full_like(q, float("nan"))
    with (
        emulator.emulated("drawn", 3),
        mock.patch.object(torch_fa3, "_processors", return_value=2),
    ):
        torch_fa3.run(
            SMALL._replace(varlen=True), q[None], k[None], v[None], out[None], scale=0.125,
            offsets=(q_at, k_at), longest=(130, 150),
        )  # fmt: skip
    for b in range(len(queries)):
        rows, seen = slice(q_at[b], q_at[b + 1]), slice(k_at[b], k_at[b + 1])
        if b == poisoned or not queries[b]:
            continue
        wanted = reference(q[rows], k[seen], v[seen], True)
        assert error(out[rows], wanted) <= BOUND[torch.bfloat16], b
    assert (out[q_at[2] : q_at[3]] == 0).all()  # no keys at all
    assert (out[q_at[5] : q_at[5] + 50] == 0).all()  # 90 queries, 40 keys: the first see none


def test_pages_are_found_and_what_lies_behind_a_sequence_is_not_seen() -> None:
    """Pages of 16 out of order, the last partly filled, the rest of the cache and the table bad."""
    lengths, page, T = [130, 1, 0, 48], 16, 70
    draw = torch.Generator().manual_seed(2)
    width = 9
    table = torch.randperm(len(lengths) * width, generator=draw).view(-1, width).int()
    q = torch.randn(len(lengths), T, 4, 64, generator=draw).bfloat16()
    k, v = (torch.randn(table.numel(), page, 2, 64, generator=draw).bfloat16() for _ in range(2))
    held = torch.zeros(k.shape[:2], dtype=torch.bool)
    wanted = []
    for b, length in enumerate(lengths):
        rows = [(int(table[b, i // page]), i % page) for i in range(length)]
        for at in rows:
            held[at] = True
        keys, values = (torch.stack([x[at] for at in rows]) if rows else x[0, :0] for x in (k, v))
        wanted.append(reference(q[b], keys, values, True))
        table[b, -(-length // page) :] = -7
    for cache in (k, v):
        cache[~held] = float("nan")
    out = torch.full_like(q, float("nan"))
    with (
        emulator.emulated("drawn", 4),
        mock.patch.object(torch_fa3, "_processors", return_value=2),
    ):
        torch_fa3.run(
            SMALL._replace(page_rows=16), q, k, v, out, scale=0.125,
            pages=(table, torch.tensor(lengths, dtype=torch.int32)),
        )  # fmt: skip
    for b, right in enumerate(wanted):
        assert error(out[b], right) <= BOUND[torch.bfloat16], b
    assert (out[2] == 0).all()
    assert (out[3, : T - lengths[3]] == 0).all()  # more queries than keys


@pytest.mark.parametrize(
    ("right", "wrong", "seen"),
    [
        ("% 2 >= seen[", "% 2 > seen[", "numbers"),  # one key too many
        (": step * 2048;", ": step * 1024;", "numbers"),
        ("wgmma_wait<1>();\n        scores_ready();", "scores_ready();", "overwritten"),
        ("mbarrier_init(s.q_empty + 8 * i, 4)", "mbarrier_init(s.q_empty + 8 * i, 5)", "deadlock"),
        ("barrier_wait(8 + warpgroup, 128);\n    int* arrived", "int* arrived", "parts"),
    ],
    ids=["mask", "descriptor", "scores read early", "a barrier's count", "parts counted early"],
)
def test_defects_are_caught(right: str, wrong: str, seen: str, tmp_path: Path) -> None:
    folder = device_code.path(torch_fa3.SOURCE).parent
    for file in folder.glob("*.cuh"):
        shutil.copy(file, tmp_path)
    text = (folder / "attention_hopper.cu").read_text()
    assert text.count(right) == 1
    broken = tmp_path / "attention_hopper.cu"
    broken.write_text(text.replace(right, wrong))
    emulator._library.cache_clear()
    with mock.patch.object(device_code, "path", return_value=broken):
        if seen == "parts":
            assert not worst(CUT, CUT_SHAPE) <= BOUND[torch.bfloat16]
        elif seen != "numbers":
            with pytest.raises(emulator.EmulationError, match=seen):
                worst(SMALL, (1, 300, 300, 2, 1), mode="early")
        else:
            off = worst(SMALL, (1, 300, 300, 2, 1), mode="early")
            assert not off <= BOUND[torch.bfloat16]  # NaN is caught too
    emulator._library.cache_clear()
