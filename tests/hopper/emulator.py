"""Run a kernel of ``kernels/cuda`` on the CPU, with the stand-in ``hopper.cuh`` beside this file.

``emulated()`` puts the emulator in the place of ``zenrepro.ops.nvrtc``'s compiler and launches, so
that an implementation's own Python code runs on CPU tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from zenrepro.ops import device_code, nvrtc

HERE = Path(__file__).parent
MODES = {"early": 0, "late": 1, "drawn": 2}
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "uint8": 1}


class EmulationError(Exception):
    """The kernel hung, left its memory, or used an instruction as the manual does not allow."""


def missing() -> str | None:
    """Why kernels cannot be emulated here, in one line; None where they can."""
    if os.uname().sysname != "Linux":
        return "the emulator switches contexts as Linux does"
    return None if shutil.which("g++") else "g++ is not installed (apt-get install g++)"


@cache
def _library(source: str, name: str, defines: nvrtc.Defines) -> ctypes.CDLL:
    """The source as a shared library for the CPU, made once a content."""
    file = device_code.path(source)
    text = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w ]+?)\s+(\w+)\[\];",
        r"\1* \2 = reinterpret_cast<\1*>(host::shared_memory());",
        file.read_text(),
    )
    text += (
        '\nextern "C" int emulate(void** arguments, const u32* grid, const u32* block, '
        "u32 shared_bytes, u32 cluster, int mode, u32 seed, long long most_steps, char* message, "
        f"int room) {{\n    return host::launch({name}, arguments, grid, block, shared_bytes, "
        "cluster, mode, seed, most_steps, message, room);\n}\n"
    )
    flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing"]
    flags += [f"-D{key}={value}" for key, value in defines]
    stand_in = (HERE / "hopper.cuh").read_text()
    others = sorted(file.parent.glob("*.cuh"))
    parts = [text, stand_in, *flags, *(o.read_text() for o in others)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    kept = Path(tempfile.gettempdir()) / f"zenrepro-emulator-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    made = kept / f"{digest}.so"
    if not made.is_file():
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            for other in others:
                shutil.copy(other, folder)
            shutil.copy(HERE / "hopper.cuh", folder)  # takes the real one's place
            kernel = Path(folder) / "kernel.cpp"
            kernel.write_text(text)
            out = Path(folder) / "kernel.so"
            done = subprocess.run(
                ["g++", *flags, str(kernel), "-o", str(out)], capture_output=True, text=True
            )
            if done.returncode:
                raise EmulationError(f"{source} does not compile for the CPU:\n{done.stderr}")
            out.replace(made)
    return ctypes.CDLL(str(made))


class Emulator:
    """Stands in for the driver: the same calls as ``zenrepro.ops.nvrtc``, on CPU memory.

    ``mode``: when the asynchronous machinery works ("early", "late", "drawn"); ``seed`` draws the
    order of everything.
    """

    def __init__(self, mode: str = "drawn", seed: int = 0, most_steps: int = 400_000_000) -> None:
        self.mode, self.seed, self.most_steps = MODES[mode], seed, most_steps
        self.launches = 0

    def function(
        self, source: str, name: str, *, arch: str = "sm_90a", defines: nvrtc.Defines = ()
    ) -> Any:
        """The kernel as a library for the CPU."""
        return _library(source, name, tuple(defines))

    def tensor_map(
        self,
        pointer: int,
        dtype: str,
        shape: Sequence[int],
        strides_bytes: Sequence[int],
        box: Sequence[int],
        *,
        swizzle: int = 128,
        l2: int = 256,
    ) -> nvrtc.TensorMap:
        """As the driver's, with the driver's own conditions checked."""
        size, rank = _BYTES[dtype], len(shape)
        wrong = [
            (pointer % 16 != 0, "an address that is not a multiple of 16"),
            (
                any(s % 16 or not 0 < s < 2**40 for s in strides_bytes),
                "strides no multiples of 16",
            ),
            (any(not 0 < b <= 256 for b in box), "a box beyond 256"),
            (any(not 0 < s <= 2**32 for s in shape), "an empty dimension"),
            (box[0] * size % 16 != 0, "a box whose rows are no multiple of 16 bytes"),
            (bool(swizzle) and box[0] * size > swizzle, "a box wider than its swizzle"),
            (not len(strides_bytes) + 1 == len(box) == rank, "dimensions that do not agree"),
        ]
        for bad, what in wrong:
            if bad:
                raise EmulationError(f"tensor map with {what}")
        five = [*shape, *[1] * (5 - rank)], [*box, *[1] * (5 - rank)]
        strides = [size, *strides_bytes, *[0] * (5 - rank)]
        room = bytearray()
        room += pointer.to_bytes(8, "little")
        for number in (size, rank, swizzle, 0, *five[0], *five[1]):
            room += int(number).to_bytes(4, "little")
        for number in strides:
            room += int(number).to_bytes(8, "little")
        room += bytes(128 - len(room))
        words = [int.from_bytes(room[i : i + 8], "little") for i in range(0, 128, 8)]
        return nvrtc.TensorMap(words)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        arguments: Sequence[Any],
        *,
        cooperative: bool = False,
        dependent: bool = False,
        cluster: tuple[int, int, int] | None = None,
    ) -> None:
        """Run to the end. Raises EmulationError with what went wrong."""
        self.launches += 1
        addresses = (ctypes.c_void_p * len(arguments))(
            *(
                a.address if isinstance(a, nvrtc.TensorMap) else ctypes.addressof(a)
                for a in arguments
            )
        )
        message = ctypes.create_string_buffer(1 << 14)
        failed = kernel.emulate(
            addresses,
            (ctypes.c_uint32 * 3)(*grid),
            (ctypes.c_uint32 * 3)(*block),
            ctypes.c_uint32(shared_bytes),
            ctypes.c_uint32(cluster[0] if cluster else 1),
            ctypes.c_int(self.mode),
            ctypes.c_uint32(self.seed + self.launches),
            ctypes.c_longlong(self.most_steps),
            message,
            ctypes.c_int(len(message)),
        )
        if failed:
            raise EmulationError(message.value.decode(errors="replace"))


class _Stream:
    cuda_stream = 0


@contextlib.contextmanager
def emulated(mode: str = "drawn", seed: int = 0) -> Iterator[Emulator]:
    """CPU tensors pass for CUDA's: ``nvrtc`` and what the wrappers ask of ``torch.cuda``.

    How many multiprocessors there are, and checks of the device, are the caller's to replace.
    """
    stand_in = Emulator(mode, seed)
    with contextlib.ExitStack() as held:
        for name in ("function", "tensor_map", "launch"):
            held.enter_context(mock.patch.object(nvrtc, name, getattr(stand_in, name)))
        for name, value in (
            ("torch.cuda.current_stream", lambda *_: _Stream()),
            ("torch.cuda.is_current_stream_capturing", lambda: False),
            ("torch.cuda.device", lambda *_: contextlib.nullcontext()),
            ("torch.cuda.synchronize", lambda *_: None),
        ):
            held.enter_context(mock.patch(name, value))
        yield stand_in
