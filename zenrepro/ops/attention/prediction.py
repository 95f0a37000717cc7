"""What counting says before anything is measured: the roofline's time for one case."""

from __future__ import annotations

from typing import NamedTuple

from zenrepro import counts
from zenrepro.ops.attention.cases import Case


class Prediction(NamedTuple):
    """Least work of one call, and the least time that ceilings allow for it.

    ``stored_bytes`` is what moves when the scores go through memory; such an implementation also
    computes the half that a causal mask hides. Seconds are None where a ceiling is not known.
    ``bound`` is the resource that sets ``seconds``.
    """

    flops: float
    bytes: float
    stored_bytes: float
    seconds: float | None
    stored_seconds: float | None
    bound: str | None


def predict(case: Case, dtype: str, flop_rate: float | None, bandwidth: float | None) -> Prediction:
    """The least work and time of a case. ``flop_rate`` in FLOP/s, ``bandwidth`` in B/s."""
    work = counts.attention_of(case.conditions(dtype))
    flops, least = work.flops or 0.0, work.bytes or 0.0
    stored = least + sum(
        counts.materialised_scores(
            batch=1, query_len=queries, cache_len=keys, heads=case.heads, dtype=dtype
        )
        for queries, keys in case.sequences
    )
    if flop_rate is None or bandwidth is None:
        return Prediction(flops, least, stored, None, None, None)
    whole = counts.attention_of(case.conditions(dtype) | {"causal": False}).flops or 0.0
    compute, moving = flops / flop_rate, least / bandwidth
    return Prediction(
        flops,
        least,
        stored,
        max(compute, moving),
        max(whole / flop_rate, stored / bandwidth),
        "compute" if compute > moving else "bandwidth",
    )
