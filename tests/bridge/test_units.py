"""Units: one table with dimensions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import units
from zenrepro.errors import InputError

symbols = st.sampled_from(sorted(units.UNITS))


@given(symbols, symbols, st.floats(-1e12, 1e12))
def test_conversion_goes_there_and_back_or_says_why_not(a: str, b: str, value: float) -> None:
    if units.unit(a).dimension != units.unit(b).dimension:
        with pytest.raises(InputError, match="dimensions differ"):
            units.convert(value, a, b)
        return
    there = units.convert(value, a, b)
    assert units.convert(there, b, a) == pytest.approx(value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "source", "target", "wanted"),
    [
        (1.6, "TB/s", "GB/s", 1600.0), (3.32, "ms/token", "us/token", 3320.0), (41, "%", "1", 0.41),
        (2.1, "pp", "%", 2.1), (1, "GiB", "GB", 1.073741824), (8, "bit", "B", 1.0),
        (72, "Gparameter", "parameter", 72e9), (1, "TOP/s", "TFLOP/s", 1.0), (2, "x", "1", 2.0),
    ],
)  # fmt: skip
def test_examples(value: float, source: str, target: str, wanted: float) -> None:
    assert units.convert(value, source, target) == pytest.approx(wanted)


def test_dimensions_multiply_as_quantities_do() -> None:
    def dim(symbol: str) -> units.Dimension:
        return units.unit(symbol).dimension

    assert dim("token/s") / dim("W") == dim("token/J")
    assert dim("W") * dim("s") == dim("J")
    assert dim("GB") / dim("TB/s") == dim("ms")
    assert dim("Gparameter") * dim("bit/parameter") == dim("GB")
    assert dim("TFLOP/s") / dim("GB/s") == dim("FLOP/B")
    assert dim("token/s") / dim("count") == dim("token/s/chip")
    assert dim("J") ** 2 / dim("J") == dim("J")
    assert dim("%") == dim("x") == units.NONE


def test_unknown_unit_is_named_with_what_is_known() -> None:
    with pytest.raises(InputError, match=r"unknown unit 'tok/s'; known units: .*token/s"):
        units.unit("tok/s")
