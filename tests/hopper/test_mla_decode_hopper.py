"""Latent decode on Hopper, its logic run on the CPU: against fp64, poisoned, split and ragged."""

from __future__ import annotations

import ctypes
import pathlib
import re
from collections.abc import Callable
from unittest import mock

import emulator
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
from zenrepro.ops import device_code  # noqa: E402
from zenrepro.ops.mla import torch_hopper  # noqa: E402

REASON = emulator.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

SCALE = 192**-0.5
# bf16 rounds the output (2^-9 at most) and P. With an FP8 cache weights times scales keep as many
# bits, and products add up in fewer than fp32 has (add_e4m3 of the emulator).
BOUND = {False: 3e-3, True: 3e-3}


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
        self, blocks: int, mode: str = "drawn", seed: int = 0, times: int = 1, **tuning: int
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
                given = (self.q, self.cache, self.table, self.lengths, SCALE, workspace, out)
                torch_hopper.launch(*given, tuning=tuple(tuning.items()))
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
    "scales",
    [
        (1.0, 1 / 448, 0.0123456, 3e-5),
        (127.9, 1e-30, 2.0**-100, 5e-38),
        (128.0, 1.0, 0.7, 0.3),
        (1e30, 4e35, 1e-20, 777.7),
        (-0.37, 0.0, -300.0, 2.0),
    ],
    ids=str,
)
def test_every_code_of_an_fp8_cache(scales: tuple[float, ...]) -> None:
    """A cache of one row gives that row: each code of each scale, whatever the scales."""
    call = Call(1, 1, [1, 1], fp8=True)
    call.q.zero_()
    codes = torch.arange(512, dtype=torch.int32).to(torch.uint8)
    codes[codes % 128 == 127] = 0  # NaN
    held = torch.tensor(scales, dtype=torch.float32)
    for b, bits in enumerate((codes, codes.flip(0))):
        row = call.cache[int(call.table[b, 0]), 0]
        row[:512] = bits
        row[512:528] = held.view(torch.uint8)
    (out,) = call.run(2)
    for b, bits in enumerate((codes, codes.flip(0))):
        wide = bits.view(torch.float8_e4m3fn).double().view(4, 128) * held.double()[:, None]
        # The scale to the eight bits of two e4m3 numbers, the output to those of bf16.
        allowed = wide.abs() * (2.0**-9 + 2.0**-8 + 2.0**-11) + 2.0**-134
        assert bool(((out[b].double().view(4, 128) - wide).abs() <= allowed).all())


@pytest.mark.parametrize("mode", emulator.MODES)
@pytest.mark.parametrize("heads", [12, 20])
@pytest.mark.parametrize("lead", [0, 1])
def test_fewest_buffers_with_fp8(lead: int, heads: int, mode: str) -> None:
    call = Call(2, heads, [450, 100], fp8=True, seed=9)
    few = {"CODE_STAGES": 2, "SIDE_STAGES": 2, "VALUE_SLOTS": 4, "SIDE_LEAD": lead}
    (out,) = call.run(2, mode, **few)
    assert call.error(out) < BOUND[True]


def test_scales_far_apart_in_a_page() -> None:
    """Keys that count have scales far below those of keys that do not count: 2^-8 to 2^-130."""
    for seed, ratio in enumerate((2.0**-8, 2.0**-13, 2.0**-30, 2.0**-130)):
        call = Call(1, 40 if seed == 1 else 16, [200], fp8=True, seed=seed)
        held = [int(p) for p in call.table[0, :4]]
        scales = call.cache[held, :, 512:528].view(torch.float32)
        scales *= 2.0**20  # so that the smallest are numbers still
        scales[:, 1::2] *= ratio
        call.cache[held, :, 512:528] = scales.view(torch.uint8)
        # The first rotary column decides: even keys get next to no weight.
        rotary = call.cache[held, :, 528:].view(torch.bfloat16)
        rotary[:, ::2, 0], rotary[:, 1::2, 0] = -400.0, 0.0
        call.cache[held, :, 528:] = rotary.view(torch.uint8)
        call.q[..., :512] *= 1e-8
        call.q[..., 512] = 4.0
        codes = call.cache[..., :512].contiguous().view(torch.float8_e4m3fn).double()
        wide = codes.unflatten(-1, (4, 128)) * call.cache[..., 512:528].contiguous().view(
            torch.float32
        ).double().unsqueeze(-1)
        rotary = call.cache[..., 528:].contiguous().view(torch.bfloat16).double()
        call.rows = torch.cat([wide.flatten(-2), rotary], -1)
        (out,) = call.run(2, seed=seed)
        assert call.wanted().norm() < 2e8 * ratio, "the test's own: even keys must not count"
        assert call.error(out) < BOUND[True], ratio


