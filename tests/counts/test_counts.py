"""Counted work: against brute force, and what it refuses."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import counts
from zenrepro.errors import InputError
from zenrepro.formats import BITS, element_bytes

SIZES = st.integers(min_value=1, max_value=40)


@given(SIZES, SIZES, st.booleans())
def test_pairs_are_those_of_a_bottom_right_mask(query_len: int, more: int, causal: bool) -> None:
    cache_len = query_len + more - 1
    seen = sum(
        1
        for i in range(query_len)
        for j in range(cache_len)
        if not causal or j <= cache_len - query_len + i
    )
    assert counts.attended_pairs(query_len, cache_len, causal) == seen


def test_causal_square_is_half_and_decode_is_whole() -> None:
    assert counts.attended_pairs(4096, 4096, True) / 4096**2 == pytest.approx(0.5, rel=1e-3)
    assert counts.attended_pairs(1, 4096, True) == 4096


def test_attention_by_hand() -> None:
    work = counts.attention(
        batch=2, query_len=3, cache_len=5, heads=4, kv_heads=2, head_dim=8, value_dim=6,
        causal=False, dtype="bf16",
    )  # fmt: skip
    assert work.flops == 2 * 4 * 15 * (2 * 8 + 2 * 6)
    q, k, v, o = 2 * 3 * 4 * 8, 2 * 5 * 2 * 8, 2 * 5 * 2 * 6, 2 * 3 * 4 * 6
    assert work.bytes == 2 * (q + k + v + o)


def test_attention_of_conditions_fills_what_they_leave_out() -> None:
    given = {"batch": 1, "seq_len": 16, "heads": 2, "head_dim": 8, "causal": True, "dtype": "fp32"}
    whole = counts.attention(
        batch=1, query_len=16, cache_len=16, heads=2, kv_heads=2, head_dim=8, value_dim=8,
        causal=True, dtype="fp32",
    )  # fmt: skip
    assert counts.attention_of(given) == whole
    with pytest.raises(InputError, match="lack 'batch'"):
        counts.attention_of({key: value for key, value in given.items() if key != "batch"})
    with pytest.raises(InputError, match="seq_len"):
        counts.attention_of({"batch": 1})


def test_materialised_scores_and_cache() -> None:
    size = counts.materialised_scores(batch=1, query_len=10, cache_len=20, heads=3, dtype="fp16")
    assert size == 4 * 3 * 10 * 20 * 2
    assert counts.cache_bytes_per_token(kv_heads=2, head_dim=8, value_dim=6, dtype="fp32") == 112


@given(SIZES, SIZES, SIZES, st.booleans())
def test_tiled_traffic_reads_the_keys_that_a_tile_sees(
    query_len: int, more: int, rows: int, causal: bool
) -> None:
    cache_len, group = query_len + more - 1, 3
    elements = 0
    for start in range(0, query_len, rows):
        tile = range(start, min(start + rows, query_len))
        seen = {
            j
            for i in tile
            for j in range(cache_len)
            if not causal or j <= cache_len - query_len + i
        }
        elements += len(tile) * (8 + 6) + len(seen) * (8 + 6)
    moved = counts.tiled_attention(
        batch=2, query_len=query_len, cache_len=cache_len, heads=2 * group, kv_heads=2, head_dim=8,
        value_dim=6, causal=causal, dtype="fp16", rows=rows,
    )  # fmt: skip
    assert moved == 2 * 2 * group * elements * 2


def test_tiles_by_hand() -> None:
    # M / 4d elements of 228 KiB in bf16 are 228 rows of 128, cut to d; of 48 KiB they are 48.
    assert counts.tile_rows(sram_bytes=228 * 1024, head_dim=128, dtype="bf16") == 128
    assert counts.tile_rows(sram_bytes=48 * 1024, head_dim=128, dtype="bf16") == 48
    given = {
        "batch": 1, "heads": 1, "kv_heads": 1, "head_dim": 128, "value_dim": 128,
        "causal": False, "dtype": "bf16", "rows": 128,
    }  # fmt: skip
    once = counts.tiled_attention(query_len=8192, cache_len=8192, **given)
    assert once == 2 * (2 * 8192 * 128 + 64 * 8192 * 256)
    twice = counts.tiled_attention(query_len=16384, cache_len=16384, **given)
    assert 3.9 < twice / once < 4  # N², though the footprint grows with N
    one_tile = counts.tiled_attention(query_len=128, cache_len=128, **given)
    least = counts.attention_of({**given, "seq_len": 128}).bytes
    assert one_tile == least  # a single tile moves what must move


def test_matmul_and_copy() -> None:
    work = counts.matmul(m=2, n=3, k=4, dtype="fp8_e4m3", out_dtype="bf16")
    assert (work.flops, work.bytes) == (48, 2 * 4 + 4 * 3 + 2 * 2 * 3)
    assert counts.copy(10).bytes == 20


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, None])
def test_sizes_are_positive_whole_numbers(wrong: object) -> None:
    with pytest.raises(InputError, match="m wants a positive whole number"):
        counts.matmul(m=wrong, n=1, k=1, dtype="fp32")  # type: ignore[arg-type]


def test_causal_without_keys_is_refused() -> None:
    with pytest.raises(InputError, match="at least as many keys"):
        counts.attended_pairs(5, 4, True)


def test_every_format_has_a_size() -> None:
    from zenrepro.conditions import FORMATS

    assert set(BITS) == set(FORMATS)
    assert element_bytes("int4") == 0.5
    with pytest.raises(InputError, match="fp7"):
        element_bytes("fp7")


def test_a_cache_hides_keys_that_are_read_again_until_it_is_too_small() -> None:
    card = {"multiprocessors": 132, "cache_bytes": 50 * 2**20}
    given = {
        "batch": 1, "heads": 32, "kv_heads": 32, "head_dim": 128, "value_dim": 128,
        "causal": False, "dtype": "bf16",
    }  # fmt: skip

    def moved(length: int, **more: object) -> float:
        sizes = {"query_len": length, "cache_len": length, **given, **card, **more}
        return counts.tiled_attention_behind_cache(rows=128, **sizes)  # type: ignore[arg-type]

    def least(length: int) -> float:
        return counts.attention_of({**given, "seq_len": length}).bytes or 0.0

    for length in (512, 4096, 16384, 65536):  # a head's keys and values: 512 bytes a token
        assert moved(length) == least(length)
    # 131072 tokens of a head are 64 MiB; its 1024 tiles take eight or nine rounds of 132.
    keys = 32 * 131072 * 512
    assert least(131072) + 7 * keys < moved(131072) < least(131072) + 8 * keys
    assert moved(131072, cache_bytes=2**27) == least(131072)
    assert moved(131072, causal=True) < moved(131072)
    bare = counts.tiled_attention(query_len=131072, cache_len=131072, rows=128, **given)
    assert moved(131072) < bare
    with pytest.raises(InputError, match="cache_bytes"):
        moved(512, cache_bytes=0)


@given(
    st.integers(1, 30), st.integers(1, 5), st.integers(1, 9), st.integers(1, 12),
    st.integers(1, 60),
)  # fmt: skip
def test_the_model_of_the_cache_is_one_that_drops_the_least_recently_used(
    tiles: int, heads: int, multiprocessors: int, keys: int, held: int
) -> None:
    """Tile by tile, round by round, with a cache of ``held`` blocks of keys and values: where it
    holds more than the heads of any round need, or less than those of any, the model is exact."""
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    missed = 0
    work = [head for head in range(heads) for _ in range(tiles)]
    rounds = [
        sorted(set(work[start : start + multiprocessors]))
        for start in range(0, len(work), multiprocessors)
    ]
    for at_work in rounds:
        for block in range(keys):
            for head in at_work:
                missed += (head, block) not in cache
                cache[head, block] = None
                cache.move_to_end((head, block))
                if len(cache) > held:
                    cache.popitem(last=False)
    given = {"batch": 1, "heads": heads, "kv_heads": heads, "head_dim": 8, "value_dim": 8}
    moved = counts.tiled_attention_behind_cache(
        **given, query_len=4 * tiles, cache_len=keys, causal=False, dtype="int8", rows=4,
        multiprocessors=multiprocessors, cache_bytes=16 * held,
    )  # fmt: skip
    counted = (moved - 2 * heads * 4 * tiles * 8) / 16  # less queries and output; a block is a key
    assert heads * keys <= missed <= sum(map(len, rounds)) * keys
    if held >= keys * max(map(len, rounds)) or held < keys * min(map(len, rounds)):
        assert counted == missed
