"""Counts of attention over sequences of several lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import counts
from zenrepro.ops.attention.cases import CASES, Case, decode, prefill


def by_hand(case: Case) -> tuple[float, float]:
    """Every pair one by one, every element once."""
    pairs = 0
    for queries, keys in case.sequences:
        for t in range(queries):
            pairs += max(0, keys - queries + t + 1) if case.causal else keys
    width = case.head_dim + case.value_dim
    keys = sum(keys for _, keys in case.sequences)
    elements = (case.tokens * case.heads + keys * case.kv_heads) * width
    return 2.0 * pairs * case.heads * width, 2.0 * elements


@given(st.integers(1, 6), st.integers(8, 40), st.floats(0, 0.8), st.booleans())
def test_ragged_work_is_the_sum_over_the_sequences(
    batch: int, mean: int, skew: float, causal: bool
) -> None:
    for case in (
        prefill(None, batch, mean, 4, 16, kv_heads=2, causal=causal, layout="varlen", skew=skew),
        decode(None, batch, mean, 4, 2, 16, page_size=16, skew=skew),
    ):
        work = counts.attention_of(case.conditions("bf16"))
        assert (work.flops, work.bytes) == pytest.approx(by_hand(case))


def test_a_spread_prefill_does_more_than_an_even_one_and_a_decode_the_same() -> None:
    even = prefill(None, 4, 512, 8, 64, layout="varlen")
    spread = prefill(None, 4, 512, 8, 64, layout="varlen", skew=0.75)
    assert spread.tokens == even.tokens
    done = [counts.attention_of(case.conditions("bf16")).flops or 0 for case in (even, spread)]
    assert done[1] > 1.2 * done[0]
    steps = [decode(None, 8, 4096, 8, 2, 64, page_size=64, skew=skew) for skew in (0.0, 0.5)]
    first, second = (counts.attention_of(case.conditions("bf16")) for case in steps)
    assert first == second


def test_the_conditions_of_every_case_count_what_its_sequences_hold() -> None:
    for cases in CASES.values():
        for case in cases:
            if case.batch * case.query_len <= 2**12:
                work = counts.attention_of(case.conditions("bf16"))
                assert (work.flops, work.bytes) == pytest.approx(by_hand(case)), case
