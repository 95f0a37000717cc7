"""Whatever stands in a file of claims: it loads, or one line says what is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import claims, documents, specs
from zenrepro.errors import InputError

ROOT = Path(__file__).parents[2]
EXAMPLE = documents.read_yaml(ROOT / "docs/example/data/published/example.yaml")
SHEET = documents.read_yaml(ROOT / "data/hardware/nvidia-h100-sxm.yaml")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-10, 10**18), st.floats(), st.text(max_size=6),
    st.sampled_from(["ratio", "share", "interval", "formula", "1,000", "kestrel.batch", "x"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a decoded document."""
    found: list[tuple[Any, Any]] = []
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, inner in items:
        found.append((node, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


def _one_line(error: InputError) -> None:
    assert str(error).startswith("f.yaml: ")
    assert "\n" not in str(error)


@given(st.data())
def test_one_changed_value_never_crashes_claims(data: st.DataObject) -> None:
    raw = copy.deepcopy(EXAMPLE)
    places = _places(raw)
    container, key = places[data.draw(st.integers(0, len(places) - 1))]
    container[key] = data.draw(values)
    try:
        publication = claims.parse(raw, "f.yaml")
    except InputError as error:
        _one_line(error)
        return
    for claim in publication.claims:
        if claim.printed is not None or claim.kind == "interval":
            low, high = claim.interval()
            assert low <= high
    again = claims.parse(msgspec.to_builtins(publication), "f.yaml")
    assert msgspec.to_builtins(again) == msgspec.to_builtins(publication)


@given(st.data())
def test_one_changed_value_never_crashes_datasheets(data: st.DataObject) -> None:
    raw = copy.deepcopy(SHEET)
    places = _places(raw)
    container, key = places[data.draw(st.integers(0, len(places) - 1))]
    container[key] = data.draw(values)
    try:
        specs.check(raw, "f.yaml")
    except InputError as error:
        _one_line(error)


@given(st.text(max_size=60))
def test_any_text_is_yaml_or_one_line_says_not(text: str) -> None:
    try:
        documents.decode_yaml(text, "f.yaml")
    except InputError as error:
        _one_line(error)


def test_a_line_break_in_a_key_is_shown_escaped() -> None:
    raw = {**copy.deepcopy(EXAMPLE), "report": {"\n": None}}
    with pytest.raises(InputError, match=r"unknown field `\\n`"):
        claims.parse(raw, "f.yaml")


def test_a_key_given_twice_is_refused() -> None:
    text = yaml.safe_dump(EXAMPLE)
    assert documents.decode_yaml(text, "f.yaml") == EXAMPLE
    with pytest.raises(InputError, match="key 'unit' twice"):
        documents.decode_yaml("claims:\n - {unit: s, id: a, unit: ms}", "f.yaml")
