"""What records say of formulas: growth with the length, sizes of caches, and exactness.

A claim's ``method`` says what kind of statement it is; the audit tries the same formulas by
counting (``trials``). Here only records speak: measured ones, and counted ones for counts and
sizes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from zenrepro.audit import expressions
from zenrepro.audit.candidates import Entry, Index, Missing, not_usable
from zenrepro.claims import Claim
from zenrepro.printed import Interval
from zenrepro.records import Record, Status
from zenrepro.stats import Summary, exponent
from zenrepro.units import NONE, unit

# A growth is told from at least so many lengths, of the longest of which ``LONGEST`` count, over a
# factor of ``SPAN``: lower orders still show at short ones.
FEWEST, LONGEST, SPAN = 3, 4, 4.0
LENGTH = "N"  # the symbol of the sequence length


class Found(NamedTuple):
    """One value for a formula, in ``unit``, and what it is held against: None where having been
    measured at all is what the claim says.

    ``power_of``: the value is an exponent, of this symbol.
    """

    summary: Summary
    unit: str
    stated: Interval | None
    records: tuple[Record, ...]
    reason: str
    power_of: str | None = None


def judged(claim: Claim) -> bool:
    """Whether records can speak of this claim, though it prints a formula or a trend."""
    stated = claim.kind in ("formula", "trend") and claim.formula is not None
    return stated and claim.method in METHODS


def values(claim: Claim, index: Index) -> list[Found] | Missing:
    """What one machine's records give for the claim's formula as it is written, or why nothing."""
    return METHODS[claim.method or ""](claim, index)


# -- growth ----------------------------------------------------------------------------------------


def growth(claim: Claim, index: Index) -> list[Found] | Missing:
    """The exponent of the length in records of the claim's quantity, other conditions equal.

    Batches are divided out: a call of several sequences does each by itself.
    """
    power = _stated_power(claim)
    if power is None:
        return Missing("states no order in the sequence length")
    formula = claim.formula
    symbol = formula.symbols.get(formula.left) if formula else None
    dimension = unit(symbol.unit).dimension if symbol else NONE
    entries = index.by_kind.get((claim.quantity, claim.metric, dimension), [])
    if not entries:
        return Missing(f"no {claim.quantity} ({claim.metric}) was measured")
    named = [entry for entry in entries if index.implements(entry, claim.implementation)]
    if not named:
        return Missing(f"no implementation of {claim.implementation} was measured")
    out = []
    for series in _series(named, claim.conditions):
        lengths = sorted(series)[-LONGEST:]
        if len(lengths) < FEWEST or lengths[-1] < SPAN * lengths[0]:
            continue
        found = exponent(lengths, [series[n][1] for n in lengths])
        reason = (
            f"power of {LENGTH} over {lengths[0]} to {lengths[-1]} tokens, {len(lengths)} lengths"
        )
        records = tuple(series[n][0].record for n in reversed(lengths))
        stated = Interval(power, power)
        out.append(Found(found, "1", stated, records, reason, power_of=LENGTH))
    if out:
        return out
    refused = [entry for entry in named if entry.summary is None]
    if refused:
        return Missing(not_usable(refused[0].record))
    return Missing(f"not at {FEWEST} lengths with all else equal, over a factor of {SPAN:g}")


def _stated_power(claim: Claim) -> float | None:
    """The exponent of the length in the formula's right side; None where it is no order."""
    formula = claim.formula
    if formula is None or formula.relation != "order" or not formula.right:
        return None
    tree = expressions.parse(formula.right, claim.id)
    names = expressions.symbols(tree)
    if LENGTH not in names:
        return None
    point = dict.fromkeys(names, 64.0)
    one, two = (
        expressions.evaluate(tree, point | {LENGTH: length}) for length in (2.0**20, 2.0**21)
    )
    return math.log2(two / one) if one > 0 and two > 0 else None


