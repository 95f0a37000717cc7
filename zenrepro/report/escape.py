"""Text to TeX: every string becomes TeX that pdfTeX can set, whatever it holds.

ASCII specials become commands, mathematical and Greek characters become formulas, the letters that
the T1 encoding knows stay as they are, and any other character becomes a visible ``[U+4E2D]``.
Long words get places to break.
"""

from __future__ import annotations

import re
import unicodedata


class Tex(str):
    """A string that is TeX already. Only code and templates make one, never data."""

    __slots__ = ()


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    '"': r"\textquotedbl{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "`": r"\textasciigrave{}",
    "\u00a0": "~",
    "\u202f": r"\,",
    "\u2009": r"\,",
    "\u00ad": r"\-",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "„": r"\quotedblbase{}",
    "…": r"\dots{}",
    "•": r"\textbullet{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "€": r"\texteuro{}",
    "™": r"\texttrademark{}",
    "№": r"\textnumero{}",
    "‰": r"\textperthousand{}",
    "\u2010": "-",
    "\u2011": "-",
    "✓": r"\ding{51}",
    "✔": r"\ding{52}",
    "✗": r"\ding{55}",
    "✘": r"\ding{56}",
    "★": r"\ding{72}",
    "●": r"\ding{108}",
    "■": r"\ding{110}",
    "▲": r"\ding{115}",
    "▼": r"\ding{116}",
    "◆": r"\ding{117}",
    "➜": r"\ding{220}",
}

_MATH = {
    **dict(
        zip(
            "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ",
            (
                "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi pi "
                "rho sigma tau upsilon varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma "
                "Upsilon Phi Psi Omega"
            ).split(),
            strict=True,
        )
    ),
    **{"ς": "varsigma", "ϕ": "phi", "ϵ": "epsilon", "µ": "mu", "ℓ": "ell", "∂": "partial"},
    **{"×": "times", "÷": "div", "±": "pm", "∓": "mp", "·": "cdot", "⋅": "cdot", "∗": "ast"},
    **{"≤": "le", "≥": "ge", "≠": "ne", "≈": "approx", "≡": "equiv", "∼": "sim", "≃": "simeq"},
    **{"≪": "ll", "≫": "gg", "∝": "propto", "∞": "infty", "√": "surd", "∑": "sum", "∏": "prod"},
    **{"∫": "int", "∈": "in", "∉": "notin", "∪": "cup", "∩": "cap", "⊂": "subset", "∅": "emptyset"},
    **{"→": "rightarrow", "←": "leftarrow", "↔": "leftrightarrow", "⇒": "Rightarrow"},
    **{"⇔": "Leftrightarrow", "↑": "uparrow", "↓": "downarrow", "↦": "mapsto"},
    **{"∀": "forall", "∃": "exists", "¬": "neg", "∧": "wedge", "∨": "vee", "⊕": "oplus"},
    **{"⊗": "otimes", "⊤": "top", "⊥": "bot", "⌈": "lceil", "⌉": "rceil", "⌊": "lfloor"},
    **{"⌋": "rfloor", "‖": "Vert", "∥": "parallel", "∇": "nabla", "′": "prime", "⟨": "langle"},
    **{"⟩": "rangle", "∣": "mid"},
}
_MATH_RAW = {
    "−": "-", "ℝ": r"\mathbb{R}", "ℕ": r"\mathbb{N}", "ℤ": r"\mathbb{Z}", "𝔼": r"\mathbb{E}",
    "½": r"\tfrac{1}{2}", "¼": r"\tfrac{1}{4}", "¾": r"\tfrac{3}{4}",
    **{c: f"^{{{d}}}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿᵀ", "0123456789+-nT", strict=True)},
    **{c: f"_{{{d}}}" for c, d in zip("₀₁₂₃₄₅₆₇₈₉₊₋ᵢⱼ", "0123456789+-ij", strict=True)},
}  # fmt: skip
_MATH_RAW["ᵀ"] = r"^{\top}"

# Letters and signs that `inputenc` knows with T1 and TS1: Latin-1 and most of Latin Extended-A.
_NOT_IN_T1 = set("\u00a8\u00af\u00b4\u00b8ĦħĿŀŉŦŧĸſ")
_T1 = frozenset(
    chr(c) for c in (*range(0xA1, 0x100), *range(0x100, 0x180)) if chr(c) not in _NOT_IN_T1
)

# T1 joins these when they meet ("--" becomes a dash, ",," a quotation mark).
_LIGATURES = frozenset("-,'?!")
_BREAK_AFTER = frozenset("/_.:;,=+-@·×→")
_RUN = 9  # characters without a place to break, after which one is put


def escape(text: str) -> Tex:
    """TeX that prints ``text``. Idempotent on ``Tex``; line ends and runs of space become one."""
    if isinstance(text, Tex):
        return text
    words = re.split(r"[ \t\r\n]+", unicodedata.normalize("NFC", text))
    # What a hard space joins breaks in its own places alone.
    return Tex(" ".join("~".join(_word(part) for part in word.split("\u00a0")) for word in words))


def _word(word: str) -> str:
    """One word: short ones stay whole, long ones may break."""
    long = len(word) > 14
    pieces: list[str] = []
    run = 0
    for index, character in enumerate(word):
        piece, previous = _character(character), word[index - 1] if index else ""
        # Letters alone are left to hyphenation up to a length that no English word has.
        plain = word.isalpha() and word.isascii() and len(word) <= 24
        number = previous in ",." and character.isdigit() and word[index - 2 : index - 1].isdigit()
        fits = previous in _BREAK_AFTER and not number
        if long and not plain and run and (fits or run >= _RUN):
            pieces.append(r"\allowbreak{}")
            run = 0
        elif character in _LIGATURES and previous in _LIGATURES:
            pieces.append("{}")
        pieces.append(piece)
        run += 1 if len(piece) < 30 else 4
    return "".join(pieces)


def _character(c: str) -> str:
    if c in _SPECIAL:
        return _SPECIAL[c]
    if c in _MATH:
        return rf"\ensuremath{{\{_MATH[c]}}}"
    if c in _MATH_RAW:
        return rf"\ensuremath{{{_MATH_RAW[c]}}}"
    if " " < c <= "~" or c in _T1:
        return c
    return rf"\allowbreak{{}}\texttt{{[U+{ord(c):04X}]}}\allowbreak{{}}"


def url(address: str) -> Tex:
    r"""The argument of ``\href`` or ``\url``: characters that TeX would read are percent-encoded.

    Only web addresses pass; anything else raises ValueError.
    """
    if not re.match(r"https?://[^\s]+$", address):
        raise ValueError(f"not a web address: {address!r}")
    keep = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._:/?=+,;@!*()'&#~"
    out = []
    for c in address:
        if c in "#&~":
            out.append("\\" + c if c != "~" else r"\string~")
        elif c == "%":
            out.append(r"\%")
        elif c in keep:
            out.append(c)
        else:
            out.extend(rf"\%{byte:02X}" for byte in c.encode())
    return Tex("".join(out))
