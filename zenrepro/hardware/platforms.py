"""Device classes: the slug that comparisons join on, from what drivers call a device."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from zenrepro import records, specs
from zenrepro.hardware.state import Static

_CPU_WORDS = re.compile(
    r"\((?:r|tm|c)\)|[®™]|@\s*[\d.]+\s*[gm]hz|\b\d+-core\b|\bprocessor\b|\bcpu\b|\bwith\b.*$",
    re.IGNORECASE,
)
_MAXIMUM = 48
_MEMORY_TOLERANCE = 0.2


def slug(name: str) -> str:
    """A name as lower-case words joined by dashes, cut at a word near 48 characters."""
    text = "-".join(re.findall(r"[a-z0-9]+", name.lower()))
    if len(text) > _MAXIMUM:
        text = text[:_MAXIMUM].rsplit("-", 1)[0] if "-" in text[:_MAXIMUM] else text[:_MAXIMUM]
    return text or "unknown"


def cpu_slug(model: str, cores: int) -> str:
    """``cpu-intel-xeon-2c`` for "Intel(R) Xeon(R) CPU @ 2.20GHz" with two usable cores.

    The clock is left out: it is what the maker prints, not what the machine runs at.
    """
    return f"cpu-{slug(_CPU_WORDS.sub(' ', model))}-{cores}c"


def classify(
    kind: str, static: Static, cores: int | None, folder: Path | None
) -> records.DeviceClass:
    """The device class: a datasheet's platform where one knows the device's name, else a slug.

    A CPU is only matched with datasheets of CPUs (platforms that start with ``cpu-``): on Apple
    silicon and Jetson the CPU bears the name of the whole chip.
    """
    sheet = _match(kind, tuple(static.names), static.memory_bytes, folder)
    model = static.names[0]
    if sheet is not None:
        platform = sheet.platform
    elif kind == "cpu":
        platform = cpu_slug(model, cores or 1)
    else:
        platform = slug(model)
    return records.DeviceClass(
        platform=platform,
        model=sheet.name if sheet is not None else model,
        form_factor=sheet.form_factor if sheet is not None else None,
        memory_bytes=static.memory_bytes,
    )


@cache
def _match(
    kind: str, names: tuple[str, ...], memory_bytes: int | None, folder: Path | None
) -> specs.Datasheet | None:
    if folder is None or not folder.is_dir():
        return None
    wanted = [_plain(name) for name in names]
    for sheet in specs.load(folder).values():
        if (kind == "cpu") != sheet.platform.startswith("cpu-"):
            continue
        if not any(_plain(name) in wanted for name in sheet.device_names):
            continue
        # Apple sells one chip with several memories, and its datasheet tells the largest.
        if kind == "metal" or _fits(sheet.figure("memory", "capacity"), memory_bytes):
            return sheet
    return None


def _fits(stated: float | None, seen: int | None) -> bool:
    """Whether the memory seen is the datasheet's: one name is sold with several sizes. A driver
    keeps some for itself, and a maker's GB may be a GiB."""
    return stated is None or seen is None or abs(seen / stated - 1) <= _MEMORY_TOLERANCE


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