def test_a_code_that_is_no_number_gives_none() -> None:
    for code, column in ((0x7F, 3), (0xFF, 511), (0x7F, 256)):
        call = Call(1, 16, [70, 70], fp8=True)
        call.cache[int(call.table[0, 1]), 4, column] = code
        (out,) = call.run(2)
        assert bool(out[0].isnan().all())
        assert not bool(out[1].isnan().any())


@pytest.mark.parametrize("mode", ["late", "drawn"])
def test_scores_ahead(mode: str) -> None:
    """As shipped for several tiles, here for one."""
    call = Call(2, 24, [450, 200, 64], seed=2)
    (out,) = call.run(4, mode, seed=7, FIRST=4, LAZY=8)
    assert call.error(out) < BOUND[False]


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
        (1, 2, [1500], 6),  # few columns for each block to combine
        (1, 64, [300, 290], 4),  # two parts each, which two blocks exchange
        (2, 20, [500], 2),
    ],
)
def test_shapes(tokens: int, heads: int, lengths: list[int], blocks: int) -> None:
    call = Call(tokens, heads, lengths, seed=tokens + heads)
    (out,) = call.run(blocks, seed=len(lengths))
    assert call.error(out) < BOUND[False]


@pytest.mark.parametrize(
    ("tokens", "heads", "lengths", "blocks"),
    [
        (1, 24, [300, 290], 4),  # two parts each, which two blocks exchange
        (1, 5, [600], 5),
        (3, 40, [130, 7], 4),  # two tiles
        (1, 64, [300, 290], 4),
        (1, 33, [700, 1, 0, 64, 65], 3),  # one row more than lie beside their lower halves
        (2, 16, [64, 700, 10, 1, 0, 200, 65], 3),  # cut along the line of all sequences
        (8, 20, [70], 3),  # 160 rows: three tiles
        (1, 1, [64 * 33 + 5], 1),
    ],
)
def test_shapes_with_fp8(tokens: int, heads: int, lengths: list[int], blocks: int) -> None:
    call = Call(tokens, heads, lengths, fp8=True, seed=tokens + heads)
    (out,) = call.run(blocks, seed=len(lengths))
    assert call.error(out) < BOUND[True]


PLAN = """
extern "C" __global__ void plans(const __grid_constant__ Problem problem, int blocks, Plan* out) {
    extern __shared__ char memory[];
    for (int block = 0; block < blocks; ++block) {
        Plan* plan = reinterpret_cast<Plan*>(memory);
        if (threadIdx.x < CONSUMERS) make_plan(problem, block, blocks, plan, memory + 64);
        __syncthreads();
        if (threadIdx.x == 0) out[block] = *plan;
        __syncthreads();
    }
}
"""


