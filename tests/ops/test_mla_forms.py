"""The three forms of latent attention by count: against loops, and where they cross."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro import counts
from zenrepro.errors import InputError
from zenrepro.ops.mla import forms
from zenrepro.ops.mla.forms import FORMS, Shape
from zenrepro.ops.mla.sizes import LATENT, NOPE, QUERY, ROW, VALUE

SHAPES = st.builds(
    lambda batch, queries, more, heads, causal: Shape(
        batch, queries, queries + more, heads, causal
    ),
    st.integers(1, 3), st.integers(1, 40), st.integers(0, 40), st.integers(1, 3), st.booleans(),
)  # fmt: skip


def by_loops(form: str, shape: Shape, rows: int) -> float:
    """FLOPs counted one product at a time."""
    total = 0
    for _ in range(shape.batch * shape.heads):
        for start in range(0, shape.query_len, rows):
            tile = range(start, min(start + rows, shape.query_len))
            seen = [
                shape.cache_len - shape.query_len + t + 1 if shape.causal else shape.cache_len
                for t in tile
            ]
            for keys in seen:
                if form == "absorbed":
                    total += 2 * (NOPE * LATENT + keys * ROW + keys * LATENT + LATENT * VALUE)
                else:
                    total += 2 * keys * (QUERY + VALUE)
            if form == "fused":
                total += 2 * max(seen) * LATENT * (NOPE + VALUE)
        if form == "decompressed":
            total += 2 * shape.cache_len * LATENT * (NOPE + VALUE)
    return float(total)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, rows=st.integers(1, 50), form=st.sampled_from(FORMS))
def test_flops_are_those_of_loops(shape: Shape, rows: int, form: forms.Form) -> None:
    assert forms.work(form, shape, rows=rows).flops == by_loops(form, shape, rows)


@pytest.mark.parametrize("queries", [1, 33, 70])
def test_the_op_counts_the_form_with_the_fewest_flops(queries: int) -> None:
    shape = Shape(2, queries, 70, 3)
    work = counts.mla_prefill(
        batch=2, query_len=queries, cache_len=70, heads=3, head_dim=QUERY, value_dim=VALUE,
        causal=True, dtype="bf16",
    )  # fmt: skip
    assert work.flops == min(forms.work(form, shape).flops or 0 for form in FORMS)
    assert work.bytes == forms.work("fused", shape).bytes


def test_bytes_are_inputs_output_and_what_is_handed_over() -> None:
    shape = Shape(2, 3, 10, 4)
    least = 2 * (2 * 3 * 4 * (QUERY + VALUE) + 2 * 10 * ROW + 4 * LATENT * (NOPE + VALUE))
    assert forms.work("fused", shape).bytes == least
    keys_and_values = 2 * 10 * 4 * (QUERY + VALUE) * 2
    assert forms.work("decompressed", shape).bytes == least + 2 * keys_and_values
    latents = 2 * 3 * 4 * (ROW + LATENT) * 2
    assert forms.work("absorbed", shape).bytes == least + 2 * latents
    assert forms.work("fused", shape, dtype="fp32").bytes == 2 * least


def test_where_fusing_pays_and_where_it_costs() -> None:
    """One query: the tile loop computes what decompression does and stores none of it. A whole
    prefill: it projects every row once for each tile of queries that sees it."""
    one, all_of_them = Shape(32, 1, 4096, 24), Shape(4, 4096, 4096, 32)
    fused, stored, absorbed = (forms.work(form, one) for form in ("fused", *FORMS[:2]))
    assert fused.flops == stored.flops
    assert fused.bytes is not None
    assert stored.bytes is not None
    assert fused.bytes < stored.bytes / 20
    assert absorbed.flops is not None
    assert fused.flops is not None
    assert fused.flops > 100 * absorbed.flops
    assert forms.expanded_rows(one) == 4096
    assert forms.expanded_rows(all_of_them) == 128 * 32 * 33 / 2
    ratio = (forms.work("fused", all_of_them).flops or 0) / (
        forms.work("decompressed", all_of_them).flops or 1
    )
    assert 3.5 < ratio < 3.7
    assert forms.seconds("fused", all_of_them, 690e12, 4.3e12) > 3 * forms.seconds(
        "decompressed", all_of_them, 690e12, 4.3e12
    )


@pytest.mark.parametrize("cache_len", [300, 4096])
def test_crossings_are_where_the_cost_changes_sides(cache_len: int) -> None:
    def flops(form: forms.Form, queries: int) -> float:
        return forms.work(form, Shape(1, queries, cache_len, 24)).flops or 0.0

    found = forms.crossing("absorbed", "decompressed", cache_len, heads=24)
    assert found.query_len is not None
    assert 1 < found.query_len < cache_len
    for queries in range(1, cache_len + 1, max(1, cache_len // 60)):
        wins = flops("decompressed", queries) < flops("absorbed", queries)
        assert wins == (queries >= found.query_len)
    # From the second tile of queries on, fusing projects more.
    assert forms.crossing("fused", "decompressed", cache_len, heads=24).query_len == 129
    assert forms.crossing("decompressed", "fused", cache_len, heads=24).query_len is None


def test_bytes_into_the_loop_hold_the_weights_once_a_tile() -> None:
    shape = Shape(1, 1, 128, 1)
    assert forms.tile_bytes(shape, keys=64) == 2 * (128 * ROW + 2 * LATENT * (NOPE + VALUE))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="form wants decompressed, absorbed, fused, got 'other'"):
        forms.work("other", Shape(1, 1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows wants a positive whole number, got 0"):
        forms.work("fused", Shape(1, 1, 1, 1), rows=0)
    with pytest.raises(InputError, match="at least as many keys"):
        forms.work("fused", Shape(1, 2, 1, 1))