def _series(
    entries: list[Entry], conditions: Mapping[str, Any]
) -> Iterator[dict[int, tuple[Entry, float]]]:
    """Records of one implementation by length, equal in all else; each its value a sequence."""
    found: dict[Any, dict[int, tuple[Entry, float]]] = defaultdict(dict)
    for entry in entries:
        has = entry.record.conditions
        length = has.get("seq_len")
        wanted = [key for key in conditions if key != "platform"]
        if length is None or entry.summary is None or entry.summary.value <= 0:
            continue
        if any(has.get(key) != conditions[key] for key in wanted):
            continue
        rest = {k: v for k, v in has.items() if k not in ("seq_len", "tokens", "batch")}
        key = (entry.record.experiment, entry.record.implementation, tuple(sorted(rest.items())))
        found[key][length] = (entry, entry.summary.value / has.get("batch", 1))
    yield from found.values()


# -- caches ----------------------------------------------------------------------------------------


def latent_cache(claim: Claim, index: Index) -> list[Found] | Missing:
    """The formula with each model's sizes: h and d_k of its ordinary heads, d_c and d_r of its
    latent and the rotary part. The reason prints every reading, and the ratio of what was counted
    for the two caches."""
    formula = claim.formula
    pairs = list(_caches(index))
    if formula is None or claim.printed is None or not pairs:
        return Missing("no size (cache) was counted")
    tree = expressions.parse(formula.right, claim.id)
    out = []
    for ordinary, latent, whole in pairs:
        symbols = _symbols(ordinary.record, latent.record)
        if not expressions.symbols(tree) <= set(symbols):
            return Missing("its symbols are none that a cache has")
        value = expressions.evaluate(tree, symbols)
        keys = symbols["h"] * symbols["d_k"] / symbols["d_c"]
        reason = (
            f"{latent.record.conditions['model']}: {keys:.3g} times by keys over the latent, "
            f"{2 * keys:.3g} by keys and values, {whole:.3g} by all that is kept"
        )
        exact = Summary(value, value, value, 1)
        records = (latent.record, ordinary.record)
        out.append(Found(exact, claim.unit, claim.interval(), records, reason))
    return out


def _caches(index: Index) -> Iterator[tuple[Entry, Entry, float]]:
    """(ordinary heads' cache, the latent's, their ratio) of one model in one format."""
    dimension = unit("B/token").dimension
    found: dict[Any, dict[str, Entry]] = defaultdict(dict)
    for entry in index.by_kind.get(("size", "cache", dimension), []):
        has = entry.record.conditions
        if entry.summary is not None and "format" not in has and "model" in has:
            key = (has["model"], has.get("dtype"), entry.backend)
            found[key][entry.algorithm] = entry
    for forms in found.values():
        ordinary, latent = forms.get("mha"), forms.get("mla")
        if ordinary and latent and ordinary.summary and latent.summary:
            yield ordinary, latent, ordinary.summary.value / latent.summary.value


def _symbols(ordinary: Record, latent: Record) -> dict[str, float]:
    kept = latent.conditions
    return {
        "h": float(ordinary.conditions["kv_heads"]),
        "d_k": float(ordinary.conditions["head_dim"]),
        "d_c": float(kept["value_dim"]),
        "d_r": float(kept["head_dim"] - kept["value_dim"]),
    }


# -- exactness -------------------------------------------------------------------------------------


def exactness(claim: Claim, index: Index) -> list[Found] | Missing:
    """Errors against the reference: none of an implementation's may be beyond its bound.

    A record of an error is ok only where the output passed its gate, so the claim holds where all
    are; the largest error is what is printed.
    """
    entries = [
        entry
        for entry in index.by_quantity.get((claim.quantity, NONE), [])
        if index.implements(entry, claim.implementation)
        and all(entry.record.conditions.get(k) == v for k, v in claim.conditions.items())
    ]
    if not entries:
        return Missing(f"no {claim.quantity} of {claim.implementation} was measured")
    refused = [entry for entry in entries if entry.summary is None]
    wrong = [entry for entry in refused if entry.record.status is Status.FAILED]
    passed = [(entry.summary, entry.record) for entry in entries if entry.summary is not None]
    if wrong or not passed:
        return Missing(not_usable((wrong or refused)[0].record))
    largest, record = max(passed, key=lambda pair: pair[0].value)
    reason = f"largest error of {len(passed)} outputs, each within its bound"
    return [Found(largest, "1", None, (record,), reason)]


METHODS: dict[str, Callable[[Claim, Index], list[Found] | Missing]] = {
    "attention-flops": growth,
    "attention-intermediates": growth,
    "attention-traffic": growth,
    "latent-cache": latent_cache,
    "tiled-softmax": exactness,
}