class Plan(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in (
            "first first_page last last_end first_splits first_index first_block "
            "last_splits last_index last_block ragged pieces"
        ).split()
    ]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Plan]]:
    """The kernel's own plan of every block, for lengths and a number of blocks."""
    file = device_code.path(torch_hopper.SOURCE)
    folder = tmp_path_factory.mktemp("plans")
    source = folder / "plans.cu"
    source.write_text(file.read_text() + PLAN)
    for other in file.parent.glob("*.cuh"):
        (folder / other.name).write_text(other.read_text())

    run = emulator.Emulator()
    with mock.patch.object(device_code, "path", return_value=source):
        kernel = run.function("plans", "plans")

    def plans(lengths: list[int], blocks: int) -> list[Plan]:
        held = torch.tensor(lengths, dtype=torch.int32)
        out = (Plan * blocks)()
        problem = torch_hopper.Problem(
            cache_seqlens=held.data_ptr(), batch=len(lengths), table_width=-(-max(lengths) // 64)
        )
        given = [problem, ctypes.c_int(blocks), ctypes.c_void_p(ctypes.addressof(out))]
        run.launch(kernel, (1, 1, 1), (torch_hopper.THREADS, 1, 1), 4096, 0, given)
        return list(out)

    return plans


@pytest.mark.parametrize(
    ("lengths", "blocks"),
    [
        ([4096] * 128, 132),
        ([4096] * 64, 132),
        ([64] * 1000, 132),
        ([(137 * i) % 3000 for i in range(1000)], 132),
        ([100 + 62 * i for i in range(128)], 132),
        ([1] * 131 + [20000], 132),
        ([0, 0, 70, 0, 5000, 0, 0, 64, 0], 3),
        ([8000, 10, 10, 10, 8000], 2),
    ],
)
def test_a_plan_serves_every_page_once(
    planner: Callable[..., list[Plan]], lengths: list[int], blocks: int
) -> None:
    pages = [-(-length // 64) for length in lengths]
    served: dict[int, list[tuple[int, int, int]]] = {b: [] for b in range(len(lengths))}
    work = []
    for block, plan in enumerate(planner(lengths, blocks)):
        total = 0
        for b in range(plan.first, plan.last + 1):
            begin = plan.first_page if b == plan.first else 0
            end = plan.last_end if b == plan.last else pages[b]
            if begin < end:
                served[b].append((block, begin, end))
                total += end - begin
        work.append(total)
        for b, splits, index, first_block in (
            (plan.first, plan.first_splits, plan.first_index, plan.first_block),
            (plan.last, plan.last_splits, plan.last_index, plan.last_block),
        ):
            if plan.last >= 0 and splits > 1:
                served[b].append((-1 - block, splits, block - first_block - index))
    for b, pieces in served.items():
        parts = sorted(piece for piece in pieces if piece[0] >= 0)
        told = [piece for piece in pieces if piece[0] < 0]
        edges = [0] + [end for _, _, end in parts]
        assert [begin for _, begin, _ in parts] == edges[:-1], f"sequence {b}: {parts}"
        assert edges[-1] == pages[b], f"sequence {b}: {parts} of {pages[b]} pages"
        first = parts[0][0] if parts else 0
        assert [block for block, _, _ in parts] == list(range(first, first + len(parts)))
        # Every block that shares a sequence knows with how many, and which of them it is.
        assert len(told) == (len(parts) if len(parts) > 1 else 0), f"sequence {b}"
        assert all(splits == len(parts) and off == 0 for _, splits, off in told), f"sequence {b}"
    even = sum(pages) / blocks
    assert max(work) <= even * 1.25 + 8, f"{max(work)} pages for one block, {even:.1f} for each"


def error_with(right: str, wrong: str, folder: pathlib.Path, error: Callable[[], float]) -> float:
    """``error()`` where the source has ``wrong`` for ``right``; NaN if the emulator refused it."""
    source = device_code.path(torch_hopper.SOURCE)
    assert source.read_text().count(right) == 1, "the defect's place is gone: write it anew"
    for other in (source, *source.parent.glob("*.cuh")):
        text = other.read_text()
        (folder / other.name).write_text(text.replace(right, wrong) if other == source else text)
    with mock.patch.object(device_code, "path", return_value=folder / source.name):
        emulator._library.cache_clear()
        try:
            return error()
        except emulator.EmulationError as noticed:
            if "does not compile" in str(noticed):
                raise
            return float("nan")
        finally:
            emulator._library.cache_clear()


def test_queries_not_waited_for_are_seen(tmp_path: pathlib.Path) -> None:
    """The warpgroup of a tile's second page may be the first to read the queries."""
    call = Call(2, 24, [450, 200, 64], seed=2)

    def worst() -> float:
        errors = [call.error(call.run(4, "drawn", seed, FIRST=4)[0]) for seed in range(3)]
        return max(errors, key=lambda error: (error != error, error))  # NaN counts

    right, wrong = "if (page <= begin + 1) mbarrier_wait", "if (fresh) mbarrier_wait"
    assert not error_with(right, wrong, tmp_path, worst) < BOUND[False]


def growing(by: float, below: int = 16) -> Call:
    """128 query rows, whose scores grow from page to page by ``by`` times those of the first; of
    each 16 rows only the first ``below``."""
    call = Call(1, 128, [320, 130], seed=1)
    for b, length in enumerate(call.lengths.tolist()):
        for i in range(-(-length // 64)):
            page = int(call.table[b, i])
            call.cache[page] *= 1 + by * i
            call.rows[page] = call.cache[page].double()
    call.q[:, :, torch.arange(128) % 16 >= below] *= 0.002
    return call


@pytest.mark.parametrize("mode", ["late", "drawn"])
@pytest.mark.parametrize("by", [0.7, 100.0])
def test_maxima_that_grow(by: float, mode: str) -> None:
    """By some powers of two a page, and by more than fp32 has."""
    call = growing(by)
    (out,) = call.run(4, mode)
    assert call.error(out) < BOUND[False]


def test_maxima_are_those_of_pages_before_where_they_may_be() -> None:
    call = Call(1, 128, [320, 130], seed=1)
    (shipped,) = call.run(4)
    (same,) = call.run(4, "late", 3)
    (each,) = call.run(4, LAZY=0)
    assert torch.equal(shipped, same)
    assert call.error(shipped) < BOUND[False]
    assert call.error(each) < BOUND[False]
    assert not torch.equal(shipped, each), "weights are by each page's maximum"
    # The same of one tile, with scores behind values, and rows without a key beside others.
    call = Call(2, 24, [450, 200, 0, 1], seed=2)
    (out,) = call.run(3, LAZY=8)
    assert call.error(out) < BOUND[False]
    assert not out[2].any()
    assert not out[3, 0].any()


def test_what_is_no_number_gives_none_whichever_maximum() -> None:
    call = growing(0.7)
    call.cache[int(call.table[0, 2]), 5, 7] = float("nan")
    call.cache[int(call.table[1, 1]), 0, 7] = float("inf")
    (out,) = call.run(4, "late")
    (each,) = call.run(4, "late", LAZY=0)
    assert out.isnan().any()
    assert torch.equal(out.isnan(), each.isnan())


@pytest.mark.parametrize(
    ("by", "below", "right", "wrong"),
    [
        # The maximum of some rows is never raised, and their weights overflow.
        (100.0, 8, "top0 * problem.scale_log2 <= maximum0 + LAZY", "top0 < infinity()"),
        (100.0, 16, "top1 * problem.scale_log2 <= maximum1 + LAZY", "true"),
        # A row's four threads each take their own.
        (0.7, 16, "quad_max(top0) * problem", "top0 * problem"),
        # Threads of a warp part where they exchange maxima.
        (0.7, 8, "if (__any_sync(0xffffffffu, !stays)) {", "if (!stays) {"),
        # What the old maxima gave stays in the sums, or what the new gave is not in them.
        (0.7, 16, "more0 = more1 = 0;\n", "\n"),
        (0.7, 16, "sum0 += more0;", ""),
        # Maxima are raised, and sums or the output stay as they were.
        (0.7, 16, "sum1 *= alpha1;\n                    weigh", "weigh"),
        (0.7, 16, "raise(more0, more1);", "raise(more0, more1); alpha0 = 1;"),
        # P for the other warpgroup lies elsewhere.
        (0.7, 16, "place[0] ^ k * 32", "place[0] + k * 32"),
    ],
    ids=[
        "upper_maxima", "lower_maxima", "own_maxima", "warp_parts", "weighed_twice",
        "not_weighed", "sums", "no_rescaling", "place",
    ],
)  # fmt: skip
def test_a_defect_of_maxima_is_seen(
    by: float, below: int, right: str, wrong: str, tmp_path: pathlib.Path
) -> None:
    call = growing(by, below)
    error = error_with(right, wrong, tmp_path, lambda: call.error(call.run(4, "late")[0]))
    assert not error < BOUND[False]  # NaN counts


def test_large_and_tiny_values() -> None:
    for factor in (100.0, 1e-4):
        call = Call(1, 16, [200], seed=3)
        call.q *= factor
        (out,) = call.run(2)
        assert call.error(out) < BOUND[False]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_wrong_pages_and_lengths_stay_in_memory(fp8: bool) -> None:
    """A captured graph's indices are not checked: they must do no harm. What lies in reach is
    clamped, so that the output is that of clamped indices."""
    call = Call(1, 16, [64, 100, 64], fp8)
    call.lengths[:] = torch.tensor([100_000, -5, 64])
    call.table[:] = torch.tensor([[2**31 - 1, -(2**31)], [0, 0], [-1, 99]])
    pages = call.cache.shape[0]
    (out,) = call.run(2)
    call.lengths[:] = torch.tensor([128, 0, 64])
    call.table[:] = torch.tensor([[pages - 1, 0], [0, 0], [0, 0]])
    (wanted,) = call.run(2)
    assert torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out.nan_to_num(), wanted.nan_to_num())


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
        ("if (valid < PAGE) clear_values", "if (false) clear_values"),
        # A buffer is filled anew while it is read.
        ("mbarrier_wait(empty + c * 8, parity ^ 1);", ""),
    ],
    ids=["mask", "unclear_rows", "early_load"],
)
def test_a_seeded_defect_is_seen(right: str, wrong: str, tmp_path: pathlib.Path) -> None:
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


# With 12 heads halves lie beside each other in a product, with 20 they do not. What is said of each
# is how it shows: numbers that are wrong, or what the emulator refuses.
WRONG = "wrong numbers"
CODES_EMPTY = "mbarrier_arrive(shared + CODES_EMPTY_AT + place * 8);"
VALUES_EMPTY = "mbarrier_wait(shared + VALUES_EMPTY_AT + to.slot * 8, to.parity ^ 1);"
PUBLISHED = "mbarrier_wait(shared + PUBLISHED_AT + side.slot * 8, side.parity);"
UNFENCED = "a matrix product or copy reads what thread"
OVERWRITTEN = "overwritten while a matrix product that reads it was not waited for"
AGAIN = "more arrivals at an mbarrier than its count"


@pytest.mark.parametrize(
    ("heads", "edits", "tuning", "shows"),
    [
        # Values and queries are read that were written by ordinary stores and nobody fenced.
        (20, [("            fence_async_shared();\n            __syncwarp();",
               "            __syncwarp();")], {}, UNFENCED),
        (12, [("    fence_async_shared();\n    barrier_wait(BOTH, CONSUMERS);\n}",
               "    barrier_wait(BOTH, CONSUMERS);\n}")], {}, UNFENCED),
        # Buffers are filled anew while they are read.
        (20, [("mbarrier_wait(shared + CODES_EMPTY_AT + place * 8, codes.parity ^ 1);", "")],
         {}, AGAIN),
        (12, [(VALUES_EMPTY, "")], {"VALUE_SLOTS": 4}, f"{UNFENCED}|{OVERWRITTEN}"),
        (12, [("mbarrier_wait(shared + SIDE_EMPTY_AT + side.slot * 8, side.parity ^ 1);", "")],
         {"SIDE_STAGES": 2}, AGAIN),
        # P is read before it is there.
        (20, [(PUBLISHED, "")],
         {}, WRONG),
        # P overwrites rotary columns that another warp still multiplies.
        (12, [("barrier_wait(OWN + group, 128);", "")], {}, OVERWRITTEN),
        # Rows beyond the length are left in the values; a row sees one key too many.
        (20, [("if (valid < PAGE) {", "if (false) {")], {}, WRONG),
        (12, [("if (key >= limit)", "if (key > limit)")], {}, WRONG),
        # What the first four bits leave out is lost, of queries and of weights.
        (20, [("low = pack_e4m3(x0 - h0, x1 - h1, x2 - h2, x3 - h3);", "low = 0;")], {}, WRONG),
        (12, [("low = halves_to_e4m3(sub_f16x2(x01, h01), sub_f16x2(x23, h23));", "low = 0;")],
         {}, WRONG),
        # Keys in another order than weights.
        (12, [("permute_bytes(x[0], x[1], 0x6420)", "permute_bytes(x[0], x[1], 0x6240)")],
         {}, WRONG),
        # A page's side is asked for ahead: that of the codes' page comes in its place; or so far
        # ahead that its stage waits for scores whose codes were not asked for.
        (12, [("bring_side(side_step, ahead.id);", "bring_side(side_step, walk.id);")], {}, WRONG),
        (20, [("side_step <= step + SIDE_LEAD;", "side_step <= step + SIDE_STAGES;")],
         {"SIDE_STAGES": 2}, "deadlock"),
        # Both teams turn the same quarters; a quarter is announced by the first of its team; one of
        # the team leaves a piece out.
        (12, [("int c = team; c < QUARTERS", "int c = 0; c < QUARTERS")], {}, UNFENCED),
        (20, [("mbarrier_init(shared + VALUES_FULL_AT + i * 8, TEAM);",
               "mbarrier_init(shared + VALUES_FULL_AT + i * 8, 1);")], {}, UNFENCED),
        (12, [("turn_quarters<11, 5>", "turn_quarters<11, 4>")], {}, WRONG),
        # Scales are read before they are turned, or turned before they have landed.
        (12, [("mbarrier_wait(shared + SCALES_FULL_AT + side.slot * 8, side.parity);", "")],
         {}, WRONG),
        (20, [("        const Ring<SIDE_STAGES> side(step);\n"
               "        mbarrier_wait(shared + SIDE_FULL_AT + side.slot * 8, side.parity);\n",
               "        const Ring<SIDE_STAGES> side(step);\n")], {}, "deadlock"),
        # Scales behind the sequence's end, which may be anything, count.
        (12, [("if (2 * lane < valid) two.x", "two.x"),
              ("if (2 * lane + 1 < valid) two.y", "two.y")], {}, WRONG),
        # Released too early: codes before they are turned, a side by the first warpgroup that has
        # read it, values before their weights are there (a
        # slot is then filled twice before it is waited for, which its parity does not tell).
        (20, [(CODES_EMPTY, ""),
              (VALUES_EMPTY, "if (lane == 0) " + CODES_EMPTY + VALUES_EMPTY)],
         {"VALUE_SLOTS": 4}, WRONG),
        (12, [("mbarrier_init(shared + SIDE_EMPTY_AT + i * 8, 8);",
               "mbarrier_init(shared + SIDE_EMPTY_AT + i * 8, 4);")], {"SIDE_STAGES": 2}, WRONG),
        (12, [("if (piece == PIECES - 1) read(ci);", ""),
              (PUBLISHED, "for (u32 c = group * 2; c < group * 2 + 2; ++c) release(shared + "
               "VALUES_EMPTY_AT + Ring<VALUE_SLOTS>(number * QUARTERS + c).slot * 8, lane);"
               + PUBLISHED)],
         {"VALUE_SLOTS": 4}, "deadlock"),
        # The products of a page are added once a product has been given, not once it is done.
        (20, [("                    wgmma_wait<0>();\n                    add(d, ci, piece, 0);",
               "                    add(d, ci, piece, 0);\n                    wgmma_wait<0>();")],
         {}, WRONG),
    ],
    ids=[
        "values_unfenced", "queries_unfenced", "early_codes", "early_values", "early_side",
        "early_weights", "early_overwrite", "unclear_rows", "mask", "queries_rounded",
        "weights_rounded", "keys_swapped", "side_of_another_page",
        "sides_too_far_ahead", "teams_alike", "one_announces", "piece_left_out", "scales_unturned",
        "scales_not_landed", "unclear_scales", "codes_released", "side_released",
        "values_released", "product_not_awaited",
    ],
)  # fmt: skip
def test_a_defect_with_fp8_is_seen(
    heads: int,
    edits: list[tuple[str, str]],
    tuning: dict[str, int],
    shows: str,
    tmp_path: pathlib.Path,
) -> None:
    call = Call(2, heads, [900, 100], fp8=True, seed=9)
    seen = outcomes(call, edits, tuning, shows, tmp_path)
    assert re.search(shows, seen[-1] if seen else ""), f"wanted {shows}, saw {seen}"


def outcomes(
    call: Call, edits: list[tuple[str, str]], tuning: dict[str, int], until: str, at: pathlib.Path
) -> list[str]:
    """How an edited kernel fails in several orders of events, up to the first one ``until``."""
    source = device_code.path(torch_hopper.FP8_SOURCE)
    for other in (source, *source.parent.glob("*.cuh")):
        text = other.read_text()
        if other == source:
            for right, wrong in edits:
                assert text.count(right) == 1, "the defect's place is gone: write it anew"
                text = text.replace(right, wrong)
        (at / other.name).write_text(text)
    seen: list[str] = []
    with mock.patch.object(device_code, "path", return_value=at / source.name):
        emulator._library.cache_clear()
        try:
            for mode, seed in (("late", 0), ("early", 0), ("drawn", 1), ("drawn", 2)):
                try:
                    (out,) = call.run(2, mode, seed, **tuning)
                except emulator.EmulationError as error:
                    seen.append(str(error))
                else:
                    if not call.error(out) < BOUND[True]:  # NaN counts
                        seen.append(WRONG)
                if seen and re.search(until, seen[-1]):
                    break
        finally:
            emulator._library.cache_clear()
    return seen


def test_o_is_brought_to_a_larger_maximum_with_fp8(tmp_path: pathlib.Path) -> None:
    """Scores so large that a later page's maximum exceeds the first's by more than 2^8."""
    call = Call(2, 20, [900, 100], fp8=True, seed=9)
    call.q *= 8
    (out,) = call.run(2)
    assert call.error(out) < BOUND[True]
    edit = ("if (__any_sync(0xffffffffu, larger)) {", "if (false) {")
    assert WRONG in outcomes(call, [edit], {}, WRONG, tmp_path)


@pytest.mark.parametrize(
    ("heads", "tuning", "said"),
    [
        # A slot's turns would be two teams', and a barrier's parity cannot tell two turns behind
        # from none: the card hangs, where the emulator may not.
        (16, {"VALUE_SLOTS": 5}, "turns that two teams share"),
        (64, {"VALUE_SLOTS": 5}, "turns that two teams share"),
        (16, {"VALUE_SLOTS": 2}, "a deadlock"),
        (16, {"CODE_STAGES": 1}, "a deadlock"),
        (16, {"SIDE_STAGES": 1}, "a deadlock"),
        (16, {"SIDE_STAGES": 2, "SIDE_LEAD": 2}, "a deadlock"),
        (64, {"WIDTH": 256}, "a quarter is a whole number of products"),
        (16, {"WIDTH": 96}, "a quarter is a whole number of products"),
        (16, {"CODE_STAGES": 4}, "more shared memory than a block can have"),
        (64, {"VALUE_SLOTS": 8}, "more shared memory than a block can have"),
    ],
    ids=str,
)
def test_switches_that_do_not_fit_do_not_compile(
    heads: int, tuning: dict[str, int], said: str
) -> None:
    call = Call(1, heads, [64], fp8=True)
    with pytest.raises(emulator.EmulationError, match=f"static assertion failed: {said}"):
        call.run(1, **tuning)
