"""What the audit answers: findings, bounds, one verdict a claim."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

Verdict = Literal["consistent", "inconsistent", "impossible", "unverifiable", "note"]

# From the worst to the best: a claim gets the worst verdict that a rule gives it.
ORDER: tuple[str, ...] = ("impossible", "inconsistent", "unverifiable", "note", "consistent")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a reader should know.

    ``claims`` get the verdict; ``against`` are the claims that the arithmetic rests on.
    ``arithmetic`` is one line with numbers and units; ``mend`` says what would make it true.
    """

    rule: str
    severity: Literal["error", "note"]
    verdict: Verdict
    claims: list[str]
    arithmetic: str
    mend: str
    against: list[str] = []


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What hardware or arithmetic allows a claim at most (or at least), in the claim's unit.

    ``assumption`` is None for a bound that holds under every reading; else what it takes for
    granted, in a few words.
    """

    claim: str
    value: float
    unit: str
    relation: Literal["≤", "≥"]
    arithmetic: str
    rule: str
    assumption: str | None = None


class Audit(msgspec.Struct, kw_only=True):
    """Verdict by claim id, findings (errors first), bounds, and the rules that a claim passed."""

    verdicts: dict[str, Verdict]
    findings: list[Finding]
    bounds: list[Bound]
    passed: dict[str, list[str]] = {}

    def counts(self) -> dict[str, int]:
        """How many claims have each verdict, in the order of ``ORDER``."""
        counted = Counter(self.verdicts.values())
        return {verdict: counted.get(verdict, 0) for verdict in ORDER}  # type: ignore[call-overload]

    def errors(self) -> list[Finding]:
        """The findings that no reading saves."""
        return [finding for finding in self.findings if finding.severity == "error"]
