"""The figures: what each shows, from which data, and whether it has to be drawn again.

Drawing needs matplotlib, which is imported only then; a figure whose data and code are unchanged
is read from the generated folder.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A figure, or the reason why there is none. ``file`` is its name beside the document."""

    name: str
    caption: str
    file: str
    pdf: bytes
    svg: bytes
    reason: str
    width: str = r"0.92\textwidth"


def draw(evidence: object) -> list[Figure]:
    return [
        Figure("roofline", "Roofline", "", b"", b"", "No figure yet."),
        Figure("ratios", "Ratios", "", b"", b"", "No figure yet."),
    ]
