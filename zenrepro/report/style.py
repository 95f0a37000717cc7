"""How figures look: TeX's fonts, greys and markers that survive a copier, no dates inside."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT_WIDTH_IN = 6.46  # 164 mm, the width of the text
MARKERS = "osD^vPX*<>ph"
GREYS = ("0.0", "0.4", "0.6", "0.2", "0.5", "0.7")
_RC: dict[Any, Any] = {
    "font.family": ["cmr10", "STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "cm",
    "axes.formatter.use_mathtext": True,
    "axes.unicode_minus": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.minor.width": 0.3,
    "ytick.minor.width": 0.3,
    "lines.linewidth": 0.9,
    "legend.frameon": False,
    "pdf.fonttype": 3,
    "svg.fonttype": "path",
    "svg.hashsalt": "zenrepro",
    "figure.dpi": 100,
}


@contextmanager
def paper() -> Iterator[None]:
    """The style of the report, whatever the user's own settings are; no display is needed."""
    import matplotlib as mpl

    mpl.use("agg")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def saved(figure: Figure) -> tuple[bytes, bytes]:
    """(PDF, SVG) of a figure, the same bytes for the same figure."""
    out = []
    for kind, metadata in (
        ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
        ("svg", {"Date": None, "Creator": None}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata, bbox_inches="tight", pad_inches=0.02)
        out.append(buffer.getvalue())
    import matplotlib.pyplot as plt

    plt.close(figure)
    return out[0], out[1]


def plain(text: str) -> str:
    """A label that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
