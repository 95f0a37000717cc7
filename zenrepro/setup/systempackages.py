"""What comes from the system, not from pip: TeX, and the tools some tests use.

Installed by apt-get when run as root on Debian or Ubuntu, or with INSTALL_TEX=1 through sudo;
elsewhere one line names the packages. Standard library only; a program of its own:

    python3 zenrepro/setup/systempackages.py --install tex,tests
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Group:
    """Programs and TeX files that must be there, and the packages that bring them."""

    programs: tuple[str, ...]
    styles: tuple[str, ...]
    apt: tuple[str, ...]
    dnf: tuple[str, ...]
    brew: tuple[str, ...]
    without: str


STYLES = (
    "adjustbox.sty",
    "booktabs.sty",
    "caption.sty",
    "cleveref.sty",
    "enumitem.sty",
    "fancyhdr.sty",
    "geometry.sty",
    "hyperref.sty",
    "lmodern.sty",
    "longtable.sty",
    "microtype.sty",
    "pdflscape.sty",
    "pgfplots.sty",
    "siunitx.sty",
    "tabularray.sty",
    "tikz.sty",
    "xcolor.sty",
    "xltabular.sty",
    "xurl.sty",
)

GROUPS = {
    "tex": Group(
        programs=("latexmk", "pdflatex", "bibtex"),
        styles=STYLES,
        apt=(
            "latexmk",
            "lmodern",
            "texlive-fonts-recommended",
            "texlive-latex-base",
            "texlive-latex-extra",
            "texlive-latex-recommended",
            "texlive-pictures",
            "texlive-science",
        ),
        dnf=("latexmk", "texlive-scheme-medium", "texlive-siunitx", "texlive-tabularray"),
        brew=("--cask mactex-no-gui",),
        without="no PDF (HTML and experiments work)",
    ),
    "tests": Group(
        programs=("pdftotext", "pdftoppm", "chromium|chromium-browser|google-chrome", "g++"),
        styles=(),
        apt=("chromium", "g++", "poppler-utils"),
        dnf=("chromium", "gcc-c++", "poppler-utils"),
        brew=("poppler", "--cask chromium"),
        without="the tests that open the PDF or the HTML, or emulate kernels, are skipped",
    ),
}


def find_missing(group: Group) -> list[str]:
    """The programs and TeX files of ``group`` that this machine lacks."""
    programs = [p for p in group.programs if not any(map(shutil.which, p.split("|")))]
    if programs or not group.styles:
        return programs
    found = subprocess.run(
        ["kpsewhich", *group.styles], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.split()
    have = {Path(path).name for path in found}
    return [style for style in group.styles if style not in have]


def advise(name: str, missing: list[str]) -> str:
    """One line: what is missing, what that costs, and the command that installs it."""
    group = GROUPS[name]
    if sys.platform == "darwin":
        command = " && ".join(f"brew install {package}" for package in group.brew)
    elif shutil.which("dnf"):
        command = "sudo dnf install " + " ".join(group.dnf)
    elif shutil.which("apt-get"):
        command = "sudo apt-get install " + " ".join(group.apt)
        if name == "tex":
            command += "  (or make report INSTALL_TEX=1)"
    else:
        command = "install TeX Live" if name == "tex" else "install " + ", ".join(group.programs)
    listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
    return f"{group.without}: {listed} not found; {command}"


def apt_prefix() -> list[str] | None:
    """How apt-get may be called here: as root, through sudo if asked for, else not at all."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    return ["sudo"] if os.environ.get("INSTALL_TEX") == "1" and shutil.which("sudo") else None


def install(packages: tuple[str, ...], prefix: list[str]) -> None:
    """Install ``packages`` by apt-get. A step that fails is seen by looking again afterwards."""
    quiet = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    # Waits for another apt-get, and asks nothing about changed configuration files.
    options = ["-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Options::=--force-confold"]
    for command in (
        ["dpkg", "--configure", "-a"],  # what an interrupted installation left
        ["apt-get", "update"],
        ["apt-get", *options, "install", "-y", "--no-install-recommends", *packages],
    ):
        print("$", " ".join(command), flush=True)
        stdin = None if prefix else subprocess.DEVNULL  # sudo may have to ask for a password
        subprocess.run([*quiet, *command], stdin=stdin, check=False)


def main(arguments: list[str] | None = None) -> int:
    """0 when everything asked for is there, else 1 with one line a group."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--install", action="store_true", help="install what is missing")
    parser.add_argument("groups", help="of " + ", ".join(GROUPS) + ", separated by commas")
    options = parser.parse_args(arguments)
    lines = []
    for name in options.groups.split(","):
        if name not in GROUPS:
            parser.error(f"unknown group {name!r}: {', '.join(GROUPS)}")
        missing = find_missing(GROUPS[name])
        prefix = apt_prefix()
        if missing and options.install and prefix is not None:
            install(GROUPS[name].apt, prefix)
            missing = find_missing(GROUPS[name])
        if missing:
            lines.append(advise(name, missing))
    for line in lines:
        print("ERROR:", line, flush=True)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
