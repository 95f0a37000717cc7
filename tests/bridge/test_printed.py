"""What a printed number stands for: everything that rounds or truncates to it, and little more."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro.errors import InputError
from zenrepro.printed import Interval, interval, parse

numbers = st.decimals(
    min_value=Decimal(-10**7), max_value=Decimal(10**7), allow_nan=False, allow_infinity=False,
    places=9,
)  # fmt: skip
roundings = st.sampled_from([ROUND_DOWN, ROUND_HALF_UP])


def _contains(printed: str, value: Decimal) -> bool:
    exact = float(value)
    return interval(printed).meets(Interval(exact, exact))


@given(numbers, st.integers(0, 6), roundings, st.booleans())
def test_decimals(value: Decimal, places: int, rounding: str, separators: bool) -> None:
    rounded = value.quantize(Decimal(1).scaleb(-places), rounding=rounding)
    printed = f"{rounded:,f}" if separators else f"{rounded:f}"
    assert _contains(printed, value)


@given(numbers, st.integers(1, 5), roundings)
def test_whole_numbers_rounded_to_tens_and_more(value: Decimal, zeros: int, rounding: str) -> None:
    step = Decimal(10) ** zeros
    rounded = (value / step).quantize(Decimal(1), rounding=rounding) * step
    if rounded:
        assert _contains(f"{int(rounded):,}", value)


# Not the largest numbers with the most digits: there the slack for binary rounding is a digit.
@given(st.decimals(min_value=-999, max_value=999, places=9), st.integers(1, 5))
def test_a_last_digit_away_is_outside(value: Decimal, places: int) -> None:
    last = Decimal(1).scaleb(-places)
    rounded = value.quantize(last, rounding=ROUND_HALF_UP)
    assert not _contains(f"{rounded:f}", rounded + 2 * last)
    assert not _contains(f"{rounded:f}", rounded - 2 * last)


@given(numbers, st.integers(0, 6))
def test_value_and_sign(value: Decimal, places: int) -> None:
    rounded = value.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)
    assert parse(f"{rounded:f}")[0] == float(rounded)
    assert parse(f"{rounded:f}".replace("-", "\N{MINUS SIGN}"))[0] == float(rounded)


def test_examples() -> None:
    assert interval("28,400") == (28350.0, 28500.0)
    assert interval("-0.3") == pytest.approx((-0.4, -0.25))
    assert interval("72") == (71.5, 73.0)
    assert interval("2.50") == pytest.approx((2.495, 2.51))  # a printed zero after the point counts
    assert interval("0") == (-0.5, 1.0)


@pytest.mark.parametrize(
    "text", ["", "abc", "1.", ".5", "1,23", "1,2345", "1e3", "2-3", "12 %", "--1", "NaN"]
)
def test_what_is_not_a_printed_number(text: str) -> None:
    with pytest.raises(InputError, match="not a printed number"):
        interval(text)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(-100, 100))
def test_scaling_keeps_the_ends_in_order(low: float, width: float, factor: float) -> None:
    scaled = Interval(low, low + width).scaled(factor)
    assert scaled.low <= scaled.high
    assert scaled.meets(Interval(low * factor, low * factor))


def test_meeting() -> None:
    assert Interval(0, 1).meets(Interval(1, 2))
    assert Interval(0, 1).meets(Interval(0.2, 0.3))
    assert not Interval(0, 1).meets(Interval(1.001, 2))
    assert Interval(0.1 + 0.2, 1).meets(Interval(0, 0.3))  # binary rounding
