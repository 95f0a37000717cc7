"""What the escaper emits is TeX that compiles and prints what was given."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zenrepro.report.escape import Tex, escape, url

CompileTex = Callable[[str], str]


def collected(strategy: st.SearchStrategy[str], examples: int) -> list[str]:
    """Examples of a strategy: TeX is started once for all of them."""
    found: list[str] = []

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(text: str) -> None:
        found.append(text)

    collect()
    return found


NASTY = [
    "\\", "{", "}", "$", "&", "#", "%", "_", "^", "~", '"', "'", "`", "<", ">", "|", "--", "---",
    "?`", "!`", ",,", "<<", ">>", "''", "``", "[", "]", "*", "\\input{/etc/passwd}", "^^41", "@",
    "\\end{document}", "%%", "}}}", "$$", "\x00", "\x07", "\x7f", "\ufeff", "\u200b", "\u202e",
    "é", "e\u0301", "ß", "Ł", "ŉ", "ı", "文", "🙂", "\U0010ffff", "a" * 300, "/" * 80, "−", "½",
    "α × β ≤ γ", "x²", "H₂O", "ℓ_i", "∑", "№", "\u00a0", "\u2028", "\t", "\r\n\r\n", " ", "",
    "\u0130", "\u0149", "\u017f", "=", "1.5e+3", "C:\\a_b%c", "https://a.b/c?d=e&f#g",
]  # fmt: skip


def test_whatever_is_escaped_compiles(compile_tex: CompileTex) -> None:
    generated = collected(st.text(max_size=60), 300)
    generated += collected(st.text(alphabet=r"\{}$&#%_^~-<>,'`?!" + '"[]*', max_size=20), 150)
    rows = [f"{{}}{escape(text)} & x \\\\" for text in NASTY + generated]
    long = [f"\\parbox{{3cm}}{{{escape(text)}}}\\par" for text in NASTY]
    table = "\\begin{tabular}{p{9cm}l}\n{}\n\\end{tabular}\\newpage\n"
    chunks = ["\n".join(rows[i : i + 25]) for i in range(0, len(rows), 25)]
    compile_tex("".join(table.replace("{}\n", f"{c}\n") for c in chunks) + "\n".join(long))


def test_every_letter_that_is_kept_is_set(compile_tex: CompileTex) -> None:
    kept = [
        chr(c)
        for c in range(0x20, 0x3000)
        if unicodedata.category(chr(c))[0] not in "CZ" and "[U+" not in escape(chr(c))
    ]
    assert len(kept) > 350
    compile_tex("\n".join(f"x{escape(c)}x" for c in kept))


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed")
def test_the_words_come_out_as_they_went_in(compile_tex: CompileTex) -> None:
    text = r"50% of $x_i$ & #1 {a} \input b--c don~t ^ <<a>> 1,,2 [x] |y|"
    words = compile_tex(f"\\noindent {escape(text)}")
    assert text.split() == words.replace("\f", " ").replace("’", "'").split()[: len(text.split())]


def test_unsupported_characters_stay_visible() -> None:
    assert "[U+6587]" in escape("文")
    assert "[U+0007]" in escape("\x07")


def test_escaping_twice_changes_nothing() -> None:
    once = escape("50% & more")
    assert isinstance(once, Tex)
    assert escape(once) is once


@given(st.text())
def test_no_special_character_survives_alone(text: str) -> None:
    out = escape(text)
    for special in "$&#%_":
        for index, c in enumerate(out):
            if c == special and not (special == "_" and out[index + 1 : index + 2] == "{"):
                assert out[index - 1] == "\\"
    assert "\n" not in out
    assert out.count("{") - out.count("\\{") == out.count("}") - out.count("\\}")


def test_long_words_may_break() -> None:
    assert escape("a" * 100).count(r"\allowbreak") >= 9
    assert r"\allowbreak" not in escape("short words stay whole")


@pytest.mark.parametrize("address", ["javascript:alert(1)", "file:///etc/passwd", "http://a b", ""])
def test_only_web_addresses_are_links(address: str) -> None:
    with pytest.raises(ValueError, match="not a web address"):
        url(address)


def test_addresses_compile(compile_tex: CompileTex) -> None:
    addresses = ["https://a.b/c_d%20e?f=g&h#i~j", "http://x.y/{z}\\w^v$u", "https://é.example/文"]
    compile_tex("\n\n".join(rf"\href{{{url(a)}}}{{x}}" for a in addresses))


def test_numbers_and_their_units_are_not_broken() -> None:
    assert escape("(24,100\u00a0token/s)") == "(24,100~token/s)"
    assert "allowbreak" not in escape("123,456,789.12345")[:12]
