"""CUDA C++ from ``kernels/cuda``: compiled by NVRTC, loaded and launched by the driver.

No extension is built and no header of the toolkit is needed: a kernel compiles in the process that
uses it, for the card that is there, and, since compiling needs no device, in a test anywhere.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from zenrepro.ops import cubins, device_code

Defines = tuple[tuple[str, str | int], ...]


class CompileError(Exception):
    """NVRTC refused the source: its log."""


class DriverError(Exception):
    """The CUDA driver refused a call: which, and the driver's word for why."""


class Function(NamedTuple):
    """A loaded kernel. ``registers`` a thread, ``local_bytes`` a thread (spills and stack)."""

    handle: int
    name: str
    registers: int
    local_bytes: int


class Resources(NamedTuple):
    """What a compiled kernel takes: registers and local bytes a thread, static shared bytes."""

    registers: int
    shared_bytes: int
    local_bytes: int


class TensorMap:
    """A descriptor of a tensor for the bulk copy engine (128 bytes, passed by value)."""

    def __init__(self, words: Sequence[int] = ()) -> None:
        # Aligned by hand: the driver encodes into memory aligned to 64 bytes, CUDA 13's header
        # declares 128.
        self._room = ctypes.create_string_buffer(128 + 128)
        address = ctypes.addressof(self._room)
        self.address = address + (-address) % 128
        ctypes.memmove(self.address, (ctypes.c_uint64 * 16)(*words), 128)


@cache
def compile(  # noqa: A001  (what it does)
    source: str, *, arch: str = "sm_90a", defines: Defines = ()
) -> bytes:
    """The cubin of ``kernels/<source>`` for ``arch`` with macros ``defines``. Needs no GPU.

    Compiled once a machine (``cubins``): it takes seconds. Raises ImportError without
    cuda-bindings and CompileError with NVRTC's log.
    """
    from cuda.bindings import nvrtc

    file = device_code.path(source)
    text = file.read_bytes()
    options = [
        f"--gpu-architecture={arch}", "--std=c++17", "-default-device",
        *(f"--define-macro={name}={value}" for name, value in defines),
    ]  # fmt: skip
    version = _ask(nvrtc.nvrtcVersion(), "version")
    headers = [header.read_bytes() for header in sorted(file.parent.glob("*.cuh"))]
    return cubins.kept(
        [str(version).encode(), *(option.encode() for option in options), text, *headers],
        lambda: _compile(file, text, [*options, f"--include-path={file.parent}"]),
    )


def _compile(file: Path, text: bytes, options: list[str]) -> bytes:
    from cuda.bindings import nvrtc

    program = _ask(nvrtc.nvrtcCreateProgram(text, file.name.encode(), 0, [], []), "create")
    try:
        (code,) = nvrtc.nvrtcCompileProgram(
            program, len(options), [option.encode() for option in options]
        )
        if int(code) != 0:
            size = _ask(nvrtc.nvrtcGetProgramLogSize(program), "log size")
            log = b" " * size
            _ask(nvrtc.nvrtcGetProgramLog(program, log), "log")
            said = log.decode(errors="replace").strip()
            raise CompileError(f"{file.name}, {' '.join(options)}: {said}")
        cubin = b" " * int(_ask(nvrtc.nvrtcGetCUBINSize(program), "cubin size"))
        _ask(nvrtc.nvrtcGetCUBIN(program, cubin), "cubin")
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def function(source: str, name: str, *, arch: str = "sm_90a", defines: Defines = ()) -> Function:
    """The kernel ``name`` of a source, compiled and loaded once a process and device.

    Wants a current CUDA context (torch makes one). Raises CompileError and DriverError.
    """
    from cuda.bindings import driver

    device = int(_ask(driver.cuCtxGetDevice(), "cuCtxGetDevice"))
    return _function(source, name, arch, defines, device)


@cache
def _function(source: str, name: str, arch: str, defines: Defines, device: int) -> Function:
    from cuda.bindings import driver

    cubin = compile(source, arch=arch, defines=defines)
    # Loading may allocate, which another mode of capture forbids (and then the capture is lost).
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _ask(driver.cuThreadExchangeStreamCaptureMode(relaxed), "capture mode")
    try:
        module = _ask(driver.cuModuleLoadData(cubin), "cuModuleLoadData")
        handle = _ask(driver.cuModuleGetFunction(module, name.encode()), f"kernel {name}")
    finally:
        driver.cuThreadExchangeStreamCaptureMode(before)
    attribute = driver.CUfunction_attribute
    registers, local_bytes = (
        int(_ask(driver.cuFuncGetAttribute(which, handle), "cuFuncGetAttribute"))
        for which in (
            attribute.CU_FUNC_ATTRIBUTE_NUM_REGS,
            attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
        )
    )
    return Function(int(handle), name, registers, local_bytes)


@cache
def _allow(handle: int, shared_bytes: int) -> None:
    """Let a kernel have more dynamic shared memory than the 48 KiB that all may. Exactly as much as
    it is launched with: sm_90's own kilobyte may or may not be counted as the kernel's."""
    from cuda.bindings import driver

    which = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _ask(
        driver.cuFuncSetAttribute(driver.CUfunction(handle), which, shared_bytes),
        f"{shared_bytes} bytes of shared memory",
    )


