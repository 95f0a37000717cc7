"""Speculative decoding: the speedup that an acceptance rate allows."""

from __future__ import annotations

from collections.abc import Iterator

from zenrepro.audit.engine import Check, Item, Meaning, Outcome, View, agreement, number
from zenrepro.audit.verdicts import Bound

# Conditions that drafting itself brings in.
_OF_DRAFTING = frozenset({"draft_model", "gamma", "task", "acceptance_source", "implementation"})


def speculation(view: View) -> Iterator[Item]:
    """Speedup <= expected tokens a step, (1 - a^(g+1)) / (1 - a); never above g + 1.

    a: share of drafted tokens accepted, independent of each other; g: drafted tokens a step.
    Above g + 1 is an error under any acceptance; above the expectation is a note, since
    acceptances need not be independent. Silent without g, and where the baseline differs in more
    than the drafting.
    """
    for name in view.having("ratio", "speedup"):
        readings = view.readings[name]
        gamma = readings[0].get("gamma")
        if not gamma or not readings[0].get("draft_model"):
            continue
        if not all(_over_plain_decoding(view, m) for m in readings):
            continue
        ceiling = gamma + 1
        outcomes = [
            Outcome(
                m.interval.low <= ceiling,
                f"{gamma} drafted tokens a step give at most {ceiling} tokens, printed {m.printed}",
                f"{ceiling}× or less",
                m.text,
            )
            for m in readings
        ]
        yield Check("speculation", (name,), (), outcomes)
        yield Bound(
            claim=name, value=float(ceiling), unit="x", relation="≤", rule="speculation",
            arithmetic=f"{gamma} drafted tokens a step and one more",
        )  # fmt: skip
        equal, _ = view.partners(name, "acceptance", "rate")
        for other in equal:
            a = view.readings[other][0]
            if not 0 <= a.interval.low <= a.interval.high <= 1:
                continue
            most = expected_tokens(a.interval.high, gamma)
            arithmetic = (
                f"acceptance {a.printed} and {gamma} drafted tokens: (1 − a^{gamma + 1}) / (1 − a) "
                f"= {number(most)} tokens a step"
            )
            m = readings[0]
            yield Check(
                "speculation", (name,), (other,),
                [Outcome(m.interval.low <= most, f"{arithmetic}, printed {m.printed}")],
                demote="true if acceptances are not independent of each other",
            )  # fmt: skip
            yield Bound(
                claim=name, value=most, unit="x", relation="≤", arithmetic=arithmetic,
                rule="speculation",
            )  # fmt: skip


def _over_plain_decoding(view: View, m: Meaning) -> bool:
    """Whether numerator and baseline differ in nothing but the drafting, as far as is stated."""
    if m.baseline is None or not m.of:
        return False
    base = view.readings[m.baseline][0]
    sides = [m, *(view.readings[name][0] for name in m.of)]
    return not base.get("draft_model") and all(
        agreement(side, base, _OF_DRAFTING) > 0 for side in sides
    )


def expected_tokens(acceptance: float, gamma: int) -> float:
    """Tokens that one step yields on average: the accepted ones and the verifier's own."""
    return float(sum(acceptance**i for i in range(gamma + 1)))
