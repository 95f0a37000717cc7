"""Reading hand-written YAML: whatever is wrong with the file is one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zenrepro.errors import InputError


def read_yaml(path: Path) -> Any:
    """The decoded content of a YAML file. Raises InputError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return decode_yaml(text, str(path))


def decode_yaml(text: str, place: str) -> Any:
    """The content of YAML text. Raises InputError naming ``place``."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506  (a safe loader, by name)
    except yaml.YAMLError as error:
        raise InputError(f"{place}: not YAML: {' '.join(str(error).split())}") from None
