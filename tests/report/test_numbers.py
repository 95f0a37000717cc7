"""The formatter: digits by uncertainty, the same in TeX and text, and never what is no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro.errors import InputError
from zenrepro.report import html, numbers, tex
from zenrepro.report.numbers import Missing, NotPrintable, Number
from zenrepro.units import UNITS

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (Number(31203.4, "token/s", 31180.0, 31240.0), "31,200 ± 40 token/s"),
        (Number(0.93567, "ms/token", 0.9340, 0.9370), "0.9357 ± 0.0017 ms/token"),
        (Number(2.5641, "x"), "2.56×"),
        (Number(28400.0, "token/s"), "28,400 token/s"),
        (Number(123456.7, "token/s"), "123,457 token/s"),
        (Number(0.0, "J", 0.0, 0.0), "0 J"),
        (Number(-0.3, "pp", digits="-0.3"), "−0.3 pp"),
        (Number(1.234e-7, "s"), "1.23×10⁻⁷ s"),
        (Number(1.234e12, "FLOP/s", 1.2e12, 1.3e12), "(1.23 ± 0.07)×10¹² FLOP/s"),
        (Number(9.96, "s", 9.0, 10.92), "10.0 ± 1.0 s"),
        (Number(72.0, "Gparameter", digits="72"), "72 billion"),
        (Number(5.0, "s", 5.0, 5.0), "5 s"),
        (Number(3.0, "s", -20.0, 26.0), "0 ± 30 s"),
    ],
)
def test_text(number: Number, expected: str) -> None:
    assert numbers.text(number).replace("\u00a0", " ") == expected


def test_a_published_number_keeps_its_digits() -> None:
    assert numbers.text(numbers.published("28,400", "token/s")) == "28,400\u00a0token/s"
    assert numbers.text(numbers.published("0.90", "1")) == "0.90"
    assert numbers.text(numbers.published("\u22121.8", "pp")) == "−1.8\u00a0pp"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, True])
def test_what_is_no_number_never_passes(value: object) -> None:
    for number in (Number(value), Number(1.0, "1", value, 2.0)):  # type: ignore[arg-type]
        if number.low is None and number.value == 1.0:
            continue  # an interval that is not known is allowed
        if value is True and number.value == 1.0:
            continue
        for formatter in (numbers.tex, numbers.text):
            with pytest.raises(NotPrintable):
                formatter(number)
    for finalise in (tex.finalise, html.finalise):
        with pytest.raises(NotPrintable):
            finalise(value)
        with pytest.raises(NotPrintable):
            finalise(1.5)  # a bare float has no unit and no digits


def test_an_unknown_unit_is_bad_input() -> None:
    with pytest.raises(InputError, match="unknown unit"):
        numbers.tex(Number(1.0, "furlong"))


@given(FINITE, FINITE, FINITE)
def test_the_printed_interval_holds_the_interval(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    mantissa, width, exponent = numbers.split(Number(value, "s", low, high))
    if width is None:
        assert low == value == high or Decimal(high) - Decimal(low) == 0
        return
    scale = Decimal(10) ** exponent
    middle, half = Decimal(mantissa) * scale, Decimal(width) * scale
    # Half a digit of rounding of the value is all that may be lost at either end.
    place = Decimal(width).adjusted() - (Decimal(width).as_tuple().digits[0] == 1)
    rounding = Decimal(1).scaleb(place) * scale / 2
    assert middle - half - rounding <= Decimal(repr(low))
    assert middle + half + rounding >= Decimal(repr(high))
    assert len(width.replace(".", "").strip("0")) <= 2
    assert Decimal(mantissa).as_tuple().exponent == Decimal(width).as_tuple().exponent


@given(FINITE)
def test_three_digits_are_kept(value: float) -> None:
    mantissa, width, exponent = numbers.split(Number(value, "s"))
    assert width is None
    shown, exact = Decimal(mantissa) * Decimal(10) ** exponent, Decimal(repr(value))
    assert abs(shown - exact) <= abs(exact) * Decimal("0.00501")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(3e-5, "s", "us"), (0.2, "s", "ms"), (4e12, "B/s", "TB/s"), (5.0, "s", "s"), (7.0, "x", "x"),
     (0.0, "s", "s"), (3.0, "token/s", "token/s"), (2e9, "B", "GB")],
)  # fmt: skip
def test_readable_units(value: float, unit: str, expected: str) -> None:
    assert numbers.readable(value, unit) == expected


def test_every_number_in_every_unit_compiles(compile_tex: Callable[[str], str]) -> None:
    samples = [
        Number(value, unit, value - abs(value) * spread, value + abs(value) * spread)
        for unit in UNITS
        for value in (0.0, -1.5, 123456.789, 1e-9, -2.5e13)
        for spread in (0.0, 0.02)
    ]
    body = [numbers.tex(n) + " " + numbers.tex(n, with_unit=False) for n in samples]
    body += [tex.bare_unit(unit) for unit in UNITS]
    body += [tex.missing(Missing(code)).replace(r"\missing", "") for code in numbers.CODES]
    words = compile_tex("\n\n".join(body))
    assert "nan" not in words.lower().replace("nano", "")
