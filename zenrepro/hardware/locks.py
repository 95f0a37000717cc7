"""One experiment at a time on one physical device, whichever backend it uses."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from zenrepro.errors import InputError


@contextmanager
def hold(name: str, title: str, wait: bool = True) -> Iterator[None]:
    """Hold the device ``name`` until the block ends; the system lets go when the process dies.

    Waiting prints one line with ``title``. Raises InputError when it is taken and ``wait`` is
    false. Nested holds in one thread are one.
    """
    lock = _lock(name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise InputError(
                f"{title} is in use by another zenrepro run; wait for it or choose another device"
            ) from None
        print(f"waiting for {title}: another zenrepro run uses it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@cache
def _lock(name: str) -> FileLock:
    return FileLock(folder() / f"{name}.lock", thread_local=False)


@cache
def folder() -> Path:
    """Where the locks are: a folder of this user's in the temporary folder."""
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    path = Path(tempfile.gettempdir()) / f"zenrepro-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        return path.resolve()
    except OSError as error:
        raise InputError(f"{path}: no place for locks ({error.strerror}); set TMPDIR") from None
