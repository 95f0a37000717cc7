"""Number formats: how many bits one element takes. Scales and zero points are not counted here."""

from __future__ import annotations

from zenrepro.conditions import FORMATS
from zenrepro.errors import InputError

BITS: dict[str, int] = {
    "fp64": 64, "fp32": 32, "fp16": 16, "bf16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4, "nf4": 4,
}  # fmt: skip


def element_bytes(name: str) -> float:
    """Bytes of one element. Raises InputError for an unknown format."""
    try:
        return BITS[name] / 8
    except KeyError:
        raise InputError(f"unknown number format {name!r}; known: {', '.join(FORMATS)}") from None
