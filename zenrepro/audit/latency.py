"""Time per token against tokens a second."""

from __future__ import annotations

from collections.abc import Iterator

from zenrepro.audit.engine import (
    Check,
    Item,
    Meaning,
    Outcome,
    View,
    agreement,
    leaves_open,
    number,
    show,
)  # fmt: skip
from zenrepro.audit.intervals import divide, exact, multiply
from zenrepro.printed import Interval


def latency(view: View) -> Iterator[Item]:
    """Time between two tokens of one sequence = batch / throughput; or 1 / throughput.

    The batch is a total or one of each chip. Without a stated batch, latency x throughput is the
    number of sequences that run at a time: at least one. Silent for prefill. A note when the
    report leaves the batch unstated. A time between tokens is one of decoding, so that an unstated
    phase leaves nothing open.
    """
    for name in view.having("latency", "tpot"):
        equal, loose = view.partners(name, "throughput", "rate")
        if equal:
            for other in equal:
                yield _test(view, name, [other])
        elif loose:
            yield _test(view, name, loose)


def _test(view: View, name: str, others: list[str]) -> Check:
    outcomes: list[Outcome] = []
    for other in others:
        for a, b in view.combinations(name, other):
            if b.quantity != "throughput" or a.quantity != "latency" or not agreement(a, b):
                outcomes.append(Outcome(None))
            else:
                outcomes += _outcomes(a, b)
    if len(others) > 1 and any(o.holds for o in outcomes):
        outcomes = [o for o in outcomes if o.holds]
    claims = [view.claims[i] for i in (name, *others)]
    open_key = leaves_open(claims, "batch")
    demote = f"true if {open_key} differs: the report leaves it unstated" if open_key else None
    # Which of the two numbers is wrong cannot be told from them: the latency gets the verdict,
    # since it is the one that follows from the other.
    batches = view.partners(name, "count", "batch", frozenset({"batch"}))[0]
    return Check("latency", (name,), (*others, *batches), outcomes, demote=demote)


def _outcomes(a: Meaning, b: Meaning) -> list[Outcome]:
    if "prefill" in (a.get("phase"), b.get("phase")):
        return [Outcome(None)]
    text = ", ".join(m.text for m in (a, b) if m.text != "as written")
    batch = a.get("batch") or b.get("batch")
    implied = multiply(a.interval, b.interval)
    if batch is None:
        holds = implied.high >= 1 - 1e-9
        arithmetic = (
            f"{a.printed} × {b.printed} = {number(implied.low)} to {number(implied.high)} "
            "sequences at a time, fewer than one"
        )
        return [Outcome(holds, arithmetic, "a batch of at least one", text)]
    chips = a.get("chips") or b.get("chips") or 1
    counts = {"": batch, "the latency is the time per token of the whole batch": 1}
    if chips > 1:
        counts["the batch is one of each chip"] = batch * chips
    outcomes = []
    for how, count in counts.items():
        expected = divide(exact(float(count)), b.interval)
        holds = expected.meets(a.interval)
        arithmetic = f"{count} / ({b.printed}) = {show(expected, a.unit)}, printed {a.printed}"
        mend = f"{show(expected, a.unit)}, or a batch of {_span(implied)}"
        outcomes.append(Outcome(holds, arithmetic, mend, how or text))
    return outcomes


def _span(span: Interval) -> str:
    low, high = round(span.low), round(span.high)
    return f"{low}" if low == high else f"{number(span.low)} to {number(span.high)}"
