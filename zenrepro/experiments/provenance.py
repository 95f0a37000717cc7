"""Where a record comes from: the commit, the state of the machine, an error in one line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from zenrepro.paths import Project
from zenrepro.records import Environment

PACKAGE = Path(__file__).resolve().parent.parent


def commit(project: Project) -> tuple[str | None, bool | None]:
    """The project's commit and whether its files differ from it, results aside.

    ``ZENREPRO_COMMIT`` supplies the commit where there is no git; then dirty is unknown.
    """
    given = os.environ.get("ZENREPRO_COMMIT")
    head = git(project, "rev-parse", "HEAD")
    if given or head is None:
        return given or None, None
    status = git(project, "status", "--porcelain", "--", ".", f":(exclude){project.results}")
    return head.strip(), None if status is None else bool(status.strip())


def git(project: Project, *arguments: str) -> str | None:
    """What git prints in the project's folder, None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(project.root), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def with_packages(environment: Environment, packages: Mapping[str, str]) -> Environment:
    """The environment with what one implementation loads besides."""
    return msgspec.structs.replace(environment, packages={**environment.packages, **packages})


def with_state(environment: Environment, state: Environment) -> Environment:
    """The environment with the volatile part that was seen while measuring."""
    return msgspec.structs.replace(
        environment,
        clocks_mhz=state.clocks_mhz or environment.clocks_mhz,
        throttle_reasons=state.throttle_reasons or environment.throttle_reasons,
        temperature_c=state.temperature_c or environment.temperature_c,
        other_load=state.other_load or environment.other_load,
        idle_power_w=state.idle_power_w or environment.idle_power_w,
    )


def one_line(error: BaseException) -> str:
    """An exception's type and message in one line of at most 300 characters, without places."""
    text = without_places(" ".join(str(error).split()))
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= 300 else line[:299] + "…"


def without_places(text: str) -> str:
    """The text without this machine's folders and name: records travel, these must not."""
    for place, shown in (
        (sys.prefix, "<environment>"),
        (str(PACKAGE.parent), "<code>"),
        (str(Path.cwd()), "."),
        (tempfile.gettempdir(), "<temporary>"),
        (str(Path.home()), "~"),
        (platform.node(), "<host>"),
    ):
        if len(place) > 2:  # "/" is every path's beginning
            text = text.replace(place, shown)
    return text
