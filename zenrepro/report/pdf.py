"""TeX to PDF: latexmk in a temporary folder, the result moved into place in one step.

The inputs of the last PDF are remembered, so that an unchanged report is not compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from zenrepro.results.store import write_atomically

PROGRAMS = ("latexmk", "pdflatex", "bibtex")
INSTALL = (
    "install TeX Live (Debian and Ubuntu: apt-get install latexmk lmodern texlive-latex-extra "
    "texlive-science texlive-fonts-recommended; or make report INSTALL_TEX=1; macOS: brew install "
    "--cask mactex-no-gui)"
)
_EPOCH = "0"  # a PDF says nothing of when it was compiled
_TIMEOUT_S = 300
_SCRATCH = ".tex-"


class CompileError(Exception):
    """The PDF could not be made: the message is one line."""


def compile_pdf(files: Mapping[str, bytes], main: str, target: Path, state: Path) -> bool:
    """Compile ``files`` (name: content), of which ``main`` is the document, to ``target``.

    Returns whether TeX ran: False when ``target`` is there and came from the same files.
    Raises CompileError; ``target`` then keeps what it had, and the log lies beside it.
    """
    digest = _digest(files)
    if target.is_file() and _remembered(state) == [digest, _content(target)]:
        return False
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise CompileError(f"no PDF: {program} is not installed; {INSTALL}")
    target.parent.mkdir(parents=True, exist_ok=True)
    log_copy = target.with_suffix(".log")
    clear_leftovers(target.parent)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target.parent) as name:
        folder = Path(name)
        for relative, content in files.items():
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        code = _latexmk(folder, main)
        log = folder / Path(main).with_suffix(".log").name
        if log.is_file():
            shutil.copyfile(log, log_copy)
        product = folder / Path(main).with_suffix(".pdf").name
        if code or not product.is_file():
            texts = [_text(log), _text(log.with_suffix(".blg"))]
            raise CompileError(f"no PDF: {first_error(*texts)} (whole log: {log_copy})")
        product.replace(target)
    write_atomically(state, json.dumps([digest, _content(target)]).encode())
    return True


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary folders of compilers that were killed: none works this long."""
    for left in folder.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):  # another process may have been faster
            if time.time() - left.stat().st_mtime > 2 * _TIMEOUT_S:
                shutil.rmtree(left, ignore_errors=True)


def first_error(log: str, bibliography: str = "") -> str:
    """The first error of a TeX log, else of BibTeX's, in one line, with the line of the source."""
    match = re.search(r"^(?:\./)?([^\s:]+:\d+: .*)$", log, re.M)
    if match:
        after = log[match.end() :].strip("\n").split("\n", 1)[0].strip()
        near = f" near {after!r}" if after.startswith("l.") else ""
        return "TeX stopped at " + match.group(1).strip() + near
    match = re.search(r"^! (.*)$", log, re.M)
    if match:
        return "TeX stopped: " + match.group(1).strip()
    match = re.search(r"^(.*)---(line \d+ of file .*)$", bibliography, re.M)
    if match:
        return f"BibTeX stopped at {match.group(2).strip()}: {match.group(1).strip()}"
    return "TeX stopped without saying why"


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def overfull(log: str, limit_pt: float = 1.0) -> list[str]:
    """The boxes of a log that stick out by more than ``limit_pt``."""
    found = re.findall(r"^(Overfull \\[hv]box \(([\d.]+)pt too .*)$", log, re.M)
    return [line for line, size in found if float(size) > limit_pt]


def _latexmk(folder: Path, main: str) -> int:
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": _EPOCH,
        "FORCE_SOURCE_DATE": "1",
        "max_print_line": "10000",
        # TeX may write into its own folder and read from the TeX tree, nothing else.
        "openout_any": "p",
        "openin_any": "p",
        "shell_escape": "f",
    }
    command = [
        "latexmk", "-norc", "-pdf", "-silent", "-interaction=nonstopmode", "-halt-on-error",
        "-file-line-error", "-no-shell-escape",
        "-pdflatex=pdflatex -no-shell-escape %O %S", main,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, check=False, timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CompileError(f"no PDF: TeX was still running after {_TIMEOUT_S} s") from None
    return done.returncode


def _digest(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return total.hexdigest()


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remembered(state: Path) -> object:
    try:
        return json.loads(state.read_bytes())
    except (OSError, ValueError):
        return None
