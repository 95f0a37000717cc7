"""Completeness: is every number of a report accounted for by exactly one claim or reason?

The inventory is a list of number tokens by line of the report's source; it holds no text of the
report and is kept beside the claims, so that completeness can be checked without the source.

A token is a number as it is printed ("28,400", "-0.3"; units and letters after it dropped), a name
that holds a digit ("H100", "fp16"), a word that states a quantity (``WORDS``, or one that ends in
"-bound"), or the start of a displayed equation.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from zenrepro.claims import Claim, NotAClaim, Publication
from zenrepro.errors import InputError

# Words that state a quantity as a number would; a compound counts when its first part does.
WORDS = frozenset(
    (
        *("zero", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        *("single", "half", "double", "twice", "all", "both", "none", "without", "fully"),
        *("linear", "near-linear", "smaller", "larger", "higher", "more", "fewer"),
    )
)

EQUATION = "EQUATION"

_COMMENT = re.compile(r"(?<!\\)%.*")
_EQUATION = re.compile(r"\\begin\{(?:equation|align|gather|multline)\*?\}")
_COMMAND = re.compile(r"\\[A-Za-z]+\*?")
_NAME = r"[A-Za-z][A-Za-z]*\d[A-Za-z0-9]*(?:\.\d+)*"
_NUMBER = r"(?<![-A-Za-z0-9)}\]])-\d[\d.,]*|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)*"
_WORD = r"[A-Za-z]+(?:-[A-Za-z]+)*"
_TOKEN = re.compile(f"(?P<name>{_NAME})|(?P<number>{_NUMBER})|(?P<word>{_WORD})")


class Token(NamedTuple):
    """One token; ``ordinal`` counts the equal tokens of the line from 1."""

    line: int
    token: str
    ordinal: int


def extract(source: str) -> list[Token]:
    """The tokens of a TeX source, in order. Comments are dropped, commands are not names."""
    tokens: list[Token] = []
    for number, line in enumerate(source.splitlines(), start=1):
        text = _EQUATION.sub(f" {EQUATION} ", _COMMENT.sub("", line))
        text = _COMMAND.sub(" ", text)
        seen: Counter[str] = Counter()
        for match in _TOKEN.finditer(text):
            token = match.group().rstrip(".,")
            if match.lastgroup == "word":
                token = token if token == EQUATION else token.lower()
                if not _quantifies(token):
                    continue
            seen[token] += 1
            tokens.append(Token(number, token, seen[token]))
    return tokens


def _quantifies(word: str) -> bool:
    if word in WORDS or word == EQUATION or word.endswith("-bound"):
        return True
    return word.split("-")[0] in WORDS


def digest(source: bytes) -> str:
    """The SHA-256 that ``report.sha256`` pins the claims to."""
    return hashlib.sha256(source).hexdigest()


def encode(tokens: Iterable[Token]) -> str:
    """The inventory as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Token._fields)
    writer.writerows(tokens)
    return out.getvalue()


def load(path: Path) -> list[Token]:
    """Read an inventory. Raises InputError naming the file and line."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not rows or tuple(rows[0]) != Token._fields:
        raise InputError(f"{path}: the first line must be {','.join(Token._fields)}")
    tokens = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 3 or not row[0].isdigit() or not row[2].isdigit():
            raise InputError(f"{path}: line {number} is not line,token,ordinal: {','.join(row)!r}")
        tokens.append(Token(int(row[0]), row[1], int(row[2])))
    return tokens


def accounts_for(claim: Claim) -> list[str]:
    """The tokens of its line that a claim accounts for."""
    if claim.where.tokens is not None:
        return claim.where.tokens
    return [claim.printed] if claim.printed is not None else []


def gaps(
    inventory: Iterable[Token], claims: Iterable[Claim], not_claims: Iterable[NotAClaim]
) -> list[str]:
    """Every disagreement between the inventory and what accounts for it, one line each.

    A token may lack an account or have several; a claim may account for a token that the report
    does not print there, or for none at all.
    """
    printed = Counter((token.line, token.token) for token in inventory)
    accounts: dict[tuple[int, str], list[str]] = {}
    problems: list[str] = []
    for claim in claims:
        tokens = accounts_for(claim)
        if not tokens:
            problems.append(f"claim {claim.id} accounts for no token of line {claim.where.line}")
        for token in tokens:
            accounts.setdefault((claim.where.line, token), []).append(claim.id)
    for entry in not_claims:
        key = (entry.line, entry.token)
        accounts.setdefault(key, []).extend([f"({entry.reason})"] * entry.count)
    for line, token in sorted(printed.keys() | accounts.keys()):
        have = printed[line, token]
        given = accounts.get((line, token), [])
        if len(given) != have:
            problems.append(
                f"line {line}: {token!r} is printed {have} times and accounted for "
                f"{len(given)} times ({', '.join(given) or 'by nothing'})"
            )
    return problems


def check(publication: Publication, inventory: Iterable[Token]) -> list[str]:
    """``gaps`` of one publication."""
    return gaps(inventory, publication.claims, publication.not_claims)
