"""An experiment's module, written by whoever uses zenrepro: its mistakes are told in one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from zenrepro import params
from zenrepro.errors import InputError
from zenrepro.experiments.point import Parameters, Point
from zenrepro.experiments.session import Session
from zenrepro.paths import MARKER, Project


def load(project: Project, experiment: str) -> ModuleType:
    """The experiment's module. Raises InputError where it is not one, saying what is wrong."""
    project.notebook(experiment)
    name = project.experiments[experiment].module
    if str(project.root) not in sys.path:
        sys.path.insert(0, str(project.root))
    place = f"{project.root / MARKER}: experiments.{experiment}: its module {name!r}"
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{place} cannot be imported ({_told(error)})") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{place} cannot be imported ({_where(error, project)})") from error
    declared = getattr(found, "Parameters", None)
    if not (isinstance(declared, type) and issubclass(declared, Parameters)):
        raise InputError(
            f"{place} has no `Parameters` that derives from zenrepro.experiments.session.Parameters"
        )
    if not callable(getattr(found, "points", None)):
        raise InputError(f"{place} has no function `points`")
    try:
        params.of_struct(declared)
    except TypeError as error:
        raise InputError(f"{place}: Parameters: {_told(error)}") from error
    return found


def points(opened: Session) -> list[Point]:
    """What the experiment would measure. Raises InputError where its ``points`` fails."""
    place = f"experiment {opened.experiment}: `points` of module {opened.module.__name__!r}"
    try:
        found: Iterable[Any] = opened.module.points(opened)
        listed = list(found)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{place} fails ({_where(error, opened.project)})") from error
    for point in listed:
        if not isinstance(point, Point):
            raise InputError(f"{place} gives a {type(point).__name__}; wanted a Point")
    return listed


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())


def _where(error: BaseException, project: Project) -> str:
    """The error, with the last line of the project that it went through."""
    told = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):  # names its file and line
        return told
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(project.root):
            return f"{path.relative_to(project.root)}, line {frame.lineno}: {told}"
    return told
