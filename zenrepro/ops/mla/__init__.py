"""Multi-head latent attention: one latent row a token, shared by all heads, in place of K and V.

Decode runs absorbed, over a paged cache of latent rows; prefill expands the rows to keys of 192 and
values of 128, or stays absorbed. ``TABLE`` lists the implementations, ``CASES`` the shapes,
``reference`` is the plain fp64 one. None of them imports a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zenrepro.ops.mla import reference
    from zenrepro.ops.mla.cases import CASES
    from zenrepro.ops.mla.table import TABLE

__all__ = ["CASES", "TABLE", "reference"]

_FROM = {"CASES": "cases", "TABLE": "table"}


def __getattr__(name: str) -> Any:
    if name == "reference":
        return importlib.import_module("zenrepro.ops.mla.reference")
    if name in _FROM:
        return getattr(importlib.import_module(f"zenrepro.ops.mla.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
