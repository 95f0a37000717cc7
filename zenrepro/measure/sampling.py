"""Raw samples of calls: warm-up, cold caches, a time box, and the device's state around them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from zenrepro import hardware
from zenrepro.backends import Backend, Timing
from zenrepro.backends.base import one_line
from zenrepro.backends.turns import forgotten
from zenrepro.errors import InputError
from zenrepro.measure import disturbance
from zenrepro.records import Environment, Status

SCALES = ("smoke", "small", "full")


class Plan(NamedTuple):
    """How much is sampled: at most ``samples``, within ``budget_s`` where three fit, after
    ``warmup_s`` of calls (an idle GPU needs that long to reach its clocks)."""

    samples: int
    budget_s: float
    warmup_s: float


PLANS: dict[str, Plan] = {
    "smoke": Plan(samples=3, budget_s=0.5, warmup_s=0.0),
    "small": Plan(samples=15, budget_s=1.0, warmup_s=0.05),
    "full": Plan(samples=50, budget_s=3.0, warmup_s=0.25),
}
# A call so slow that three samples take longer than this gets fewer.
_LONGEST_S = 10.0
_MOST_WARMUP = 1000


class Sampled(msgspec.Struct, kw_only=True):
    """What was seen of one call. ``seconds`` are raw, one a sample; empty where there are none.

    ``status`` is ok, disturbed (samples kept, ``reason`` says by what), oom, or failed (only where
    several calls were sampled together). ``flags`` are remarks below that threshold.
    ``peak_bytes`` is device memory of one call above what was held before it; None is unknown.
    ``state`` is the device right after the last sample.
    """

    seconds: list[float]
    method: str
    flags: list[str]
    status: Status
    reason: str | None
    peak_bytes: int | None
    state: Environment


def sample(
    backend: Backend,
    call: Callable[[], Any],
    *,
    scale: str,
    cold: bool = True,
    warmup_s: float | None = None,
) -> Sampled:
    """Sample ``call``, which starts the work and returns its result.

    ``warmup_s`` replaces the scale's warm-up: a card that starts cool runs above its sustained
    clocks until it meets its power limit, which takes a second or two of full load.
    Running out of memory becomes the status oom, with what was held given back; any other error
    of the call is raised. Raises InputError for an unknown scale.
    """
    plan = _plan(scale, warmup_s)
    try:
        peak_bytes, once_s = _first_calls(backend, call)
        samples, warmup = _fit(plan, once_s)
        before = backend.state()
        timing = backend.time(
            call, samples=samples, warmup=warmup, cold=cold, budget_s=plan.budget_s
        )
        after = backend.state()
    except Exception as error:
        if not backend.is_out_of_memory(error):
            raise
        return _unsampled(backend, forgotten(error))
    return _sampled(backend, timing, plan, before, after, peak_bytes)


def sample_together(
    backend: Backend,
    calls: Mapping[str, Callable[[], Any]],
    *,
    scale: str,
    cold: bool = True,
    warmup_s: float | None = None,
) -> dict[str, Sampled]:
    """Sample several calls in turn, A B C, B C A and so on, so that they can be compared.

    As ``sample``, but no error of a call is raised: one that runs out of memory has the status
    oom, one that fails otherwise ``failed`` with its reason, and the others are sampled. The
    method says beside which others a call was sampled; a flag says where some that were given
    were not among them. Raises InputError for an unknown scale.
    """
    plan = _plan(scale, warmup_s)
    out: dict[str, Sampled] = {}
    first: dict[str, tuple[int | None, int, int]] = {}
    for name, call in calls.items():
        try:
            peak_bytes, once_s = _first_calls(backend, call)
            first[name] = (peak_bytes, *_fit(plan, once_s))
        except Exception as error:  # noqa: BLE001  (becomes a status; the others go on)
            out[name] = _unsampled(backend, forgotten(error))
    before = backend.state()
    turns = backend.time_together(
        {name: calls[name] for name in first},
        samples={name: samples for name, (_, samples, _) in first.items()},
        warmup={name: warmup for name, (_, _, warmup) in first.items()},
        cold=cold,
        budget_s=plan.budget_s,
    )
    after = backend.state()
    well = {name for name, turn in turns.items() if turn.error is None}
    for name, turn in turns.items():
        if turn.timing is None:
            out[name] = _unsampled(backend, turn.error or RuntimeError("was not timed"))
            continue
        beside = f"in turn with {', '.join(turn.beside)}" if turn.beside else "by itself"
        timing = turn.timing._replace(method=f"{turn.timing.method}; {beside}")
        out[name] = _sampled(backend, timing, plan, before, after, first[name][0])
        apart = sorted(well - {name, *turn.beside})
        if apart:
            out[name].flags.append(
                f"not in turn with {', '.join(apart)}: no memory for all at once"
            )
    return {name: out[name] for name in calls}


def _plan(scale: str, warmup_s: float | None) -> Plan:
    if scale not in PLANS:
        raise InputError(f"unknown scale {scale!r}; wanted one of {', '.join(PLANS)}")
    return PLANS[scale] if warmup_s is None else PLANS[scale]._replace(warmup_s=warmup_s)


def _unsampled(backend: Backend, error: Exception) -> Sampled:
    """What stands for the samples of a call that failed. Its memory is given back."""
    backend.release()
    oom = backend.is_out_of_memory(error)
    said = one_line(error)
    return Sampled(
        seconds=[], method="", flags=[], peak_bytes=None,
        status=Status.OOM if oom else Status.FAILED,
        reason=f"out of memory: {said}" if oom else f"{type(error).__name__}: {said}",
        state=_environment(backend, backend.state()),
    )  # fmt: skip


def _sampled(
    backend: Backend,
    timing: Timing,
    plan: Plan,
    before: hardware.State,
    after: hardware.State,
    peak_bytes: int | None,
) -> Sampled:
    """Judge what was timed between two looks at the device."""
    seen = disturbance.look(timing.seconds, before, after, backend.kind)
    flags = list(seen.flags)
    if len(timing.seconds) < plan.samples:
        flags.append(f"time box: {len(timing.seconds)} of {plan.samples} samples")
    return Sampled(
        seconds=timing.seconds,
        method=timing.method,
        flags=flags,
        status=Status.DISTURBED if seen.reasons else Status.OK,
        reason="; ".join(seen.reasons) or None,
        peak_bytes=peak_bytes,
        state=msgspec.structs.replace(
            _environment(backend, after), other_load=disturbance.describe(before, after)
        ),
    )


def _first_calls(backend: Backend, call: Callable[[], Any]) -> tuple[int | None, float]:
    """Peak memory, and about how long one call takes once it is compiled."""
    backend.synchronise()  # Compiles what waiting needs, so that it is not taken for the call.
    peak_bytes = backend.peak_memory(call)
    once_s = _once(backend, call)
    if peak_bytes is None and once_s > 0.5:
        # Unknown peak may mean that nothing was called before: this one may have compiled.
        once_s = min(once_s, _once(backend, call)) if once_s < _LONGEST_S else once_s
    return peak_bytes, once_s


def _once(backend: Backend, call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    backend.synchronise(backend.start(call))
    return time.perf_counter() - begin


def _fit(plan: Plan, once_s: float) -> tuple[int, int]:
    """(samples, warm-up calls) for a call of this length."""
    once_s = max(once_s, 1e-7)
    samples = max(1, min(plan.samples, int(_LONGEST_S / once_s)))
    warmup = max(1, min(_MOST_WARMUP, math.ceil(plan.warmup_s / once_s)))
    return samples, 0 if once_s > plan.budget_s else warmup


def _environment(backend: Backend, now: hardware.State) -> Environment:
    return hardware.environment(backend.name, backend.device, now)
