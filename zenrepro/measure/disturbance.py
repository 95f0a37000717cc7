"""What disturbed a measurement: a remark below a threshold, a reason above it.

A power cap is a remark only: a card at its power limit runs as fast as it is sold to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from zenrepro.hardware import State

# Share of the window that a cause other than the power cap held the clocks back.
THROTTLED_SHARE = 0.05
# Share of the GPU's time that other processes' kernels took.
OTHER_UTILISATION = 0.05
# Cores that others kept busy, as a share of those there are: remark, reason.
OTHERS_REMARK, OTHERS_REASON = 0.1, 0.5
# Counters of CPU time tick every 10 ms: over a shorter window they say nothing.
SHORTEST_WINDOW_S = 0.2
# The last third of the samples against the first: remark, reason.
DRIFT_REMARK, DRIFT_REASON = 0.05, 0.2
# Two groups of samples: how far apart, the empty part of that way, and the smallest share that
# makes a group.
MODES_APART, MODE_GAP, MODE_SHARE = 0.2, 0.6, 0.25
# Too few samples show neither drift nor groups.
FEWEST = 15

# States of the driver that mean trouble whenever they are seen, even for a moment.
_SERIOUS = ("thermal", "hardware slowdown", "power brake", "board limit", "reliability")


class Seen(NamedTuple):
    """Remarks, and reasons that make a measurement disturbed."""

    flags: list[str]
    reasons: list[str]


def look(seconds: Sequence[float], before: State, after: State, kind: str) -> Seen:
    """Judge the samples and the device's states before and after them. ``kind`` is the device's:
    what others do on the CPU disturbs only what runs there."""
    seen = Seen([], [])
    _throttling(before, after, seen)
    _other_processes(before, after, seen)
    if kind == "cpu":
        _other_load(before, after, seen)
    if before.on_battery or after.on_battery:
        seen.reasons.append("ran on battery")
    drift(seconds, seen)
    modes(seconds, seen)
    return seen


def describe(before: State, after: State) -> str | None:
    """The load by others between two looks, in words; None where it is unknown."""
    if after.other_processes is not None:
        most = max(after.other_processes, before.other_processes or 0)
        return f"{most} other processes on the device" if most else "none"
    share = _others_cores(before, after)
    return None if share is None else f"others used {share:.1f} of {after.cores:.0f} cores"


def _throttling(before: State, after: State, seen: Seen) -> None:
    window_s = after.at_s - before.at_s
    told = set()
    for cause, total_s in after.throttled_s.items():
        held_s = total_s - before.throttled_s.get(cause, total_s)
        share = min(1.0, held_s / window_s) if window_s > 0 else 0.0
        if share <= 0:
            continue
        told.add("power cap" if cause == "power" else cause)
        text = f"clocks held back for {share:.0%} of the window ({cause})"
        past = cause != "power" and share > THROTTLED_SHARE
        (seen.reasons if past else seen.flags).append(text)
    for reason in after.throttle_reasons:
        serious = reason.startswith(_SERIOUS)
        if serious or reason not in told:
            (seen.reasons if serious else seen.flags).append(f"throttled at the end: {reason}")


def _other_processes(before: State, after: State, seen: Seen) -> None:
    count = max(before.other_processes or 0, after.other_processes or 0)
    if not count:
        return
    shares = [s.other_utilisation for s in (before, after) if s.other_processes]
    known = [share for share in shares if share is not None]
    unknown = len(known) < len(shares)
    using = "use unknown" if unknown else f"using up to {max(known):.0%} of it"
    text = f"{count} other processes on the device, {using}"
    past = unknown or max(known) > OTHER_UTILISATION
    (seen.reasons if past else seen.flags).append(text)


def _others_cores(before: State, after: State) -> float | None:
    window_s = after.at_s - before.at_s
    if window_s < SHORTEST_WINDOW_S:
        return None
    totals = (before.busy_s, after.busy_s, before.own_busy_s, after.own_busy_s)
    if any(total is None for total in totals) or after.cores is None:
        return None
    busy = (totals[1] or 0) - (totals[0] or 0)
    own = (totals[3] or 0) - (totals[2] or 0)
    return max(0.0, busy - own) / window_s


def _other_load(before: State, after: State, seen: Seen) -> None:
    used = _others_cores(before, after)
    if used is None or not after.cores:
        return
    share = used / after.cores
    text = f"others used {used:.1f} of {after.cores:.0f} cores"
    if share > OTHERS_REASON:
        seen.reasons.append(text)
    elif share > OTHERS_REMARK:
        seen.flags.append(text)


def drift(seconds: Sequence[float], seen: Seen) -> None:
    """The median of the last third against the first's, where the two thirds do not overlap.

    One sample in eight may lie outside. Pure noise separates two groups of five in 1 of 126 runs.
    """
    if len(seconds) < FEWEST:
        return
    third = len(seconds) // 3
    first, last = sorted(seconds[:third]), sorted(seconds[-third:])
    outliers = third // 8
    rose = last[outliers] > first[-1 - outliers]
    fell = last[-1 - outliers] < first[outliers]
    change = median(last) / median(first) - 1
    if (rose or fell) and abs(change) > DRIFT_REMARK:
        text = f"drifted by {change:+.0%} from the first third of the samples to the last"
        (seen.reasons if abs(change) > DRIFT_REASON else seen.flags).append(text)


def modes(seconds: Sequence[float], seen: Seen) -> None:
    """Two groups of samples, split at the widest gap, which is most of the way between them."""
    if len(seconds) < FEWEST:
        return
    ordered = sorted(seconds)
    fewest = max(2, int(MODE_SHARE * len(ordered)))
    gap, cut = max(
        (ordered[i] - ordered[i - 1], i) for i in range(fewest, len(ordered) - fewest + 1)
    )
    low, high = ordered[:cut], ordered[cut:]
    apart = median(high) - median(low)
    if apart > MODES_APART * median(low) and gap > MODE_GAP * apart:
        seen.reasons.append(
            f"two groups of samples: {len(low)} near {median(low):.3g} s, "
            f"{len(high)} near {median(high):.3g} s"
        )
