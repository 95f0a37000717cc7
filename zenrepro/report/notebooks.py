"""Executed notebooks as pages: nbconvert's body in our own frame, so that nothing is loaded from a
network. A notebook that is unchanged is not converted again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from zenrepro.report.evidence import Evidence
from zenrepro.results.store import write_atomically

FOLDER = "notebooks"
_TEMPLATE = "notebook.html.jinja"
_MANIFEST = ".notebooks.json"


@dataclass(frozen=True)
class Page:
    """An executed notebook: its page, relative to the edition's folder, and its state."""

    file: str
    machine: str
    name: str
    failed: bool


def convert(evidence: Evidence, folder: Path, env: jinja2.Environment) -> list[Page]:
    """Convert what changed of ``build/notebooks/<machine>/*.ipynb``; return all pages.

    A file that is not a notebook becomes a page that says so: one broken file stops nothing.
    """
    source = evidence.project.build / FOLDER
    manifest = folder / _MANIFEST
    known = _read(manifest)
    fresh: dict[str, Any] = {}
    pages = []
    for path in sorted(source.glob("*/*.ipynb")):
        content = path.read_bytes()
        machine, name = path.parent.name, path.stem
        file = f"{FOLDER}/{machine}--{name}.html"
        digest = hashlib.sha256(content + _own_digest(env)).hexdigest()
        entry = known.get(file)
        target = folder / file
        if not (isinstance(entry, dict) and entry.get("digest") == digest and target.is_file()):
            body, failed = _body(content)
            text = env.get_template(_TEMPLATE).render(
                title=f"{name} on {machine}", machine=machine, name=name, failed=failed,
                body=Markup(body), highlight=Markup(_highlighting()), up="../",
            )  # fmt: skip
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, text.encode())
            entry = {"digest": digest, "failed": failed}
        fresh[file] = entry
        pages.append(Page(file, machine, name, bool(entry["failed"])))
    if fresh != known:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(manifest, json.dumps(fresh, indent=1).encode())
    return pages


def _own_digest(env: jinja2.Environment) -> bytes:
    """What a page depends on besides its notebook."""
    loader = env.loader
    assert loader is not None
    sources = [loader.get_source(env, name)[0] for name in (_TEMPLATE, "base.html.jinja")]
    return hashlib.sha256("\0".join([*sources, Path(__file__).read_text()]).encode()).digest()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _body(content: bytes) -> tuple[str, bool]:
    """(HTML of the cells, whether a cell failed)."""
    import nbformat
    from nbconvert.exporters import HTMLExporter

    try:
        notebook = nbformat.reads(content.decode(), as_version=4)
    except Exception as error:  # noqa: BLE001  (nbformat raises many kinds; the page shows it)
        return str(Markup("<p>Not a notebook: {}</p>").format(" ".join(str(error).split()))), True
    failed = any(
        output.get("output_type") == "error"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    # Widgets and scripts need a live page; their text or image stands beside them.
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in [k for k in data if "javascript" in k or "widget" in k]:
                del data[kind]
    exporter = HTMLExporter(template_name="basic", embed_images=True, exclude_anchor_links=True)
    return _cleaned(exporter.from_notebook_node(notebook)[0]), failed


_TAGS = frozenset(
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption "
    "figure h1 h2 h3 h4 h5 h6 hr i img ins kbd li ol p pre s samp section small span strong sub "
    "summary sup table tbody td tfoot th thead tr tt u ul var".split()
)
_ATTRIBUTES = frozenset(
    "alt class colspan height href id open rowspan scope src start title width".split()
)


def _cleaned(body: str) -> str:
    """The body without scripts and without anything that a browser would load from elsewhere."""
    import bleach

    def allowed(tag: str, name: str, value: str) -> bool:
        if name == "src":
            return tag == "img" and value.startswith("data:image/")
        return name in _ATTRIBUTES

    return bleach.clean(
        body, tags=_TAGS, attributes=allowed, strip=True,
        protocols=frozenset(("data", "http", "https", "mailto")),
    )  # fmt: skip


def _highlighting() -> str:
    """Pygments' colours for light and dark."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
