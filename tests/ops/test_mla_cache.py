"""The latent cache: its bytes, its pages, its FP8 rows, and writing to it on each backend."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro import architecture, backends, counts, paths
from zenrepro.ops.mla import cache
from zenrepro.ops.mla.cache import Pages
from zenrepro.ops.mla.sizes import FP8_ROW_BYTES, LATENT, NOPE, PAGE, ROTARY, ROW, VALUE
from zenrepro.ops.precision import rounded

# Bytes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [None, "fp8_e4m3"])
def test_bytes_per_token_are_those_counted_and_those_allocated(form: str | None) -> None:
    torch = pytest.importorskip("torch")
    from zenrepro.ops.mla import torch_cache

    counted = counts.latent_row_bytes(latent=LATENT, rotary=ROTARY, dtype="bf16", cache_format=form)
    assert counted == (1152 if form is None else FP8_ROW_BYTES)
    pool = torch_cache.allocate(7, dtype=None if form else torch.bfloat16)
    assert pool.untyped_storage().nbytes() == 7 * PAGE * counted


@pytest.mark.parametrize("name", ["jax", "mlx"])
def test_jax_and_mlx_hold_the_same_bytes(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    backend = backends.open(name, "cpu")
    module = importlib.import_module(f"zenrepro.ops.mla.{name}_cache")
    wide = module.allocate(3, dtype=backend.asarray(np.zeros(1), "bf16").dtype)
    assert wide.nbytes == 3 * PAGE * 1152
    assert module.allocate(3).nbytes == 3 * PAGE * 656
    with pytest.raises(ValueError, match=r"^pages: wants at least one, got 0$"):
        module.allocate(0)


def test_published_sizes_of_the_latent() -> None:
    """The widths that kernels are written for are those of every model here."""
    for name, model in architecture.load(paths.find().root / "data" / "models").items():
        assert (model.kv_lora_rank, model.qk_rope_head_dim) == (LATENT, ROTARY), name
        assert (model.qk_nope_head_dim, model.v_head_dim) == (NOPE, VALUE), name


# Pages ------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 150)), min_size=1, max_size=12))
def test_slots_are_nobody_elses_and_in_order(steps: list[tuple[int, int]]) -> None:
    pages = Pages(20)
    written: dict[int, list[int]] = {}
    for sequence, tokens in steps:
        free = pages.free
        try:
            slots = pages.append(sequence, tokens)
        except MemoryError:
            assert pages.free == free
            continue
        written.setdefault(sequence, []).extend(slots.tolist())
    if not written:
        return
    every = [slot for slots in written.values() for slot in slots]
    assert len(set(every)) == len(every)
    assert pages.free == 20 - sum(-(-len(slots) // PAGE) for slots in written.values())
    names = list(written)
    table, lengths = pages.block_table(names), pages.lengths(names)
    for b, name in enumerate(names):
        assert lengths[b] == len(written[name])
        found = [int(table[b, i // PAGE]) * PAGE + i % PAGE for i in range(lengths[b])]
        assert found == written[name]
        assert (table[b, -(-lengths[b] // PAGE) :] == -1).all()


def test_rejected_tokens_give_their_pages_back() -> None:
    pages = Pages(4)
    pages.append(0, 130)
    assert pages.free == 1
    pages.shorten(0, 65)
    assert (pages.free, pages.lengths([0]).tolist()) == (2, [65])
    again = pages.append(0, 1)
    assert again.tolist() == [int(pages.block_table([0])[0, 1]) * PAGE + 1]
    pages.release(0)
    assert pages.free == 4
    with pytest.raises(ValueError, match="sequence 0 has None rows"):
        pages.release(0)


def test_pages_say_what_is_wrong() -> None:
    pages = Pages(2)
    pages.append(7, 64)
    with pytest.raises(MemoryError, match="sequence 7 wants 2 more pages of 64 rows, 1 are free"):
        pages.append(7, 65)
    assert pages.lengths([7]).tolist() == [64]
    with pytest.raises(ValueError, match=r"^tokens: wants at least one, got 0$"):
        pages.append(7, 0)
    with pytest.raises(ValueError, match=r"^length: sequence 7 has 64 rows, got 65$"):
        pages.shorten(7, 65)
    with pytest.raises(ValueError, match=r"^pages: wants at least one, got 0$"):
        Pages(0)
    pages.append(7, 1)
    with pytest.raises(ValueError, match=r"^width: wants at least 2 pages, got 1$"):
        pages.block_table([7], width=1)
    assert pages.block_table([7], width=4).shape == (1, 4)


# FP8 --------------------------------------------------------------------------------------------


def test_codes_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    every = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(every).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(cache.decode(every), theirs, equal_nan=True)
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.standard_normal(20000).astype(np.float32) * 10.0 ** rng.integers(-4, 3, 20000),
            theirs[np.isfinite(theirs)],
            (theirs[:126] + theirs[1:127]) / 2,  # ties
            -(theirs[:126] + theirs[1:127]) / 2,
            [0.0, -0.0, np.nan, 448.0, -448.0],
        ]
    ).astype(np.float32)
    values = values[~(np.abs(values) > 448)]
    codes = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(cache.encode(values) & 127, codes & 127)
    numbers = ~np.isnan(values)
    assert np.array_equal(cache.encode(values)[numbers], codes[numbers])
    beyond = np.array([449, 1e9, -1e9, np.inf], np.float32)
    assert np.array_equal(cache.decode(cache.encode(beyond)), [448, 448, -448, 448])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-20, 1e-3, 1.0, 300.0, 1e20]))
def test_what_storing_loses(seed: int, size: float) -> None:
    """Half a step of e4m3 (2^-4 of a number, or 2^-10 of the scale where subnormal), and half of
    bf16's 2^-8 in the rotary part."""
    rng = np.random.default_rng(seed)
    rows = (size * rng.standard_normal((3, ROW))).astype(np.float32)
    rows[0, :128] = 0
    packed = cache.quantise(rows)
    assert packed.shape == (3, FP8_ROW_BYTES)
    back = cache.dequantise(packed)
    scales = np.ascontiguousarray(packed[:, LATENT : LATENT + 16]).view("<f4")
    allowed = np.maximum(np.abs(rows[:, :LATENT]) * 2.0**-4, np.repeat(scales, 128, 1) * 2.0**-10)
    assert (np.abs(back - rows)[:, :LATENT] <= allowed * 1.000001).all()
    assert np.array_equal(back[:, LATENT:], rounded(rows[:, LATENT:], "bf16"))
    largest = np.abs(rows[:, :LATENT]).reshape(3, 4, 128).max(-1)
    kept = np.abs(back[:, :LATENT]).reshape(3, 4, 128).max(-1)
    assert np.allclose(kept, largest, rtol=1e-6)  # the largest of a group is 448 of its scale
    # Storing what is stored changes the codes of no number.
    assert np.array_equal(cache.dequantise(cache.quantise(back))[:, LATENT:], back[:, LATENT:])
    assert np.allclose(cache.dequantise(cache.quantise(back)), back, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", backends.NAMES)
def test_every_backend_packs_the_same_bytes(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    backend = backends.open(name, "cpu")
    module = importlib.import_module(f"zenrepro.ops.mla.{name}_cache")
    rng = np.random.default_rng(0)
    sizes = rng.choice([1e-6, 1.0, 1e5], (200, 1))
    rows = (sizes * rng.standard_normal((200, ROW))).astype(np.float32)
    rows[3] = 0
    packed = module.quantise(backend.asarray(rows, "fp32"))
    ours = cache.quantise(rows)
    mine = np.asarray(backend.numpy(packed)).astype(np.uint8)
    numbers = np.r_[0:LATENT, LATENT + 16 : FP8_ROW_BYTES]
    assert np.array_equal(mine[:, numbers], ours[:, numbers])
    scales = [np.ascontiguousarray(x[:, LATENT : LATENT + 16]).view("<f4") for x in (mine, ours)]
    # XLA divides by multiplying with the reciprocal: one unit in the last place.
    assert np.allclose(*scales, rtol=2.0**-23 if name == "jax" else 0, atol=0)
    target = backend.asarray(rows[:1], "fp32").dtype
    back = backend.numpy(module.dequantise(backend.whole(ours), target))
    assert np.array_equal(back, cache.dequantise(ours))


# Writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fp8", [False, True], ids=["fp32", "fp8"])
@pytest.mark.parametrize("name", backends.NAMES)
def test_append_writes_rows_to_their_slots_and_nothing_else(name: str, fp8: bool) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    backend = backends.open(name, "cpu")
    module = importlib.import_module(f"zenrepro.ops.mla.{name}_cache")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((70, ROW)).astype(np.float32)
    pages = Pages(5)
    pages.append(1, 10)
    slots = pages.append(0, 70)
    given = backend.asarray(rows, "fp32")
    pool = module.allocate(5, dtype=None if fp8 else given.dtype)
    whole = backend.whole(slots.astype(np.int64 if name == "torch" else np.int32))
    written = module.append(pool, given, whole)
    pool = pool if written is None else written
    flat = backend.numpy(pool).reshape(5 * PAGE, -1)
    if fp8:
        flat = cache.dequantise(flat.astype(np.uint8))
        assert np.allclose(flat[slots], cache.dequantise(cache.quantise(rows)), rtol=0.13, atol=0.1)
    else:
        assert np.array_equal(flat[slots], rows)
    others = np.setdiff1d(np.arange(5 * PAGE), slots)
    assert np.array_equal(flat[others], np.zeros((len(others), ROW)))


@pytest.mark.parametrize("name", backends.NAMES)
def test_append_names_what_is_wrong(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    backend = backends.open(name, "cpu")
    module = importlib.import_module(f"zenrepro.ops.mla.{name}_cache")
    kind = np.int64 if name == "torch" else np.int32
    rows, slots = backend.asarray(np.zeros((2, ROW)), "fp32"), backend.whole(np.array([1, 2], kind))
    pool = module.allocate(1, dtype=rows.dtype)
    with pytest.raises(ValueError, match=r"^rows: wants \[N, 576\], got \(2, 512\)$"):
        module.append(pool, rows[:, :512], slots)
    with pytest.raises(ValueError, match=r"^slots: wants int\d\d \[2\], one a row, got .*\(1,\)$"):
        module.append(pool, rows, slots[:1])
    with pytest.raises(ValueError, match=r"^cache: wants .*\[P, 64, 576\], got \(1, 32, 576\)"):
        module.append(pool[:, :32], rows, slots)
    with pytest.raises(ValueError, match=r"^rows: wants the cache's dtype .*32, got .*16$"):
        module.append(pool, backend.asarray(np.zeros((2, ROW)), "bf16"), slots)
    outside = backend.whole(np.array([1, 64], kind))
    if name == "jax":  # nothing is written there, nor from the end
        kept = module.append(pool, rows + 1, backend.whole(np.array([-1, 64], kind)))
        assert not np.asarray(kept).any()
        return
    with pytest.raises(ValueError, match=r"^slots: wants 0 to 63, got 64$"):
        module.append(pool, rows, outside)


def test_a_captured_append_drops_what_lies_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from zenrepro.ops.mla import arguments, torch_cache

    monkeypatch.setattr(arguments, "values", lambda array: None)
    rows = torch.arange(1.0, 4)[:, None].expand(3, ROW)
    pool = torch_cache.allocate(1, dtype=torch.float32)
    torch_cache.append(pool, rows, torch.tensor([-1, 5, 64]))
    assert torch.equal(pool[0, 5], rows[1])
    assert pool.count_nonzero() == ROW
    torch_cache.append(pool, rows + 9, torch.tensor([-1, 640, 64]))
    assert pool.count_nonzero() == ROW
    assert torch.equal(pool[0, 5], rows[1])
