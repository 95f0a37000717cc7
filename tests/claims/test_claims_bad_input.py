"""Bad claims and datasheets: one clear line that names the file, the claim and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zenrepro import claims, specs
from zenrepro.errors import InputError


def _claim(**changes: Any) -> dict[str, Any]:
    return {
        "id": "r.rate", "where": {"part": "table", "line": 3}, "kind": "scalar",
        "quantity": "throughput", "metric": "rate", "printed": "1,200", "value": 1200,
        "unit": "token/s", "conditions": {"batch": 4},
    } | changes  # fmt: skip


def _file(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    content = {"schema": 1, "report": {"title": "R", "version": "1"}, "claims": list(entries)}
    return content | changes


def _ratio(**changes: Any) -> dict[str, Any]:
    return _claim(
        id="r.speedup", kind="ratio", quantity="ratio", metric="speedup", printed="2.0",
        value=2.0, unit="x", of=["r.rate"], baseline="r.rate",
    ) | changes  # fmt: skip


PART = {"name": "head", "read": "always"}
POLICY = {"name": "int4", "parts": {"head": "int4"}}


def test_a_good_file_loads() -> None:
    publication = claims.parse(_file(_claim(), _ratio(), parts=[PART], policies=[POLICY]), "f.yaml")
    assert [c.id for c in publication.claims] == ["r.rate", "r.speedup"]
    assert publication.by_id()["r.rate"].interval() == (1150.0, 1300.0)


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown unit": (_file(_claim(unit="tok/s")), ("r.rate", "unknown unit 'tok/s'", "token/s")),
    "unknown quantity": (_file(_claim(quantity="speed")), ("r.rate", "'speed'", "throughput")),
    "unknown key": (_file(_claim(colour="red")), ("unknown field `colour`", "r.rate")),
    "unknown kind": (_file(_claim(kind="guess")), ("'guess'", "r.rate")),
    "unknown condition": (_file(_claim(conditions={"bach": 4})), ("r.rate", "'bach'", "batch")),
    "ill-typed condition": (_file(_claim(conditions={"batch": "4"})), ("r.rate", "batch wants")),
    "condition of a reading": (
        _file(_claim(readings=[{"text": "t", "conditions": {"phase": "warm"}}])),
        ("r.rate", "readings[0]", "prefill, decode"),
    ),
    "value differs": (_file(_claim(value=1300)), ("r.rate", "1300", "'1,200' is printed")),
    "value left out": (_file(_claim(value=None)), ("r.rate", "'1,200' is printed")),
    "not a number": (_file(_claim(printed="1.200,5")), ("r.rate", "not a printed number")),
    "nothing printed": (_file(_claim(printed=None, value=None)), ("r.rate", "needs `printed`")),
    "quantity of a reading": (
        _file(_claim(readings=[{"text": "t", "quantity": "speed"}])), ("r.rate", "'speed'"),
    ),
    "line": (_file(_claim(where={"part": "table", "line": 0})), ("r.rate", "counts from 1")),
    "tolerance": (_file(_claim(tolerance=-1)), ("r.rate", "tolerance is a share", "-1")),
    "interval without ends": (
        _file(_claim(kind="interval", printed=None, value=3)), ("r.rate", "value: [low, high]"),
    ),
    "interval upside down": (
        _file(_claim(kind="interval", printed=None, value=[3, 2])), ("r.rate", "[3.0, 2.0]"),
    ),
    "duplicate id": (_file(_claim(), _claim()), ("'r.rate' is used twice",)),
    "missing operand": (_file(_claim(), _ratio(of=["r.gone"])), ("r.speedup", "'r.gone'")),
    "missing baseline": (_file(_claim(), _ratio(baseline="r.gone")), ("r.speedup", "'r.gone'")),
    "missing reference in a reading": (
        _file(_claim(), _ratio(readings=[{"text": "t", "of": ["r.gone"]}])),
        ("r.speedup", "'r.gone'"),
    ),
    "unknown derivation": (
        _file(_claim(), _ratio(metric="faster")), ("r.speedup", "speedup", "'faster'"),
    ),
    "formula left out": (
        _file(_claim(kind="formula", printed=None, value=None)), ("r.rate", "needs `formula`"),
    ),
    "unit of a symbol": (
        _file(_claim(formula={"left": "a", "relation": "=", "right": "b",
                              "symbols": {"a": {"meaning": "m", "unit": "furlong"}}})),
        ("r.rate", "'furlong'"),
    ),
    "unit of a reading": (
        _file(_claim(readings=[{"text": "t", "unit": "furlong"}])), ("r.rate", "'furlong'"),
    ),
    "schema version": (_file(_claim(), schema=2), ("schema version is 2", "reads 1")),
    "no schema": ({"claims": []}, ("schema version is None",)),
    "not a mapping": ([], ("schema version is None",)),  # type: ignore[dict-item]
    "policy without part": (
        _file(_claim(), parts=[PART], policies=[POLICY | {"parts": {"tail": "int4"}}]),
        ("policy 'int4'", "'tail'", "`parts` lacks"),
    ),
    "policy's format": (
        _file(_claim(), parts=[PART], policies=[POLICY | {"parts": {"head": "int3"}}]),
        ("policy 'int4'", "'int3'", "nf4"),
    ),
    "policy not described": (
        _file(_claim(conditions={"policy": "fp8"}), parts=[PART], policies=[POLICY]),
        ("r.rate", "'fp8'", "described: int4"),
    ),
    "part twice": (_file(_claim(), parts=[PART, PART]), ("part 'head' is described twice",)),
    "how a part is read": (
        _file(_claim(), parts=[PART | {"read": "often"}]), ("'often'", "$.parts[0].read"),
    ),
    "reason": (
        _file(_claim(), not_claims=[{"line": 1, "token": "9", "reason": "dull"}]),
        ("'dull'", "$.not_claims[0].reason"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_claims_give_one_clear_line(name: str, tmp_path: Path) -> None:
    content, wanted = BAD[name]
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError) as error:
        claims.load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for part in wanted:
        assert part in message, message


def test_a_file_that_is_not_yaml_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    with pytest.raises(InputError, match="cannot be read"):
        claims.load(path)
    path.write_text("claims: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"claims\.yaml: not YAML") as error:
        claims.load(path)
    assert "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(InputError, match=r"claims\.yaml: not UTF-8"):
        claims.load(path)


SHEET = {
    "schema": 1, "platform": "chip", "name": "Chip", "vendor": "V",
    "sources": [{"title": "T", "url": "https://example.org", "publisher": "V"}],
    "figures": [
        {"quantity": "bandwidth", "metric": "peak", "value": 2.0, "unit": "TB/s", "source": 0}
    ],
}  # fmt: skip


def _figure(**changes: Any) -> dict[str, Any]:
    return SHEET | {"figures": [SHEET["figures"][0] | changes]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("sheet", "wanted"),
    [
        (_figure(unit="TBps"), "unknown unit 'TBps'"),
        (_figure(source=1), "source 1 is not in sources"),
        (_figure(quantity="colour"), "$.figures[0].quantity"),
        (_figure(value="fast"), "$.figures[0].value"),
        (_figure(value=0), "leave it out"),
        (_figure(value=float("nan")), "leave it out"),
        (SHEET | {"colour": "red"}, "unknown field `colour`"),
        (SHEET | {"schema": 9}, "schema is 9"),
        (SHEET | {"platform": "other"}, "the file's name differs"),
        (SHEET | {"nearest": ["gone"]}, "nearest 'gone' has no file"),
        ([1, 2], "Expected `object`"),
        ({k: v for k, v in SHEET.items() if k != "vendor"}, "`vendor`"),
    ],
)
def test_bad_datasheets_give_one_clear_line(sheet: Any, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text(yaml.safe_dump(sheet), encoding="utf-8")
    with pytest.raises(InputError) as error:
        specs.load(tmp_path)
    assert "chip.yaml" in str(error.value)
    assert "\n" not in str(error.value)
    assert wanted in str(error.value)


def test_datasheets_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text("figures: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"chip\.yaml: not YAML"):
        specs.load(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"chip\.yaml: not UTF-8"):
        specs.load(tmp_path)
