"""The devices of this machine as lines of a table, for `zenrepro hardware`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from zenrepro import hardware
from zenrepro.units import convert


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One device of one backend; ``reason`` says why it is not usable, None where it is."""

    backend: str
    device: str
    model: str = ""
    platform: str = ""
    memory: str = ""
    software: str = ""
    state: str = ""
    reason: str | None = None


def rows(found: Iterable[hardware.Hardware | hardware.Missing]) -> list[Row]:
    """What ``hardware.devices`` found, ready to print: empty text is unknown."""
    return [
        Row(backend=item.backend, device=item.device or "", reason=item.reason)
        if isinstance(item, hardware.Missing)
        else _row(item)
        for item in found
    ]


def _row(item: hardware.Hardware) -> Row:
    environment, memory = item.environment, item.device_class.memory_bytes
    software = [
        f"{item.backend} {environment.packages.get(item.backend, '')}".strip(),
        environment.runtime,
        f"driver {environment.driver}" if environment.driver else None,
    ]
    clocks = [f"{name} {mhz:.0f} MHz" for name, mhz in environment.clocks_mhz.items()]
    watts, celsius = environment.power_limit_w, environment.temperature_c
    state = [
        *clocks,
        f"limit {watts:.0f} W" if watts is not None else None,
        f"{celsius:.0f} °C" if celsius is not None else None,
        item.power_mode,
        *(f"throttled: {reason}" for reason in environment.throttle_reasons),
        environment.other_load if environment.other_load != "none" else None,
    ]
    return Row(
        backend=item.backend,
        device=item.device,
        model=item.device_class.model,
        platform=item.device_class.platform,
        memory=f"{convert(memory, 'B', 'GB'):.1f} GB" if memory is not None else "",
        software=", ".join(text for text in software if text),
        state=", ".join(text for text in state if text),
    )
