"""The volatile state of a device: what can disturb a measurement, read before and after it."""

from __future__ import annotations

import msgspec


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a device. None (or an empty collection) means unknown, never zero.

    ``throttled_s`` are running totals in seconds per cause, from the driver: a difference of two
    looks says how long the device was held back between them. ``busy_s`` and ``own_busy_s`` are
    running totals of CPU time (all cores) used by the whole machine and by this process with its
    children; ``load_average`` is the last minute's, our own work included.
    """

    at_s: float
    clocks_mhz: dict[str, float] = {}
    throttle_reasons: list[str] = []
    throttled_s: dict[str, float] = {}
    temperature_c: float | None = None
    power_w: float | None = None
    other_processes: int | None = None
    other_utilisation: float | None = None
    busy_s: float | None = None
    own_busy_s: float | None = None
    cores: float | None = None
    load_average: float | None = None
    on_battery: bool | None = None


class Static(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while a process lives. ``names`` are what drivers call the device,
    the most telling first; ``identity`` tells two devices of one kind apart and is only ever
    used hashed."""

    names: list[str]
    identity: str
    memory_bytes: int | None = None
    driver: str | None = None
    runtime: str | None = None
    power_limit_w: float | None = None
    compute_capability: tuple[int, int] | None = None
    power_mode: str | None = None
