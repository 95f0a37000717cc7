"""The tokeniser of TeX sources and the inventory's file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro import completeness
from zenrepro.completeness import Token
from zenrepro.errors import InputError


def tokens(line: str) -> list[str]:
    return [token.token for token in completeness.extract(line)]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (r"A100 & Zen-7B & 64 & 68,400 & 0.94 & 171 \\",
         ["A100", "7", "64", "68,400", "0.94", "171"]),
        (r"FP8 & $-0.3$ & \textbf{94\%} & 2.9$\times$", ["FP8", "-0.3", "94", "2.9"]),
        (r"steps 2--3 and 5", ["2", "3", "5"]),
        (r"$O(N^2 d)$ and $2^{2b}$, $x^{-1}$", ["2", "2", "2", "-1"]),
        (r"at 92W on v5e, 1.5B, v2025.06.", ["92", "v5e", "1.5", "v2025.06"]),
        (r"100\% % 200 is a comment", ["100"]),
        (r"\begin{equation}", ["EQUATION"]),
        (r"\begin{align*} x", ["EQUATION"]),
        (r"\section{Two} is compute-bound, single-device, Near-linear", ["two", "compute-bound",
         "single-device", "near-linear"]),
        (r"bound to alloy; singled out; INT4/FP8", ["INT4", "FP8"]),
        (r"\cite{doe2024thing} \vspace{2pt}", ["doe2024thing", "2"]),
        ("0.95,0.95 and 1,000,000.5", ["0.95", "0.95", "1,000,000.5"]),
        ("a 10-20 range, a-5", ["10", "20", "5"]),
    ],
)  # fmt: skip
def test_tokens(line: str, wanted: list[str]) -> None:
    assert tokens(line) == wanted


def test_lines_and_ordinals() -> None:
    assert completeness.extract("a\n2 and 2\n\n2") == [
        Token(2, "2", 1), Token(2, "2", 2), Token(4, "2", 1),
    ]  # fmt: skip


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_every_number_in_a_table_row_is_found(numbers: list[int]) -> None:
    row = " & ".join(f"{n:,}" for n in numbers) + r" \\"
    assert tokens(row) == [f"{n:,}" for n in numbers]


@given(st.text(max_size=80))
def test_no_digit_is_lost(text: str) -> None:
    line = "".join(c for c in text if c.isascii() and c.isprintable() and c not in "%\\")
    found = "".join(tokens(line))
    assert sorted(c for c in found if c.isdigit()) == sorted(c for c in line if c.isdigit())


def test_inventory_survives_its_file(tmp_path: Path) -> None:
    inventory = completeness.extract("28,400 at 3.3$\\times$ on H100\nH100 H100")
    path = tmp_path / "numbers.csv"
    path.write_text(completeness.encode(inventory), encoding="utf-8")
    assert completeness.load(path) == inventory


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", "first line"), ("a,b\n", "first line"), ("line,token,ordinal\nx,2,1\n", "line 2"),
     ("line,token,ordinal\n1,2,1\n3,4\n", "line 3")],
)  # fmt: skip
def test_bad_inventories(text: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=wanted) as error:
        completeness.load(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        completeness.load(tmp_path / "gone.csv")
