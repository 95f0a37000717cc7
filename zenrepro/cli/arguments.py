"""Arguments that several commands share, and how they print JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zenrepro.paths import Project

Commands = Any  # argparse's type of add_subparsers() is private


def command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *,
    json_too: bool = False,
) -> argparse.ArgumentParser:
    """Add one command with ``--project`` and, where asked, ``--json``."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=run)
    # Without a default of its own, it does not undo one given before the command.
    project_option(parser, default=argparse.SUPPRESS)
    if json_too:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def project_option(parser: argparse.ArgumentParser, default: Any) -> None:
    """Add ``--project``, which may stand before or after the command."""
    parser.add_argument(
        "--project",
        type=Path,
        metavar="DIR",
        default=default,
        help="the project folder (default: found from here upwards)",
    )


def project(given: argparse.Namespace) -> Project:
    """The project that the command works on. Raises InputError where there is none."""
    from zenrepro import paths

    return paths.find(given=given.project)


def print_json(value: Any) -> None:
    """Print as indented JSON; structs by their fields, NaN refused."""
    import msgspec

    print(json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False, allow_nan=False))
