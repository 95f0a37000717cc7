"""Whatever a results file holds, reading it is one line or whole records, never a traceback."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenrepro import records
from zenrepro.errors import InputError
from zenrepro.records import ResultsFile

PIECES = [b"null", b"[]", b"{}", b"-", b'"', b",", b"1e999", b"NaN", b"\\n", b"true", b'"a\\nb"']


def tried(data):
    try:
        return records.decode(data, "place")
    except InputError as error:
        return str(error)


@pytest.fixture(scope="module")
def whole(build):
    made = [build(), build(implementation="jax.xla")]
    content = ResultsFile(schema=1, machine="cpu-test", experiment="attention", records=made)
    return records.encode(content)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damage_is_one_line(whole, data):
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set" and damaged:
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[at : at + data.draw(st.integers(1, 40))]
        else:
            damaged[at:at] = data.draw(st.sampled_from(PIECES))
    found = tried(bytes(damaged))
    if isinstance(found, str):
        assert "\n" not in found
        assert found.startswith("place")
    else:
        assert tried(records.encode(found)) == found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"started"', b'"sta\\nrted"'),
        (b'"batch":1', b'"batch":1e400'),
        (b'"batch":1', b'"batch":99999999999999999999999999'),
        (b'"batch":1', b'"batch":0'),
        (b'"batch":1', b'"batch":true'),
        (b'"batch":1', b'"skew":NaN'),
        (b'"batch":1', b'"skew":1e999'),
        (b'"op":"attention"', b'"op":[]'),
        (b'"op":"attention"', b'"op":{"a":1}'),
        (b'"op":"attention"', b'"optimisations":[["a"]]'),
        (b'"op":"attention"', b'"policy":"\\ud800"'),
        (b'"unit":"s"', b'"unit":"s\\n"'),
        (b"1.0,", b"1e999,"),
        (b'"batch":1', b'"batch":' + b"[" * 100_000),
    ],
)
def test_values_that_are_no_measurement_are_one_line(whole, old, new):
    assert old in whole
    found = tried(whole.replace(old, new))
    if b"99999" in new:
        # A whole number, however large, is a size.
        assert not isinstance(found, str)
        return
    assert isinstance(found, str), found
    assert "\n" not in found


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"schema":1,"records":' + b"[" * 100_000])
def test_brackets_without_end_are_one_line(data):
    assert "not a whole JSON file" in tried(data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": [1.0, 0.0]}, "time has a sample of 0"),
        ({"samples": [5e-324]}, "a sample is 5e-324"),
        ({"samples": [1e308]}, "a sample is 1e+308"),
        ({"unit": "W"}, "time in 'W'; wanted a unit like s"),
        ({"quantity": "latency", "unit": "B"}, "latency in 'B'; wanted a unit like s or ms/token"),
    ],
)
def test_numbers_that_no_device_gives_are_refused(build, changes, said):
    with pytest.raises(InputError, match=said.replace("+", r"\+")):
        records.check(build(**changes), "place")


def test_units_of_the_quantity_are_taken(build):
    for unit, quantity in (("us", "time"), ("ms/token", "latency"), ("TOP/s", "flop_rate")):
        records.check(build(unit=unit, quantity=quantity), "place")
