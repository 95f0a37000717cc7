"""A row of an op's table: one implementation, what it needs, and where its function is.

Rows are literals and lazy: reading a table imports no framework.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
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
    layouts: tuple[str, ...] = ("dense",)  # each is a function of the module: ``Entry.load``
    compute_capability: tuple[int, int] | None = None  # at least, where the device has one
    architectures: tuple[tuple[int, int], ...] | None = None  # exactly one of these: sm_90a code
    grouped_heads: bool = True  # fewer key/value heads than heads
    unequal_dims: bool = True  # value_dim other than head_dim
    head_dims: tuple[int, ...] | None = None  # None: any
    dims: tuple[tuple[int, int], ...] | None = None  # (head_dim, value_dim) pairs; None: any
    page_sizes: tuple[int, ...] | None = None  # None: any
    formats: tuple[str, ...] = ()  # of a cache or of weights, where not the inputs' dtype
    packages: tuple[str, ...] = ()  # importable modules beyond the backend's own, all of them
    one_of: tuple[str, ...] = ()  # any one: a module, or "$NAME", a variable that names a file


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
        lacking = self._device(hardware, kind) or self._packages()
        if lacking is not None:
            return Availability(False, lacking)
        dtype, phase = conditions.get("dtype"), conditions.get("phase")
        if dtype is not None and dtype not in needs.dtypes[kind]:
            served = ", ".join(needs.dtypes[kind])
            return Availability(False, f"serves {served} on {kind}, not {dtype}")
        if phase is not None and phase not in needs.phases:
            return Availability(False, f"serves {', '.join(needs.phases)}, not {phase}")
        reason = self._layout(conditions) or self._shapes(conditions)
        return Availability(reason is None, reason)

    def _device(self, hardware: Device, kind: str) -> str | None:
        needs, have = self.needs, hardware.compute_capability
        if kind not in ("cuda", "gpu"):
            return None
        if (needs.compute_capability or needs.architectures) is not None and have is None:
            return "the device's compute capability is unknown"
        if needs.compute_capability is not None and have is not None:
            least = needs.compute_capability
            if have < least:
                return (
                    f"wants compute capability {least[0]}.{least[1]}, the device has "
                    f"{have[0]}.{have[1]}"
                )
        if needs.architectures is not None and have is not None and have not in needs.architectures:
            listed = ", ".join(f"{major}.{minor}" for major, minor in needs.architectures)
            return f"wants compute capability {listed} exactly, the device has {have[0]}.{have[1]}"
        return None

    def _packages(self) -> str | None:
        needs = self.needs
        for package in needs.packages:
            if not installed(package):
                return f"needs the package {package}, which is not installed"
        if needs.one_of and not any(installed(name) for name in needs.one_of):
            listed = ", ".join(needs.one_of)
            return f"needs one of {listed} ($NAME: a variable that names a file); none is there"
        return None

    def _layout(self, conditions: Mapping[str, Any]) -> str | None:
        needs = self.needs
        layout, page_size = conditions.get("layout", "dense"), conditions.get("page_size")
        stored = conditions.get("format")
        if stored is not None and stored not in needs.formats:
            served = ", ".join(needs.formats) or "no format but the inputs' dtype"
            return f"serves {served}, not {stored}"
        if layout not in needs.layouts:
            return f"serves the layout {', '.join(needs.layouts)}, not {layout}"
        if (
            page_size is not None
            and needs.page_sizes is not None
            and page_size not in needs.page_sizes
        ):
            return f"serves pages of {', '.join(map(str, needs.page_sizes))}, not of {page_size}"
        return None

    def _shapes(self, conditions: Mapping[str, Any]) -> str | None:
        needs = self.needs
        heads, head_dim = conditions.get("heads"), conditions.get("head_dim")
        kv_heads = conditions.get("kv_heads", heads)
        value_dim = conditions.get("value_dim", head_dim)
        if heads != kv_heads and not needs.grouped_heads:
            return f"wants as many kv heads as heads, not {kv_heads}/{heads}"
        if head_dim != value_dim and not needs.unequal_dims:
            return f"wants value_dim = head_dim, not {value_dim}/{head_dim}"
        if head_dim is None:
            return None
        if needs.head_dims is not None and head_dim not in needs.head_dims:
            return f"serves head_dim {', '.join(map(str, needs.head_dims))}, not {head_dim}"
        if needs.dims is not None and (head_dim, value_dim) not in needs.dims:
            listed = ", ".join(f"{wide}/{out}" for wide, out in needs.dims)
            return f"serves head_dim/value_dim {listed}, not {head_dim}/{value_dim}"
        return None

    def status(self, hardware: Device, conditions: Mapping[str, Any]) -> tuple[Status, str] | None:
        """The record's status and reason when this row cannot run here, else None."""
        ok, reason = self.available(hardware, conditions)
        return None if ok else (Status.UNSUPPORTED, f"{self.name} {reason}")

    def versions(self) -> dict[str, str]:
        """Versions of what this row loads besides its backend, by distribution; of a file that a
        variable names, by the variable, how its SHA-256 begins. Imports nothing."""
        chosen = next((name for name in self.needs.one_of if installed(name)), None)
        found: dict[str, str] = {}
        for name in (*self.needs.packages, *([chosen] if chosen else [])):
            found |= version(name)
        return found

    def load(self, layout: str = "dense") -> Callable[..., Any]:
        """Import and return the function; that of another layout is ``<function>_<layout>``.

        Raises ImportError when its framework is missing, ValueError for a layout that the row does
        not serve.
        """
        if layout not in self.needs.layouts:
            raise ValueError(
                f"layout: {self.name} serves {', '.join(self.needs.layouts)}, got {layout!r}"
            )
        module, _, name = self.function.partition(":")
        name = name if layout == "dense" else f"{name}_{layout}"
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


def installed(name: str) -> bool:
    """Whether a module can be imported, or the file that the variable "$NAME" names is there.

    Imports nothing: a parent package may be a framework, or be missing itself.
    """
    if name.startswith("$"):
        return name[1:] in os.environ and Path(os.environ[name[1:]]).is_file()
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as one that a test put there
        return not rest
    path = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return False
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, spec.submodule_search_locations)
    return spec is not None


def version(name: str) -> dict[str, str]:
    """The distributions that hold a module, with their versions; a named file by its content."""
    if name.startswith("$"):
        with Path(os.environ[name[1:]]).open("rb") as file:
            return {name[1:]: f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"}
    top = name.partition(".")[0]
    holders = _distributions().get(top, [])
    return {holder: metadata.version(holder) for holder in holders} or {top: "version unknown"}


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


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
