"""The interval of the median keeps its promise whatever the distribution."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro.errors import InputError
from zenrepro.stats import Summary, compare, ratio, summarise
from zenrepro.stats.intervals import _rank, difference, scaled, total

FINITE = st.floats(-1e12, 1e12, allow_nan=False)
DRAWS = {
    "normal": (lambda r, shape: r.normal(10, 1, shape), 10.0),
    "lognormal": (lambda r, shape: r.lognormal(0, 1, shape), 1.0),
    "exponential": (lambda r, shape: r.exponential(1, shape), math.log(2)),
    "bimodal": (lambda r, shape: r.choice([1.0, 5.0], shape) + r.uniform(0, 3, shape), 4.0),
}


@given(st.lists(FINITE, min_size=1, max_size=60))
def test_interval_holds_the_median_and_lies_within_the_samples(samples):
    summary = summarise(samples)
    assert min(samples) <= summary.low <= summary.value <= summary.high <= max(samples)
    assert summary.value == pytest.approx(float(np.median(samples)), rel=1e-12, abs=1e-300)
    assert summary.n == len(samples)


@given(st.lists(FINITE, min_size=1, max_size=40), st.randoms())
def test_order_of_samples_does_not_matter(samples, random):
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert summarise(samples) == summarise(shuffled)


@pytest.mark.parametrize("n", [*range(6, 60), 100, 250, 999, 1000, 1500])
def test_rank_is_the_largest_with_enough_coverage(n):
    def missed(rank):
        return 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n

    rank = _rank(n)
    assert missed(rank) <= 0.05
    # Above 1000 the approximation may give away a rank or two, never coverage.
    assert missed(rank + (1 if n < 1000 else 3)) > 0.05


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("n", [7, 20, 51])
def test_median_interval_covers_as_promised(name, n):
    draw, true = DRAWS[name]
    samples = draw(np.random.default_rng(7), (3000, n))
    hits = sum(s.low <= true <= s.high for s in map(summarise, samples))
    # 3000 trials: the standard error of a share of 0.95 is 0.004.
    assert hits / 3000 >= 0.95 - 3 * 0.004


@pytest.mark.parametrize("name", ["lognormal", "exponential", "bimodal"])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (10, 30), (30, 30)])
def test_ratio_interval_covers_as_promised(name, n, m):
    draw, true = DRAWS[name]
    r = np.random.default_rng(11)
    a, b = draw(r, (2000, n)), 3 * draw(r, (2000, m))
    ratios = [ratio(summarise(x), summarise(y)) for x, y in zip(a, b, strict=True)]
    hits = sum(x.low <= 1 / 3 <= x.high for x in ratios)
    assert 0.93 <= hits / 2000 <= 0.995
    assert true > 0


@given(st.floats(0.1, 10), st.floats(0, 3), st.floats(0, 3))
def test_ratio_with_an_exact_number_is_scaling(value, below, above):
    a = Summary(value, value / (1 + below), value * (1 + above), 9)
    out = ratio(a, Summary(2.0, 2.0, 2.0, 1))
    assert out == pytest.approx((value / 2, a.low / 2, a.high / 2, 1))


def test_ratio_of_what_may_be_zero_is_unknown():
    assert ratio(Summary(1.0, 0.0, 2.0, 9), Summary(1.0, 1.0, 1.0, 9)) is None


def test_arithmetic_of_exact_numbers_is_exact():
    two, five = Summary(2.0, 2.0, 2.0, 1), Summary(5.0, 5.0, 5.0, 1)
    assert difference(two, five)[:3] == (-3.0, -3.0, -3.0)
    assert total([two, five, five])[:3] == (12.0, 12.0, 12.0)
    assert scaled(Summary(2.0, 1.0, 4.0, 9), -1.0, 1.0) == (-1.0, -3.0, 0.0, 9)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(InputError):
        summarise(bad)


def test_equal_sets_rarely_differ_and_shifted_ones_do():
    r = np.random.default_rng(3)
    same = sum(bool(compare(*r.lognormal(0, 0.3, (2, 20))).differs) for _ in range(1000))
    assert same / 1000 <= 0.05 + 3 * 0.007
    shifted = sum(
        bool(compare(r.lognormal(0, 0.1, 20), 1.3 * r.lognormal(0, 0.1, 20)).differs)
        for _ in range(200)
    )
    assert shifted / 200 > 0.95


def test_too_few_samples_cannot_tell():
    assert compare([1.0, 1.1, 1.2], [9.0, 9.1, 9.2, 9.3]).differs is None
    assert compare([1.0], [2.0], exact=True).differs is True
    assert compare([2.0], [2.0], exact=True).differs is False


def test_ratio_reads_b_over_a():
    out = compare([1.0] * 8, [2.0] * 8)
    assert out.ratio[:3] == (2.0, 2.0, 2.0)
    assert out.differs is True


def test_sets_around_zero_are_compared_by_their_intervals():
    out = compare([-1.0] * 8, [1.0] * 8)
    assert out.ratio is None
    assert out.differs is True
