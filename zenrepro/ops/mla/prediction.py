"""What counting says before anything is measured: the roofline's time for one case."""

from __future__ import annotations

from typing import NamedTuple

from zenrepro import counts
from zenrepro.ops.mla.cases import Case


class Prediction(NamedTuple):
    """Least work of one call, and the least time that ceilings allow for it.

    ``seconds`` and ``bound``, the resource that sets it, are None where a ceiling is not known.
    """

    flops: float
    bytes: float
    seconds: float | None
    bound: str | None


def predict(case: Case, dtype: str, flop_rate: float | None, bandwidth: float | None) -> Prediction:
    """The least work and time of a case. ``flop_rate`` in FLOP/s, ``bandwidth`` in B/s."""
    work = counts.mla_of(case.conditions(dtype))
    flops, moved = work.flops or 0.0, work.bytes or 0.0
    if flop_rate is None or bandwidth is None:
        return Prediction(flops, moved, None, None)
    compute, moving = flops / flop_rate, moved / bandwidth
    which = "compute" if compute > moving else "bandwidth"
    return Prediction(flops, moved, max(compute, moving), which)
