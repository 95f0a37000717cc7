"""The kernel that runs notebooks: this interpreter, whatever kernels are installed."""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

_LONGEST_SOCKET = 90  # sun_path has 104 bytes on macOS, 108 on Linux


class ThisInterpreter(AsyncKernelManager):
    """Starts ``ipykernel`` with ``sys.executable``; needs no installed kernelspec.

    They talk through sockets in a private folder rather than through ports that every user of the
    machine can open. A folder whose name is too long for sockets leaves the ports.
    """

    _all: ClassVar[weakref.WeakSet[ThisInterpreter]] = weakref.WeakSet()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._all.add(self)
        self._folder = Path(tempfile.mkdtemp(prefix="zk"))
        self.connection_file = str(self._folder / "k.json")
        if len(self.connection_file) < _LONGEST_SOCKET:
            self.transport = "ipc"
            self.ip = str(self._folder / "k")

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        await super()._async_cleanup_resources(restart)
        shutil.rmtree(self._folder, ignore_errors=True)

    cleanup_resources = _async_cleanup_resources

    @classmethod
    def kill_all(cls) -> None:
        """End every kernel that this process has running, at once. Safe from another thread."""
        for manager in list(cls._all):
            process = getattr(manager.provisioner, "process", None)
            if process is not None and process.poll() is None:
                process.kill()

    @property
    def kernel_spec(self) -> Any:
        """The command; a history file shared with other kernels would only be locked."""
        return KernelSpec(
            argv=[
                sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}",
                "--HistoryManager.enabled=False",
            ],
            display_name="Python 3",
            language="python",
        )  # fmt: skip
