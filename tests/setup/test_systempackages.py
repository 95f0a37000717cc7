"""TeX and the tests' tools: what is looked for, what is installed, what is said."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from zenrepro.setup import systempackages


class FakeMachine:
    """Programs on PATH, TeX files, and a log of what was run; apt-get brings everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, programs: set[str], root: bool) -> None:
        self.programs, self.styles, self.ran = programs, set[str](), list[list[str]]()
        self.apt_works = True
        monkeypatch.setattr(systempackages.shutil, "which", self.which)
        monkeypatch.setattr(systempackages.subprocess, "run", self.run)
        monkeypatch.setattr(systempackages.os, "geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(systempackages.sys, "platform", "linux")
        monkeypatch.delenv("INSTALL_TEX", raising=False)

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program in self.programs else None

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.ran.append(command)
        if command[0] == "kpsewhich":
            found = [f"/texmf/{name}" for name in command[1:] if name in self.styles]
            return subprocess.CompletedProcess(command, 0, stdout="\n".join(found))
        if "install" in command and self.apt_works:
            self.programs |= {"latexmk", "pdflatex", "bibtex"}
            self.programs |= {"pdftotext", "pdftoppm", "chromium", "g++"}
            self.styles |= set(systempackages.STYLES)
        return subprocess.CompletedProcess(command, 0, stdout="")


def test_root_on_debian_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(monkeypatch, {"apt-get"}, root=True)
    assert systempackages.main(["--install", "tex,tests"]) == 0
    first, second, third = (" ".join(command) for command in machine.ran[:3])
    assert "dpkg --configure -a" in first
    assert "apt-get update" in second
    assert "latexmk" in third
    assert "sudo" not in first + second + third


def test_a_user_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = FakeMachine(monkeypatch, {"apt-get", "sudo"}, root=False)
    assert systempackages.main(["--install", "tex"]) == 1
    assert machine.ran == []
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "latexmk, pdflatex, bibtex not found; sudo apt-get install latexmk" in said
    assert "INSTALL_TEX=1" in said


def test_a_user_who_asks_gets_it_through_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(monkeypatch, {"apt-get", "sudo"}, root=False)
    monkeypatch.setenv("INSTALL_TEX", "1")
    assert systempackages.main(["--install", "tex"]) == 0
    assert all(command[0] == "sudo" for command in machine.ran if command[0] != "kpsewhich")


def test_without_install_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(monkeypatch, {"apt-get"}, root=True)
    assert systempackages.main(["tex"]) == 1
    assert machine.ran == []


def test_a_missing_style_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = FakeMachine(monkeypatch, {"latexmk", "pdflatex", "bibtex", "dnf"}, root=True)
    machine.styles = set(systempackages.STYLES) - {"siunitx.sty"}
    assert systempackages.main(["--install", "tex"]) == 1
    assert "siunitx.sty not found; sudo dnf install latexmk" in capsys.readouterr().out


def test_a_failed_installation_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = FakeMachine(monkeypatch, {"apt-get"}, root=True)
    machine.apt_works = False
    assert systempackages.main(["--install", "tex"]) == 1
    assert "no PDF (HTML and experiments work)" in capsys.readouterr().out


def test_macos_is_told_brew(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMachine(monkeypatch, set(), root=False)
    monkeypatch.setattr(systempackages.sys, "platform", "darwin")
    assert "brew install --cask mactex-no-gui" in systempackages.advise("tex", ["latexmk"])


def test_ci_installs_what_venv_needs() -> None:
    script = (Path(__file__).parents[2] / ".ci/run").read_text()
    assert script.startswith("#!/usr/bin/env bash")
    assert "set -euo pipefail" in script
    assert "python3-venv" in script
    assert script.rstrip().endswith("make test")
