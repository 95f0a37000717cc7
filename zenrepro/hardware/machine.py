"""The machine's label: ZENREPRO_MACHINE, else a random one kept in the project's local folder."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from zenrepro.errors import InputError
from zenrepro.paths import Project

VARIABLE = "ZENREPRO_MACHINE"
_FORM = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_UNNAMED = "unnamed"


def label(project: Project | None) -> str:
    """The label of this machine. Two processes that ask for the first time at once agree.

    Without a project nothing is recorded, and the label is "unnamed". Raises InputError for a
    malformed label, and when none can be kept.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return _checked(given, f"the environment variable {VARIABLE}")
    if project is None:
        return _UNNAMED
    path = project.local / "machine"
    try:
        return _checked(path.read_text(encoding="utf-8").strip(), str(path))
    except FileNotFoundError:
        pass
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: holds no text; write this machine's label into it, or set {VARIABLE}"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); set {VARIABLE}") from None
    try:
        return _checked(_create(path, secrets.token_hex(3)), str(path))
    except OSError as error:
        raise InputError(
            f"{path}: the machine's label cannot be kept ({error.strerror}); set {VARIABLE}"
        ) from None


def _create(path: Path, fresh: str) -> str:
    """Keep ``fresh`` unless another process was first; return what is kept.

    A hard link appears whole or not at all, and only for the first of several.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"machine.{os.getpid()}.{secrets.token_hex(3)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(fresh + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:
            # A file system without hard links: the last of two first askers wins there.
            temporary.replace(path)
        return path.read_text(encoding="utf-8").strip()
    finally:
        temporary.unlink(missing_ok=True)


def _checked(text: str, place: str) -> str:
    if not _FORM.fullmatch(text):
        raise InputError(
            f"{place}: {text!r} is no machine label; use up to 32 of a-z, 0-9 and dashes"
        )
    return text
