"""Conditions: one canonical form for claims and records."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import conditions
from zenrepro.conditions import FORMATS, KEYS, METRICS, OPS, PHASES, QUANTITIES, canonical
from zenrepro.errors import InputError

# The vocabulary that claims and records share: a new key enters here too.
CONTRACT = """op phase model platform batch seq_len cache_len query_len heads kv_heads head_dim
value_dim causal dtype tokens experts top_k hidden intermediate skew m n k format group_size policy
optimisations batching overlap workload gamma task draft_model acceptance_source weights
parallelism chips power_mode layout page_size"""

texts = st.text(min_size=1, max_size=12)
sizes = st.integers(1, 10**6)
good = st.fixed_dictionaries(
    {},
    optional={
        "op": st.sampled_from(OPS), "phase": st.sampled_from(PHASES),
        "dtype": st.sampled_from(FORMATS), "format": st.sampled_from(FORMATS),
        "seq_len": sizes, "heads": sizes, "chips": sizes,
        "batch": sizes, "query_len": sizes, "causal": st.booleans(), "overlap": st.booleans(),
        "skew": st.floats(0.1, 0.9), "model": texts, "platform": texts,
        "optimisations": st.lists(texts, max_size=4),
    },
)  # fmt: skip


def test_keys_are_the_contract_s() -> None:
    assert set(CONTRACT.split()) <= set(KEYS)


@given(good)
def test_canonical_is_idempotent_and_ordered(given_: dict[str, Any]) -> None:
    once = canonical(given_)
    assert canonical(once) == once
    assert list(once) == sorted(once)
    assert set(given_) <= set(once)


@given(good, st.randoms())
def test_order_does_not_matter(given_: dict[str, Any], random: Any) -> None:
    keys = list(given_)
    random.shuffle(keys)
    assert canonical({k: given_[k] for k in keys}) == canonical(given_)


def test_decode_tokens_are_filled_in_and_checked() -> None:
    decode = {"phase": "decode", "batch": 8, "query_len": 6}
    assert canonical(decode)["tokens"] == 48
    assert canonical({**decode, "tokens": 48})["tokens"] == 48
    assert "tokens" not in canonical({**decode, "phase": "prefill"})
    with pytest.raises(InputError, match="tokens is 8, but batch x query_len is 48"):
        canonical({**decode, "tokens": 8})


def test_a_layout_is_told_unless_it_is_the_ordinary_one() -> None:
    assert canonical({"layout": "dense", "batch": 2}) == {"batch": 2}
    paged = {"layout": "paged", "page_size": 64}
    assert canonical(paged) == paged
    assert canonical({"layout": "varlen"}) == {"layout": "varlen"}


@pytest.mark.parametrize("op", conditions.RAGGED_OPS)
def test_skew_of_lengths_is_a_part_of_their_mean_and_not_told_where_there_is_none(op: str) -> None:
    assert canonical({"op": op, "skew": 0.9})["skew"] == 0.9
    assert canonical({"op": op, "skew": 0}) == {"op": op}
    for wrong in (1, -0.1, 10.0):
        with pytest.raises(InputError, match="skew of lengths wants a number from 0 to below 1"):
            canonical({"op": op, "skew": wrong})
    assert canonical({"op": "moe_layer", "skew": 10.0})["skew"] == 10.0


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({"batch": 0}, "batch wants a positive whole number"), ({"batch": True}, "batch wants"),
        ({"batch": 2.0}, "batch wants"), ({"batch": "2"}, "batch wants"),
        ({"causal": 1}, "causal wants true or false"), ({"dtype": "float16"}, "dtype wants one of"),
        ({"phase": "warmup"}, "prefill, decode"), ({"op": "dance"}, "op wants one of"),
        ({"skew": float("nan")}, "skew wants a number"), ({"skew": True}, "skew wants"),
        ({"model": ""}, "non-empty text"), ({"model": 7}, "non-empty text"),
        ({"optimisations": "all"}, "list of texts"), ({"optimisations": [1]}, "list of texts"),
        ({"layout": "tree"}, "layout wants one of dense, varlen, paged"),
        ({"page_size": 0}, "page_size wants a positive"),
        ({"bacth": 2}, "unknown condition 'bacth'; known: .*batch"),
    ],
)  # fmt: skip
def test_bad_conditions_name_place_and_key(given_: dict[str, Any], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted) as error:
        canonical(given_, "claim 'x'")
    assert str(error.value).startswith("claim 'x': ")


def test_lists_are_sets_of_texts() -> None:
    assert canonical({"optimisations": ["b", "a", "b"]}) == {"optimisations": ("a", "b")}


def test_metrics_are_of_known_quantities() -> None:
    assert set(METRICS) <= set(QUANTITIES)
    assert all(METRICS.values())
    assert tuple(sorted(set(conditions.KEYS))) == conditions.KEYS
