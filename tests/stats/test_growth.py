"""Exponents of power laws: exact ones, noisy ones, and curves that are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro.errors import InputError
from zenrepro.stats import exponent

SIZES = [512, 1024, 2048, 4096, 8192]


@given(st.floats(-3, 3), st.floats(1e-6, 1e6))
def test_a_power_law_gives_its_power(power, factor):
    found = exponent(SIZES, [factor * n**power for n in SIZES])
    assert found.value == pytest.approx(power, abs=1e-9)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 1e-6
    assert found.n == 5


def test_by_hand():
    # Values 1, 4, 8 at 1, 2, 4: logs 0, 2, 3 on 0, 1, 2. Slope 3/2; residuals -1/6, 1/3, -1/6.
    found = exponent([1, 2, 4], [1, 4, 8])
    assert found.value == pytest.approx(1.5)
    half = 12.706 * (1 / 6 / 1 / 2) ** 0.5
    assert found.high - found.value == pytest.approx(half)


def test_the_interval_keeps_its_promise():
    draws = np.random.default_rng(0).normal(0, 0.1, (2000, len(SIZES)))
    held = 0
    for noise in draws:
        found = exponent(SIZES, np.exp(1.3 * np.log(SIZES) + noise))
        held += found.low <= 1.3 <= found.high
    assert 0.935 < held / 2000 < 0.965


def test_a_bend_widens_the_interval():
    straight = exponent(SIZES, [n**2 for n in SIZES])
    bent = exponent(SIZES, [1e4 * n + n**2 for n in SIZES])
    assert 1 < bent.value < 2
    assert bent.high - bent.low > 0.1 > straight.high - straight.low


@pytest.mark.parametrize(
    ("sizes", "values", "words"),
    [
        ([1, 2], [1, 2], "3 points"),
        ([1, 2, 4], [1, 2], "3 sizes, 2 values"),
        ([1, 2, 4], [1, 0, 2], "positive"),
        ([1, 2, 4], [1, -1, 2], "positive"),
        ([1, 2, 4], [1, float("nan"), 2], "positive"),
        ([1, 2, float("inf")], [1, 2, 3], "positive"),
        ([2, 2, 2], [1, 2, 3], "two sizes"),
    ],
)
def test_what_has_no_slope_is_refused(sizes, values, words):
    with pytest.raises(InputError, match=words):
        exponent(sizes, values)
