"""The whole way to the PDF, on a report with hostile text; what goes wrong is one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zenrepro import report
from zenrepro.errors import InputError
from zenrepro.report import document, pdf, tables
from zenrepro.report import evidence as evidence_module

needs_tex = pytest.mark.skipif(
    shutil.which("latexmk") is None, reason="latexmk is not installed: no PDF is made"
)


@needs_tex
def test_hostile_report_compiles_without_overfull_boxes_or_dead_links(evidence: Any) -> None:
    assert report.build_from(evidence, html=False) == 0
    log = (evidence.project.build / "report.log").read_text(errors="replace")
    assert pdf.overfull(log) == []
    assert "undefined references" not in log
    assert "has been referenced but does not exist" not in log
    assert "multiply defined" not in log
    assert "Missing character" not in log
    product = evidence.project.build / "report.pdf"
    first = product.read_bytes()
    if shutil.which("pdftotext"):
        words = subprocess.run(
            ["pdftotext", "-layout", str(product), "-"], capture_output=True, check=True
        ).stdout.decode()
        assert "12,350 ± 50" in words  # digits by uncertainty
        assert "[U+6570]" in words
        assert not re.search(r"\b(nan|inf|None)\b", words)
        for finding in evidence.findings:
            assert f"F{finding.number}" in words
    # Every measured number leads somewhere.
    source = (evidence.project.templates / "generated/report.tex").read_text()
    targets = set(re.findall(r"\\hypertarget\{([^}]*)\}", source))
    targets |= set(re.findall(r"\\anchor\{([^}]*)\}", source))
    links = set(re.findall(r"\\hyperlink\{([^}]*)\}", source))
    assert links <= targets
    assert {entry.key for entry in evidence.records} <= targets
    # Made again from nothing: the same bytes.
    product.unlink()
    assert report.build_from(evidence, html=False) == 0
    assert product.read_bytes() == first


@needs_tex
def test_nothing_changed_runs_no_tex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"t.tex": b"\\documentclass{article}\\begin{document}a\\end{document}"}
    target, state = tmp_path / "t.pdf", tmp_path / ".state"
    assert pdf.compile_pdf(files, "t.tex", target, state) is True
    monkeypatch.setenv("PATH", "")
    assert pdf.compile_pdf(files, "t.tex", target, state) is False
    with pytest.raises(pdf.CompileError, match="latexmk is not installed; install TeX Live"):
        pdf.compile_pdf({"t.tex": b"other"}, "t.tex", target, state)


@needs_tex
def test_a_failed_compile_keeps_the_old_pdf_and_says_where(tmp_path: Path) -> None:
    target, state = tmp_path / "t.pdf", tmp_path / ".state"
    good = b"\\documentclass{article}\n\\begin{document}a\n\\end{document}"
    pdf.compile_pdf({"t.tex": good}, "t.tex", target, state)
    before = target.read_bytes()
    with pytest.raises(pdf.CompileError) as caught:
        pdf.compile_pdf({"t.tex": good.replace(b"a\n", b"\\nope\n")}, "t.tex", target, state)
    message = str(caught.value)
    assert "t.tex:2" in message
    assert "Undefined control sequence" in message
    assert "\n" not in message
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tex-")] == []


@needs_tex
def test_tex_may_not_run_programs(tmp_path: Path) -> None:
    body = rb"\documentclass{article}\begin{document}\immediate\write18{touch owned}x\end{document}"
    pdf.compile_pdf({"t.tex": body}, "t.tex", tmp_path / "t.pdf", tmp_path / ".state")
    assert not list(tmp_path.rglob("owned"))


def test_build_without_tex_still_makes_html_and_exits_with_one(
    evidence: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    assert report.build_from(evidence) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert "install TeX Live" in printed[1]
    assert (evidence.project.build / "html/index.html").is_file()


def test_a_place_that_cannot_be_written_is_one_line(evidence: Any) -> None:
    evidence.project.build.write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"build.*cannot be read or written"):
        report.build_from(evidence, pdf=False)


def test_missing_template_variable_is_one_line(evidence: Any) -> None:
    folder = evidence.project.templates
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.tex.jinja").write_text("first\n\\VAR{ nowhere }\n")
    with pytest.raises(InputError, match=r"report\.tex\.jinja, line 2: 'nowhere' is undefined"):
        document.render_tex(evidence, [])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (r"\VAR{table('no such')}", "asks for table 'no such'"),
        (r"\VAR{claim('no such')}", "cites claim 'no such'"),
        (r"\VAR{figure('no such')}", "asks for figure 'no such'"),
        (r"\BLOCK{if}", "line 1"),
        (r"\BLOCK{include 'no.tex.jinja'}", "report.tex.jinja, line 1: template 'no"),
        (r"\VAR{1.5}", "reached a template"),
        (r"\VAR{none}", "None reached a template"),
    ],
)
def test_template_mistakes_are_one_line(evidence: Any, template: str, message: str) -> None:
    folder = evidence.project.templates
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.tex.jinja").write_text(template)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        document.render_tex(evidence, [])
    assert "\n" not in str(caught.value)


def test_an_unknown_machine_is_one_line(evidence: Any) -> None:
    project = msgspec.structs.replace(evidence.project, machines=["nobody"])
    with pytest.raises(InputError, match=r"zenrepro\.toml: machines names 'nobody'"):
        evidence_module.assemble(project, evidence.publication, {}, [], evidence.audit, [])


def test_unknown_labels_are_one_line(evidence: Any) -> None:
    project = msgspec.structs.replace(evidence.project, machines=[])
    project.templates.mkdir(parents=True, exist_ok=True)
    (project.templates / "labels.yaml").write_text("colums: {}\n")
    with pytest.raises(InputError, match="unknown section 'colums'"):
        evidence_module.assemble(project, evidence.publication, {}, [], evidence.audit, [])


def test_rows_stay_without_any_record(evidence: Any) -> None:
    bare = evidence_module.assemble(
        msgspec.structs.replace(evidence.project, machines=[]),
        evidence.publication, evidence.datasheets, [], evidence.audit, [],
    )  # fmt: skip
    shown = [
        line.claim.id
        for name in [*tables.names(bare), tables.TEXT_TABLE]
        for line in tables.build(bare, name).lines
    ]
    assert sorted(shown) == sorted(bare.claims)
    source = document.render_tex(bare, [])
    assert source.count(r"\missing{n}") >= len(bare.claims)


def test_more_machines_than_columns_go_to_an_appendix(evidence: Any) -> None:
    source = document.render_tex(evidence, [])
    body, appendix = source.split(r"\appendix")
    assert "Platinum" not in body.split("What is under study")[1]
    assert r"\section{Measurements on further machines}" in appendix
    assert "Platinum" in appendix


PACKAGED = sorted(Path(report.__file__).parent.glob("templates/tex/**/*.jinja"))
TEMPLATES = [*PACKAGED, *sorted((Path(__file__).parents[2] / "latex").rglob("*.jinja"))]


def test_no_template_glues_a_command_to_a_value() -> None:
    command = r"\\(?!VAR\b|BLOCK\b)[a-zA-Z@]+"
    glued = re.compile(rf"{command}(?:\\BLOCK\{{[^}}]*\}})*(?:\\VAR|(?<=\}})[a-zA-Z])")
    assert len(TEMPLATES) > 15
    for path in TEMPLATES:
        found = [
            m.group()
            for m in glued.finditer(path.read_text())
            if m.group().endswith(r"\VAR") or r"\BLOCK" in m.group()
        ]
        assert found == [], f"{path}: put {{}} after the command"


def test_no_template_uses_a_macro() -> None:
    for path in TEMPLATES:
        assert r"\BLOCK{macro" not in path.read_text(), path


def test_a_broken_bibliography_is_named() -> None:
    said = "I was expecting a `,' or a `}'---line 2 of file references.bib\n : \n"
    assert pdf.first_error("no error here", said) == (
        "BibTeX stopped at line 2 of file references.bib: I was expecting a `,' or a `}'"
    )
    assert pdf.first_error("! Undefined.\n", said) == "TeX stopped: Undefined."


def test_what_a_killed_compiler_left_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    for name in (".tex-killed", ".tex-living"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.tex").write_text("x")
    os.utime(tmp_path / ".tex-killed", (0, 0))
    pdf.clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tex-living"]
