"""Latent decode on Hopper, its logic run on the CPU: against fp64, poisoned, split and ragged."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import emulator
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
from zenrepro.ops import device_code  # noqa: E402
from zenrepro.ops.mla import torch_hopper  # noqa: E402

REASON = emulator.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

SCALE = 192**-0.5
# bf16 rounds the output (2^-9 at most) and P; an FP8 cache's rows are rounded to bf16 besides.
BOUND = {False: 3e-3, True: 5e-3}


class Call:
    """Random queries and a cache of ``lengths``, whose rows beyond them are NaN."""

    def __init__(
        self, tokens: int, heads: int, lengths: list[int], fp8: bool = False, seed: int = 0
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        held = [-(-length // 64) for length in lengths]
        pages = sum(held) + 2
        rows = torch.randn(pages, 64, 576, generator=draw).bfloat16()
        self.q = torch.randn(len(lengths), tokens, heads, 576, generator=draw).bfloat16()
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        # Entries that no sequence needs are no page.
        self.table = torch.full((len(lengths), max(1, *held)), -7, dtype=torch.int32)
        order = torch.randperm(pages, generator=draw).int()
        for b, count in enumerate(held):
            self.table[b, :count] = order[sum(held[:b]) : sum(held[:b]) + count]
        self.cache, self.rows = (stored(rows)) if fp8 else (rows, rows.double())
        for b, length in enumerate(lengths):
            if length % 64:
                last = self.cache[int(self.table[b, held[b] - 1])]
                last[length % 64 :] = 0xFF if fp8 else float("nan")

    def run(
        self, blocks: int, mode: str = "drawn", seed: int = 0, times: int = 1
    ) -> list[torch.Tensor]:
        """The outputs of ``times`` calls with one workspace on a card of ``blocks`` SMs."""
        outs = []
        with (
            emulator.emulated(mode, seed),
            mock.patch.object(torch_hopper, "multiprocessors", return_value=blocks),
        ):
            workspace = torch_hopper.make_workspace(self.q.device, 64)
            for _ in range(times):
                workspace.parts.fill_(float("nan"))
                workspace.part_sums.fill_(float("nan"))
                out = torch.full((*self.q.shape[:3], 512), float("nan"), dtype=torch.bfloat16)
                torch_hopper.launch(
                    self.q, self.cache, self.table, self.lengths, SCALE, workspace, out
                )
                assert not workspace.counters.any(), "counters are left for the next call"
                outs.append(out)
        return outs

    def error(self, out: torch.Tensor) -> float:
        wanted = self.wanted()
        return float((out.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))

    def wanted(self) -> torch.Tensor:
        out = torch.zeros(*self.q.shape[:3], 512, dtype=torch.float64)
        for b, length in enumerate(self.lengths.tolist()):
            keys = self.rows[self.table[b, : -(-length // 64)].long()].reshape(-1, 576)[:length]
            for t in range(self.q.shape[1]):
                seen = length - self.q.shape[1] + t + 1
                if seen > 0:
                    scores = self.q[b, t].double() @ keys[:seen].T * SCALE
                    out[b, t] = torch.softmax(scores, -1) @ keys[:seen, :512]
        return out


def stored(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as 656 bytes each, and what those bytes mean."""
    pages = rows.shape[0]
    latent = rows[..., :512].float().view(pages, 64, 4, 128)
    scales = latent.abs().amax(-1) / 448
    codes = (latent / scales[..., None]).to(torch.float8_e4m3fn)
    cache = torch.cat(
        [
            codes.view(torch.uint8).view(pages, 64, 512),
            scales.contiguous().view(torch.uint8).view(pages, 64, 16),
            rows[..., 512:].contiguous().view(torch.uint8).view(pages, 64, 128),
        ],
        -1,
    )
    wide = (codes.double() * scales[..., None].double()).view(pages, 64, 512)
    return cache.contiguous(), torch.cat([wide, rows[..., 512:].double()], -1)


@pytest.mark.parametrize("mode", emulator.MODES)
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_split_and_ragged(fp8: bool, mode: str) -> None:
    call = Call(2, 24, [300, 65, 0, 1], fp8)
    (out,) = call.run(3, mode)
    assert call.error(out) < BOUND[fp8]
    assert not out[2].any(), "a sequence without a key gives zeros"
    assert not out[3, 0].any(), "a query before the first key gives zeros"


@pytest.mark.parametrize(
    ("tokens", "heads", "lengths", "blocks"),
    [
        (1, 16, [1], 1),
        (1, 64, [64], 2),
        (1, 40, [65, 63], 2),
        (1, 1, [129], 1),
        (8, 16, [70], 2),  # 128 rows: two tiles of every page
        (1, 128, [130, 64], 2),
        (5, 33, [7, 200], 6),  # 165 rows: three tiles, the last partly filled
        (1, 16, [64] * 7, 2),  # more sequences than blocks, all alike: none is split
        (1, 16, [64, 700, 10, 1, 0, 200, 65], 3),  # cut along the line of all sequences
        (2, 16, [1500], 4),
    ],
)
def test_shapes(tokens: int, heads: int, lengths: list[int], blocks: int) -> None:
    call = Call(tokens, heads, lengths, seed=tokens + heads)
    (out,) = call.run(blocks, seed=len(lengths))
    assert call.error(out) < BOUND[False]


def test_large_and_tiny_values() -> None:
    for factor in (100.0, 1e-4):
        call = Call(1, 16, [200], seed=3)
        call.q *= factor
        (out,) = call.run(2)
        assert call.error(out) < BOUND[False]


def test_the_same_bits_in_any_order_of_events() -> None:
    call = Call(1, 24, [500, 130], seed=5)
    first, second = call.run(3, "drawn", 1, times=2)
    (third,) = call.run(3, "drawn", 2)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # A row sees one key too many.
        ("if (key >= (i % 4 < 2 ? limit0 : limit1))", "if (key > (i % 4 < 2 ? limit0 : limit1))"),
        # Rows beyond the length are left in the values.
        ("if (!FP8 && valid < PAGE) clear_values", "if (false) clear_values"),
        # A buffer is filled anew while it is read.
        ("mbarrier_wait(empty + half * 8, parity ^ 1);", ""),
        # Parts are added without their weights.
        ("sum.x += w * x.x;", "sum.x += x.x;"),
    ],
    ids=["mask", "unclear_rows", "early_load", "unweighted_parts"],
)
def test_a_seeded_defect_is_seen(right: str, wrong: str, tmp_path: Path) -> None:
    file = device_code.path(torch_hopper.SOURCE)
    text = file.read_text()
    assert text.count(right) >= 1, "the defect's place is gone: write it anew"
    seeded = tmp_path / file.name
    seeded.write_text(text.replace(right, wrong))
    for other in file.parent.glob("*.cuh"):
        (seeded.parent / other.name).write_text(other.read_text())
    call = Call(2, 16, [300, 100], seed=9)
    with mock.patch.object(device_code, "path", return_value=seeded):
        emulator._library.cache_clear()
        try:
            (out,) = call.run(3, "late")
        except emulator.EmulationError:
            return
        finally:
            emulator._library.cache_clear()
    error = call.error(out)
    assert not error < BOUND[False]