def launch(
    kernel: Function,
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
    """Launch on a stream (``torch.cuda.current_stream().cuda_stream``), graph capture included.

    ``arguments`` are ctypes values and TensorMaps in the kernel's order. ``cooperative``: all
    blocks are resident, or the driver refuses. ``dependent``: may start while the kernel before it
    drains (the kernel itself waits with griddepcontrol). Raises DriverError.
    """
    from cuda.bindings import driver

    if shared_bytes > 48 * 1024:
        _allow(kernel.handle, shared_bytes)
    attributes = []
    names = driver.CUlaunchAttributeID
    if cooperative:
        one = driver.CUlaunchAttribute()
        one.id = names.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        one.value.cooperative = 1
        attributes.append(one)
    if dependent:
        one = driver.CUlaunchAttribute()
        one.id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        one.value.programmaticStreamSerializationAllowed = 1
        attributes.append(one)
    if cluster is not None:
        one = driver.CUlaunchAttribute()
        one.id = names.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        one.value.clusterDim.x, one.value.clusterDim.y, one.value.clusterDim.z = cluster
        attributes.append(one)
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes = shared_bytes
    config.hStream = stream
    config.numAttrs = len(attributes)
    config.attrs = attributes
    addresses = (ctypes.c_void_p * len(arguments))(
        *(a.address if isinstance(a, TensorMap) else ctypes.addressof(a) for a in arguments)
    )
    _ask(
        driver.cuLaunchKernelEx(
            config, driver.CUfunction(kernel.handle), ctypes.addressof(addresses), 0
        ),
        f"launch of {kernel.name}",
    )


# The driver's names of element types and of swizzles, by ours.
_ELEMENTS = {"bf16": "BFLOAT16", "fp16": "FLOAT16", "fp32": "FLOAT32", "uint8": "UINT8"}
_SWIZZLES = {0: "NONE", 32: "32B", 64: "64B", 128: "128B"}
_PROMOTIONS = {0: "NONE", 64: "L2_64B", 128: "L2_128B", 256: "L2_256B"}


def tensor_map(
    pointer: int,
    dtype: str,
    shape: Sequence[int],
    strides_bytes: Sequence[int],
    box: Sequence[int],
    *,
    swizzle: int = 128,
    l2: int = 256,
) -> TensorMap:
    """Describe device memory to the bulk copy engine, the innermost dimension first.

    ``strides_bytes`` are those of every dimension but the innermost (multiples of 16); ``box`` is
    what one copy moves; what lies outside ``shape`` reads as zero. Raises DriverError.
    """
    from cuda.bindings import driver

    prefix = "CU_TENSOR_MAP_"
    made = TensorMap()
    code = _encode_tiled()(
        made.address,
        getattr(driver.CUtensorMapDataType, f"{prefix}DATA_TYPE_{_ELEMENTS[dtype]}"),
        len(shape),
        pointer,
        (ctypes.c_uint64 * 5)(*shape),
        (ctypes.c_uint64 * 5)(*strides_bytes),
        (ctypes.c_uint32 * 5)(*box),
        (ctypes.c_uint32 * 5)(*[1] * len(shape)),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(driver.CUtensorMapSwizzle, f"{prefix}SWIZZLE_{_SWIZZLES[swizzle]}"),
        getattr(driver.CUtensorMapL2promotion, f"{prefix}L2_PROMOTION_{_PROMOTIONS[l2]}"),
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    what = f"cuTensorMapEncodeTiled of {shape}, strides {strides_bytes}, box {box}"
    _ask((driver.CUresult(code),), what)
    return made


@cache
def _encode_tiled() -> Any:
    """The driver's own entry. The object into which cuda-bindings has it encode is not aligned to
    the 64 bytes that it asks for (NVIDIA/cuda-python#1692: it can crash)."""
    entry = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled  # torch has it loaded
    number, array = ctypes.c_uint32, ctypes.c_void_p
    entry.argtypes = [array, number, number, *[array] * 5, *[number] * 4]
    return entry


def resources(cubin: bytes) -> dict[str, Resources]:
    """What each kernel of a cubin takes, as ``cuobjdump`` tells. Raises FileNotFoundError."""
    text = _dump(cubin, "cuobjdump", "-res-usage")
    found = {}
    pattern = r"Function\s+(\w+):\s*\n\s*REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)"
    for name, registers, stack, shared, local in re.findall(pattern, text):
        found[name] = Resources(int(registers), int(shared), max(int(stack), int(local)))
    return found


def sass(cubin: bytes) -> str:
    """The machine code of a cubin as text, as ``cuobjdump`` tells. Raises FileNotFoundError."""
    return _dump(cubin, "cuobjdump", "-sass")


def _dump(cubin: bytes, program: str, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [_program(program), option, file.name], capture_output=True, text=True, check=True
        )
    return done.stdout


def _program(name: str) -> str:
    """A program of the CUDA toolkit; Triton's package carries those that look into a cubin."""
    found = shutil.which(name)
    if found is None:
        import importlib.util

        spec = importlib.util.find_spec("triton")
        if spec is not None and spec.origin is not None:
            carried = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
            found = str(carried) if carried.is_file() else None
    if found is None:
        raise FileNotFoundError(f"{name}: neither on the PATH nor in an installed triton")
    return found


def _ask(answer: tuple[Any, ...], what: str) -> Any:
    """The value of a driver's or compiler's answer. Raises DriverError for an error code."""
    code, *values = answer
    if int(code) != 0:
        raise DriverError(f"{what}: {getattr(code, 'name', code)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else values
