"""The HTML edition: links resolve, nothing comes from a network, a real browser opens it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pytest

from zenrepro.report import figures, html

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)

# What drawing returns; the drawing itself has its own test.
DRAWN = [
    figures.Figure("roofline", "Roofline & more", "roofline.pdf", b"", b"<svg/>", ""),
    figures.Figure("ratios", "Ratios", "", b"", b"", "Not measured yet."),
]


class Links(HTMLParser):
    """Ids, and what a page loads or leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.leads: list[tuple[str, dict[str, Any]]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if given.get("src"):
            self.loads.append(str(given["src"]))
        if given.get("href"):
            if tag == "a":
                self.leads.append((str(given["href"]), given))
            else:
                self.loads.append(str(given["href"]))


def executed(path: Path) -> None:
    """An executed notebook with a picture, a table, a script, and a cell that failed."""
    v4 = nbformat.v4
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABc3UBGAAAAABJRU5E"
    outputs = [
        v4.new_output("stream", text="hello <b>\n"),
        v4.new_output("display_data", data={"image/png": pixel}),
        v4.new_output(
            "execute_result", execution_count=1,
            data={"text/html": "<table><tr><td>1</td></tr></table><script>alert(1)</script>"
                  '<img src="https://elsewhere.example/x.png" onerror="alert(1)">'},
        ),
        v4.new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[31mno\x1b[0m"]),
    ]  # fmt: skip
    cells = [
        v4.new_markdown_cell("# Question\n\nWhat does $x^2$ cost? [a link](https://example.com)"),
        v4.new_code_cell("print('hello')", execution_count=1, outputs=outputs),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)


@pytest.fixture
def edition(evidence: Any) -> Path:
    folder = evidence.project.build / "html"
    notebooks = evidence.project.build / "notebooks/cpu-box"
    executed(notebooks / "attention-torch.ipynb")
    (notebooks / "broken-jax.ipynb").write_text('{"cells": [')
    html.write(evidence, DRAWN, folder)
    return folder


def test_every_local_link_resolves_and_nothing_is_loaded_from_elsewhere(edition: Path) -> None:
    pages = {p: Links(p.read_text(encoding="utf-8")) for p in edition.rglob("*.html")}
    assert len(pages) == 8
    for path, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), f"{path}: an id is given twice"
        assert "script" not in page.tags, path
        for address in page.loads:
            assert not re.match(r"(https?:)?//", address), f"{path} loads {address}"
            if not address.startswith("data:"):
                assert (path.parent / address).is_file(), f"{path} loads {address}"
        for address, given in page.leads:
            if address.startswith(("https://", "http://")):
                cited = "citation" in (given.get("class") or "")
                assert cited or path.parent.name == "notebooks", f"{path}: {address}"
                continue
            file, _, anchor = address.partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            assert target in pages, f"{path}: {address}"
            assert not anchor or unquote(anchor) in pages[target].ids, f"{path}: {address}"
    assert "url(" not in (edition / "style.css").read_text()


def test_every_record_has_its_anchor_and_samples(edition: Path, evidence: Any) -> None:
    text = "".join(p.read_text() for p in edition.glob("records-*.html"))
    for entry in evidence.records:
        assert f'id="{entry.key}"' in text
    first = next(e.record for e in evidence.records if e.record.samples)
    assert f"{first.samples[0]:.9g}" in text


def test_text_is_escaped(edition: Path) -> None:
    page = (edition / "notebooks/cpu-box--attention-torch.html").read_text()
    assert "elsewhere.example" not in page
    assert "onerror" not in page
    assert "hello &lt;b&gt;" in page
    assert "a cell failed" in page
    assert "50% of $x_i$ &amp; #1" in (edition / "tables.html").read_text()
    assert "Not a notebook" in (edition / "notebooks/cpu-box--broken-jax.html").read_text()


def test_unchanged_notebooks_are_not_converted_again(
    edition: Path, evidence: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("converted again")

    monkeypatch.setattr("zenrepro.report.notebooks._body", fail)
    stamps = {p: p.stat().st_mtime_ns for p in edition.rglob("*") if p.is_file()}
    html.write(evidence, DRAWN, edition)
    assert {p: p.stat().st_mtime_ns for p in edition.rglob("*") if p.is_file()} == stamps
    (evidence.project.build / "notebooks/cpu-box/attention-torch.ipynb").unlink()
    (evidence.project.build / "notebooks/cpu-box/broken-jax.ipynb").unlink()
    html.write(evidence, DRAWN, edition)
    assert not list((edition / "notebooks").glob("*.html"))


def test_unchanged_figures_are_not_drawn_again(
    evidence: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evidence.project.templates / "generated"
    before = figures.draw(evidence, folder)
    for path in folder.glob(".*.drawn"):
        path.unlink()
    assert figures.draw(evidence, folder) == before  # drawn again: the same bytes
    monkeypatch.setattr(figures, "_drawn", None)
    assert figures.draw(evidence, folder) == before  # read, not drawn


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the pages are not opened")
def test_a_browser_opens_the_pages(edition: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    for name, words in (
        ("index.html", "What the audit found"),
        ("notebooks/cpu-box--attention-torch.html", "Question"),
    ):
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
             (edition / name).as_uri()],
            capture_output=True, check=True, timeout=120,
        )  # fmt: skip
        dom = done.stdout.decode()
        assert words in dom
        assert "style.css" in dom


def test_table_styles_do_not_reach_highlighted_code() -> None:
    style = (Path(html.__file__).parent / "templates/html/style.css").read_text()
    assert not re.search(r"^\s*\.n\b", style, re.M)  # Pygments calls every name "n"
