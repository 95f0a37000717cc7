"""The figures: what each shows, from which data, and whether it has to be drawn again.

``draw`` reads figures whose data and drawing code are unchanged from the generated folder;
matplotlib is imported only for the others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zenrepro.report import ablation, ratios, roofline, traffic
from zenrepro.report.evidence import Evidence
from zenrepro.results.store import write_atomically

_HERE = Path(__file__).parent
_MODULES = {"roofline": roofline, "ablation": ablation, "traffic": traffic, "ratios": ratios}
NAMES = tuple(_MODULES)


@dataclass(frozen=True)
class Figure:
    """A figure, or the reason why there is none. ``file`` is its name beside the document."""

    name: str
    caption: str
    file: str
    pdf: bytes
    svg: bytes
    reason: str
    width: str = r"\textwidth"


def draw(evidence: Evidence, folder: Path) -> list[Figure]:
    """Every figure for which there are data, drawn into ``folder`` (PDF and SVG)."""
    out = []
    for name, module in _MODULES.items():
        data, reason = module.collect(evidence)
        if data is None:
            out.append(Figure(name, module.CAPTION, "", b"", b"", reason))
            continue
        paths = (folder / f"{name}.pdf", folder / f"{name}.svg")
        stamp = folder / f".{name}.drawn"
        wanted = _digest(name, data, paths)
        if wanted is None or not stamp.is_file() or stamp.read_text() != wanted:
            folder.mkdir(parents=True, exist_ok=True)
            for path, content in zip(paths, _drawn(module, data), strict=True):
                write_atomically(path, content)
            write_atomically(stamp, (_digest(name, data, paths) or "").encode())
        pdf, svg = (path.read_bytes() for path in paths)
        out.append(Figure(name, module.CAPTION, paths[0].name, pdf, svg, ""))
    return out


def _digest(name: str, data: Any, paths: tuple[Path, Path]) -> str | None:
    """What a drawing came from and is; None while it is not there."""
    if not all(path.is_file() for path in paths):
        return None
    total = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    for source in (f"{name}.py", "style.py"):
        total.update((_HERE / source).read_bytes())
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _drawn(module: Any, data: Any) -> tuple[bytes, bytes]:
    from zenrepro.report import style

    with style.paper():
        return style.saved(module.plot(data))
