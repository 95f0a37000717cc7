"""What an experiment hands to its session: parameters, points of work, and their results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import msgspec

from zenrepro.records import DeviceClass, Environment, Kind, Origin, Status, Work

SCALES = ("smoke", "small", "full")
FULL_SCALE_BYTES = 80e9

# The unit of a record that has no samples; a measured one has its result's unit.
UNITS: dict[str, str] = {
    "time": "s", "latency": "s", "throughput": "token/s", "bandwidth": "B/s",
    "flop_rate": "FLOP/s", "traffic": "B", "memory": "B", "size": "B", "count": "count",
    "energy_per_token": "J/token", "power": "W", "utilisation": "%", "share": "%", "ratio": "x",
}  # fmt: skip


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every experiment can be told; an experiment's own ``Parameters`` derives from this.

    ``device`` None is the backend's best device; ``scale`` None is ``full`` on a GPU with at
    least 80 GB and ``small`` elsewhere. A session holds the resolved values, never None.
    ``selecting`` names the parameters that only choose among points: changing one makes nothing
    stale. Neither do those that are conditions, since they are part of a record's identity.
    """

    selecting: ClassVar[tuple[str, ...]] = ("implementations",)

    backend: Literal["torch", "jax", "mlx"] = "torch"
    device: str | None = None
    scale: Literal["smoke", "small", "full"] | None = None
    seed: int = 0


def default_scale(device: str, of: DeviceClass) -> str:
    """``full`` on a GPU with at least 80 GB, else ``small``."""
    gpu = device.startswith(("cuda", "gpu", "metal"))
    enough = of.memory_bytes is not None and of.memory_bytes >= FULL_SCALE_BYTES
    return "full" if gpu and enough else "small"


class _Sampled(Protocol):
    """What of ``measure.Sampled`` a result takes over."""

    seconds: list[float]
    method: str
    flags: list[str]
    status: Status
    reason: str | None
    state: Environment


class Result(msgspec.Struct, kw_only=True):
    """One quantity that a point measured: raw samples in ``unit``, or a status with its reason."""

    quantity: str
    metric: str
    unit: str
    samples: list[float] = []
    status: Status = Status.OK
    reason: str | None = None
    kind: Kind = Kind.MEASURED
    work: Work | None = None
    method: str | None = None
    flags: list[str] = []
    state: Environment | None = None
    """Clocks, throttling and other load while it was measured; None keeps the session's."""

    @classmethod
    def of(
        cls,
        sampled: _Sampled,
        quantity: str,
        metric: str,
        unit: str,
        value: Callable[[float], float] = float,
        work: Work | None = None,
    ) -> Result:
        """A result from timed samples: each is ``value(seconds)`` in ``unit``.

        Status, reason, flags and state are those of the samples; without a value there are none.
        """
        kept = sampled.status in (Status.OK, Status.DISTURBED)
        return cls(
            quantity=quantity,
            metric=metric,
            unit=unit,
            samples=[value(s) for s in sampled.seconds] if kept else [],
            status=sampled.status,
            reason=sampled.reason,
            work=work,
            method=sampled.method,
            flags=list(sampled.flags),
            state=sampled.state,
        )


class Prepared(NamedTuple):
    """A call that passed its gate, and what turns its samples into results."""

    call: Callable[[], Any]
    finish: Callable[[Any], list[Result]]
    """Takes the ``measure.Sampled`` of the call, whatever its status."""


class Point(msgspec.Struct, kw_only=True):
    """One unit of resumable work: it yields the records ``produces`` of one implementation.

    Work is either ``measure``, which samples by itself, or ``prepare``, whose call the session
    samples: points that follow each other with the same ``group`` in turn (A B C, B C A, ...), so
    that they can be compared. ``prepare`` runs the gate; where that fails it returns results in
    place of a call. Both are called only when a record is missing or stale. ``modules``, ``rows``
    and ``data`` are what freshness hashes, besides the experiment's own module: the modules whose
    import closure takes part, table rows as ``module:name``, and project-relative data files.
    ``unavailable`` is a status and reason known without measuring, ``packages`` the versions of
    what this implementation loads besides its backend: its records' environment names them too.
    """

    implementation: str
    conditions: dict[str, Any]
    produces: Sequence[tuple[str, str]]
    origin: Origin
    measure: Callable[[], list[Result]] | None = None
    prepare: Callable[[], Prepared | list[Result]] | None = None
    group: str | None = None
    modules: Sequence[str] = ()
    rows: Sequence[str] = ()
    data: Sequence[str] = ()
    unavailable: tuple[Status, str] | None = None
    packages: Mapping[str, str] = {}
    baseline: str | None = None

    def __post_init__(self) -> None:
        if (self.measure is None) == (self.prepare is None):
            raise ValueError(f"point {self.implementation}: wants either `measure` or `prepare`")


def together(points: Sequence[Point], alone: Collection[int] = ()) -> Iterator[list[Point]]:
    """The points as they are to be sampled: neighbours of one group together, in their order.

    ``alone`` are the ``id`` of points that are to be sampled by themselves all the same.
    """
    held: list[Point] = []
    for point in points:
        joins = point.group is not None and point.prepare is not None and id(point) not in alone
        if held and not (joins and held[0].group == point.group and id(held[0]) not in alone):
            yield held
            held = []
        held.append(point)
    if held:
        yield held
