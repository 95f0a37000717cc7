"""Time per token against tokens a second."""

from __future__ import annotations

import math
from collections import Counter
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

# Rows of one table that must follow batch / throughput, printed closely enough to tell, before its
# throughputs are taken to count output tokens alone.
ROWS_THAT_TELL = 2
CLOSE = 0.03


def latency(view: View) -> Iterator[Item]:
    """Time between two tokens of one sequence = batch / throughput; or 1 / throughput.

    The batch is a total or one of each chip, and the most that run at a time where batching is
    continuous. Without a stated batch, latency x throughput is the number of sequences that run at
    a time: at least one. Where the phase is not said to be decode, the throughput may count the
    time spent on prompts, and prompt tokens too unless other rows of its table follow the equation.
    Silent for prefill. A note when the report leaves the batch unstated.
    """
    for name in view.having("latency", "tpot"):
        for others in _rates(view, name):
            claims = [view.claims[i] for i in (name, *others)]
            outcomes = _tried(view, name, others)
            if not any(c.conditions.get("phase") == "decode" for c in claims):
                outcomes += _with_prompts(view, name, others)
            if len(others) > 1 and any(o.holds for o in outcomes):
                outcomes = [o for o in outcomes if o.holds]
            key = leaves_open(claims, "batch")
            demote = f"true if {key} differs: the report leaves it unstated" if key else None
            # Which of the two numbers is wrong cannot be told from them: the latency gets the
            # verdict, since it is the one that follows from the other.
            batches = view.partners(name, "count", "batch", frozenset({"batch"}))[0]
            yield Check("latency", (name,), (*others, *batches), outcomes, demote=demote)


def output_tables(view: View) -> set[str]:
    """Tables whose throughputs count output tokens alone: enough rows follow batch / throughput."""
    follow: Counter[str] = Counter()
    for name in view.having("latency", "tpot"):
        table = view.claims[name].where.table
        for others in _rates(view, name):
            a, b = view.readings[name][0], view.readings[others[0]][0]
            batch = a.get("batch") or b.get("batch")
            close = all(m.interval.high <= m.interval.low * (1 + CLOSE) for m in (a, b))
            if table is None or len(others) > 1 or not batch or not close:
                continue
            if divide(exact(float(batch)), b.interval).meets(a.interval):
                follow[table] += 1
    return {table for table, rows in follow.items() if rows >= ROWS_THAT_TELL}


def _rates(view: View, name: str) -> list[list[str]]:
    """The throughputs under the latency's conditions: each equal one, or all compatible ones."""
    equal, loose = view.partners(name, "throughput", "rate")
    return [[other] for other in equal] if equal else [loose] if loose else []


def _tried(view: View, name: str, others: list[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for other in others:
        for a, b in view.combinations(name, other):
            if b.quantity != "throughput" or a.quantity != "latency" or not agreement(a, b):
                outcomes.append(Outcome(None))
            else:
                outcomes += _outcomes(view, a, b)
    return outcomes


def _outcomes(view: View, a: Meaning, b: Meaning) -> list[Outcome]:
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
    batching = a.get("batching") or b.get("batching")
    if batching is not None and implied.low <= batch * (1 + 1e-9):
        outcomes.append(Outcome(True, "", "", "fewer than the batch run at a time on average"))
    return outcomes


def _with_prompts(view: View, name: str, others: list[str]) -> Iterator[Outcome]:
    """What the two may be when the throughput is not one of output tokens alone."""
    a = view.readings[name][0]
    for other in others:
        b = view.readings[other][0]
        batch = a.get("batch") or b.get("batch")
        if batch is None:
            continue
        implied = multiply(a.interval, b.interval)
        told = view.claims[other].where.table in view.output_tables
        if implied.low > batch and not told:
            yield Outcome(True, "", "", "the throughput counts prompt tokens too")
        elif implied.high < batch:
            yield Outcome(True, "", "", "the throughput's time includes the prompts'")


def _span(span: Interval) -> str:
    low, high = math.ceil(span.low - 1e-9), math.floor(span.high + 1e-9)
    if low > high:
        return f"{number(span.low)} to {number(span.high)}"
    return f"{low}" if low == high else f"{low:,} to {high:,}"
