"""A row of an op's table: one implementation, what it needs, and where its function is.

Rows are literals and lazy: reading a table imports no framework.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from zenrepro.records import Origin, Status


class UnsupportedError(Exception):
    """The library refuses these conditions on this device: a record with this reason, no speed."""


class Availability(NamedTuple):
    """Whether a row can run here, else why not, in one line."""

    ok: bool
    reason: str | None


class Device(Protocol):
    """What a row needs to know of the hardware (``zenrepro.hardware.Hardware`` has it)."""

    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def compute_capability(self) -> tuple[int, int] | None: ...


class Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an implementation runs on. ``dtypes`` lists formats by device kind (the part of
    "cuda:0" before the colon); a device kind that is not listed is not served."""

    dtypes: dict[str, tuple[str, ...]]
    phases: tuple[str, ...] = ("prefill", "decode")
    compute_capability: tuple[int, int] | None = None  # at least, where the device has one
    grouped_heads: bool = True  # fewer key/value heads than heads
    unequal_dims: bool = True  # value_dim other than head_dim
    head_dims: tuple[int, ...] | None = None  # None: any
    packages: tuple[str, ...] = ()  # importable modules beyond the backend's own


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One implementation of one op.

    ``function`` is "module:function"; ``compiled`` says whether it goes through the backend's own
    compiler; ``sources`` are project-relative files of device code that it compiles itself;
    ``paper`` cites the algorithm.
    """

    name: str  # "<backend>.<algorithm>", unique in its table
    backend: str
    algorithm: str
    origin: Origin
    function: str
    needs: Needs
    compiled: bool = True
    sources: tuple[str, ...] = ()
    paper: str | None = None

    @property
    def module(self) -> str:
        """The module of the function, where freshness starts."""
        return self.function.partition(":")[0]

    def available(self, hardware: Device, conditions: Mapping[str, Any] = {}) -> Availability:
        """Whether this row can run these conditions on this device, else why not.

        Without conditions: whether it can run there at all. Imports no framework.
        """
        needs, kind = self.needs, hardware.device.partition(":")[0]
        if hardware.backend != self.backend:
            return Availability(False, f"is a {self.backend} implementation")
        if kind not in needs.dtypes:
            return Availability(False, f"runs on {', '.join(needs.dtypes)}, not on {kind}")
        have, want = hardware.compute_capability, needs.compute_capability
        if want is not None and kind in ("cuda", "gpu"):
            if have is None:
                return Availability(False, "the device's compute capability is unknown")
            if have < want:
                return Availability(
                    False,
                    f"wants compute capability {want[0]}.{want[1]}, the device has "
                    f"{have[0]}.{have[1]}",
                )
        for package in needs.packages:
            if importlib.util.find_spec(package) is None:
                return Availability(False, f"needs the package {package}, which is not installed")
        dtype, phase = conditions.get("dtype"), conditions.get("phase")
        if dtype is not None and dtype not in needs.dtypes[kind]:
            served = ", ".join(needs.dtypes[kind])
            return Availability(False, f"serves {served} on {kind}, not {dtype}")
        if phase is not None and phase not in needs.phases:
            return Availability(False, f"serves {', '.join(needs.phases)}, not {phase}")
        return self._shapes(conditions)

    def _shapes(self, conditions: Mapping[str, Any]) -> Availability:
        needs = self.needs
        heads, head_dim = conditions.get("heads"), conditions.get("head_dim")
        kv_heads = conditions.get("kv_heads", heads)
        value_dim = conditions.get("value_dim", head_dim)
        if heads != kv_heads and not needs.grouped_heads:
            return Availability(False, f"wants as many kv heads as heads, not {kv_heads}/{heads}")
        if head_dim != value_dim and not needs.unequal_dims:
            return Availability(False, f"wants value_dim = head_dim, not {value_dim}/{head_dim}")
        if needs.head_dims is not None and head_dim is not None and head_dim not in needs.head_dims:
            return Availability(
                False, f"serves head_dim {', '.join(map(str, needs.head_dims))}, not {head_dim}"
            )
        return Availability(True, None)

    def status(self, hardware: Device, conditions: Mapping[str, Any]) -> tuple[Status, str] | None:
        """The record's status and reason when this row cannot run here, else None."""
        ok, reason = self.available(hardware, conditions)
        return None if ok else (Status.UNSUPPORTED, f"{self.name} {reason}")

    def load(self) -> Callable[..., Any]:
        """Import and return the function. Raises ImportError when its framework is missing."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


def check_table(table: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return the table. Raises ValueError for a name that is doubled or not backend.algorithm."""
    seen: set[str] = set()
    for entry in table:
        if entry.name != f"{entry.backend}.{entry.algorithm}":
            raise ValueError(f"table row {entry.name!r}: name is not backend.algorithm")
        if entry.name in seen:
            raise ValueError(f"table row {entry.name!r} is there twice")
        seen.add(entry.name)
    return table
