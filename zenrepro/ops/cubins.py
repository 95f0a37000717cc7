"""Compiled kernels kept between processes, by what they were compiled from.

In ``$ZENREPRO_CACHE_DIR``, else ``$XDG_CACHE_HOME/zenrepro``, else ``~/.cache/zenrepro``. A file
is the cubin and nothing else; its name is the hash of all that it depends on, so none is ever
stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

_ELF = b"\x7fELF"


def folder() -> Path:
    """Where cubins are kept; it may not be there yet."""
    given = os.environ.get("ZENREPRO_CACHE_DIR")
    if given:
        return Path(given) / "cubins"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "zenrepro" / "cubins"


def kept(parts: Sequence[bytes], make: Callable[[], bytes]) -> bytes:
    """The cubin that depends on ``parts``: the kept one, else what ``make`` returns, which is kept.

    A folder that cannot be read or written costs the time to compile again, nothing else.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    file = folder() / f"{digest.hexdigest()}.cubin"
    with contextlib.suppress(OSError):
        found = file.read_bytes()
        if found.startswith(_ELF):
            return found
    cubin = make()
    with contextlib.suppress(OSError):
        _write(file, cubin)
    return cubin


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all: several processes compile the same kernel at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
