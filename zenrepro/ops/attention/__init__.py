"""Attention: softmax(Q K^T / sqrt(d)) V over [B, T, H, D], causal or full, with grouped heads.

``TABLE`` lists the implementations, ``CASES`` the shapes, ``reference`` is the plain fp64 one. They
are imported when first asked for; none of them imports a framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zenrepro.ops.attention import reference
    from zenrepro.ops.attention.cases import CASES
    from zenrepro.ops.attention.table import TABLE

__all__ = ["CASES", "TABLE", "reference"]

_FROM = {"CASES": "cases", "TABLE": "table"}


def __getattr__(name: str) -> Any:
    if name == "reference":
        return importlib.import_module("zenrepro.ops.attention.reference")
    if name in _FROM:
        return getattr(importlib.import_module(f"zenrepro.ops.attention.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
