"""The command line: one file a family of commands, each imported only what it runs."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from zenrepro import __version__
from zenrepro.errors import InputError

# What a full or read-only disk says: no error of ours, so no traceback.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0 ok, 1 something failed (the rest still ran), 2 bad usage or input (one line on stderr),
    130 interrupted.
    """
    try:
        given = _parser().parse_args(arguments)
        status: int = given.command(given)
        sys.stdout.flush()
    except InputError as error:
        print(f"zenrepro: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("zenrepro: interrupted; everything measured so far is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`): point stdout elsewhere, so that closing it stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        place = error.filename or "the disk"
        mend = "free some space" if error.errno in _FULL else "make it writable"
        print(
            f"zenrepro: {place}: {error.strerror}; nothing stored is lost; {mend} and run again",
            file=sys.stderr,
        )
        return BAD_INPUT
    return status


class _Parser(argparse.ArgumentParser):
    """Tells bad usage in one line, as everything else."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    from zenrepro.cli import claims, evidence, machine, reporting, running
    from zenrepro.cli.arguments import project_option

    parser = _Parser(
        prog="zenrepro",
        description="A technical report that measures itself and audits what it claims.",
    )
    parser.add_argument("--version", action="version", version=f"zenrepro {__version__}")
    project_option(parser, default=None)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for family in (machine, running, evidence, claims, reporting):
        family.add(commands)
    return parser
