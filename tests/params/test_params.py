"""Typed parameters: read from a notebook without running it, validated, parsed from words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import params
from zenrepro.errors import InputError
from zenrepro.params import Parameter


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    backend: Literal["torch", "jax"] = "torch"
    device: str | None = None
    scale: Literal["smoke", "small", "full"] | None = None
    seed: int = 0
    rate: float = 0.5
    causal: bool = True
    sizes: list[int] = []


DECLARED = params.of_struct(Accepted)


def notebook(*cells: tuple[str, list[str]]) -> str:
    return json.dumps(
        {
            "cells": [
                {"cell_type": "code", "metadata": {"tags": tags}, "source": source.splitlines(True)}
                for source, tags in cells
            ],
            "nbformat": 4,
        }
    )


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_parameters_cell_is_read_without_running_it() -> None:
    source = (
        '"""What to run."""\n# a comment\nfrom typing import Literal\n'
        'backend: Literal["torch", "jax"] = "torch"\n'
        "device: str | None = None\nseed: int = -1\nrate: float = 1\nsizes: list[int] = [1, 2]\n"
    )
    found = params.parse_notebook(notebook(("raise SystemExit", []), (source, ["parameters"])), "n")
    assert found == [
        Parameter(name="backend", types=("str",), choices=("torch", "jax"), default="torch"),
        Parameter(name="device", types=("str", "None"), default=None),
        Parameter(name="seed", types=("int",), default=-1),
        Parameter(name="rate", types=("float",), default=1),
        Parameter(name="sizes", types=("list",), default=[1, 2]),
    ]


def test_a_struct_declares_the_same_kind_of_parameters() -> None:
    by_name = {parameter.name: parameter for parameter in DECLARED}
    assert by_name["backend"].choices == ("torch", "jax")
    assert by_name["scale"] == Parameter(
        name="scale", types=("str", "None"), choices=("smoke", "small", "full"), default=None
    )
    assert by_name["sizes"] == Parameter(name="sizes", types=("list",), default=[])


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([("x = 1", [])], "no cell is tagged 'parameters'"),
        ([("x: int = 1", ["parameters"])] * 2, "2 cells are tagged 'parameters'"),
        ([("x = 1", ["parameters"])], "wanted `name: type = literal`"),
        ([("x: int", ["parameters"])], "wanted `name: type = literal`"),
        ([("x: int = f()", ["parameters"])], "'x' wants a literal value"),
        ([("x: int = 'one'", ["parameters"])], "'x' wants a whole number, got 'one'"),
        ([("x: bool = 1", ["parameters"])], "'x' wants true or false, got 1"),
        ([("x: Path = 'a'", ["parameters"])], "unknown type 'Path'"),
        ([("x: int = 1\nx: int = 2", ["parameters"])], "'x' is declared twice"),
        ([("x: int = (", ["parameters"])], "not Python"),
        ([("print(1)", ["parameters"])], "found other code"),
    ],
)
def test_a_wrong_parameters_cell_is_one_line_that_names_the_notebook(
    cells: list[tuple[str, list[str]]], said: str
) -> None:
    with pytest.raises(InputError) as error:
        params.parse_notebook(notebook(*cells), "notebooks/n.ipynb")
    assert "notebooks/n.ipynb" in one_line(error)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": ["x"]}', "null"])
def test_what_is_no_notebook_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        params.parse_notebook(text, "n.ipynb")
    assert "not a notebook" in one_line(error)


def test_a_notebook_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        params.read(tmp_path / "none.ipynb")
    assert "cannot be read" in one_line(error)


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        params.validate(DECLARED, {"sclae": "small"}, "here")
    assert one_line(error) == "here: unknown parameter 'sclae'; did you mean 'scale'?"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seed", 1.0, "a whole number"),
        ("seed", True, "a whole number"),
        ("seed", None, "a whole number"),
        ("rate", "1", "a number"),
        ("causal", 1, "true or false"),
        ("backend", "tpu", "one of torch, jax"),
        ("scale", "huge", "one of smoke, small, full or none"),
        ("device", 0, "a text or none"),
        ("sizes", "1,2", "a list"),
    ],
)
def test_an_ill_typed_value_is_one_line(name: str, value: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        params.validate(DECLARED, {name: value}, "here")
    assert one_line(error) == f"here: parameter {name!r} wants {said}, got {value!r}"


def test_valid_values_fill_the_defaults_in_and_whole_numbers_become_floats() -> None:
    values = params.validate(DECLARED, {"rate": 2, "device": "cpu"})
    assert values == {
        "backend": "torch", "device": "cpu", "scale": None, "seed": 0, "rate": 2.0,
        "causal": True, "sizes": [],
    }  # fmt: skip
    assert isinstance(values["rate"], float)
    assert params.build(Accepted, values, "here").device == "cpu"


def test_a_notebook_must_agree_with_its_experiment() -> None:
    params.agree([Parameter(name="seed", types=("int",), default=3)], DECLARED, "n")
    with pytest.raises(InputError, match="unknown parameter 'depth'"):
        params.agree([Parameter(name="depth", types=("int",), default=3)], DECLARED, "n")
    with pytest.raises(InputError, match="'backend' wants one of torch, jax, got 'mlx'"):
        params.agree([Parameter(name="backend", types=("str",), default="mlx")], DECLARED, "n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=12", 12),
        ("rate=3", 3.0),
        ("rate=1e-3", 1e-3),
        ("causal=false", False),
        ("causal=1", True),
        ("backend=jax", "jax"),
        ("scale=none", None),
        ("scale=full", "full"),
        ("device=cuda:1", "cuda:1"),
        ("device=a=b", "a=b"),
        ("sizes=[1, 2]", [1, 2]),
    ],
)
def test_words_are_read_by_the_parameters_type(text: str, expected: Any) -> None:
    name, value = params.parse(text, DECLARED)
    assert (name, value, type(value)) == (text.split("=")[0], expected, type(expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "wanted KEY=VALUE"),
        ("=3", "wanted KEY=VALUE"),
        ("sed=3", "did you mean 'seed'"),
        ("seed=3.5", "wants a whole number, got '3.5'"),
        ("seed=", "wants a whole number, got ''"),
        ("causal=maybe", "wants true or false"),
        ("backend=mlx", "wants one of torch, jax"),
        ("sizes=1,2", "wants a list"),
    ],
)
def test_words_that_cannot_be_the_parameter_are_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        params.parse(text, DECLARED)
    assert said in one_line(error)


@given(st.sampled_from(["seed", "rate", "causal", "sizes", "scale"]), st.data())
def test_what_is_printed_of_a_value_is_read_back(name: str, data: st.DataObject) -> None:
    values: dict[str, st.SearchStrategy[Any]] = {
        "seed": st.integers(),
        "rate": st.floats(allow_nan=False),
        "causal": st.booleans(),
        "sizes": st.lists(st.integers()),
        "scale": st.sampled_from(["smoke", "small", "full", None]),
    }
    value = data.draw(values[name])
    assert params.parse(f"{name}={value}", DECLARED) == (name, value)


@given(st.text(max_size=60))
def test_any_source_is_read_or_refused_in_one_line(source: str) -> None:
    said = ""
    try:
        params.declarations(source, "n")
    except InputError as error:
        said = str(error)
    assert "\n" not in said


def test_the_names_given_to_a_running_notebook_are_found_in_what_it_ran() -> None:
    known = {"backend", "seed"}
    cell = 'backend: str = "torch"\nseed: int = 0'
    assert params.assigned([cell, "x = 3"], known) == {"backend", "seed"}
    assert params.assigned([cell, "# Parameters\nsede = 3\n"], known) == {"backend", "seed", "sede"}
    # Corrected by hand and run again: only the last counts.
    assert params.assigned([cell + "\nsede: int = 3", "run()", cell], known) == known
    # Papermill's cell belongs to the parameters cell before it.
    assert params.assigned(["# Parameters\nsede = 3\n", cell], known) == known
