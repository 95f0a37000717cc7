"""What a device can do at most: copying, reading, and multiplying matrices, by plain calls of
the framework. The measured ceilings stand beside the datasheet's in every table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from zenrepro.backends import Backend
from zenrepro.errors import InputError
from zenrepro.hardware import Hardware, cpu
from zenrepro.records import Status, Work

Call = Callable[[], Any]

_BYTES_PER_ELEMENT = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "fp8_e4m3": 1, "int8": 1}
_GIB = 2**30
# Matrix sides by scale: large enough to fill the device, small enough for the scale's time.
_SIDES_CPU = {"smoke": (128,), "small": (1024,), "full": (2048,)}
_SIDES_ACCELERATOR = {"smoke": (256,), "small": (4096,), "full": (8192, 16384)}
# At the largest size only what runs on matrix units at full rate; the rest takes too long.
_FAST = ("fp16", "bf16", "fp8_e4m3", "int8")
# Compute capability from which NVIDIA's matrix units know a format.
_NVIDIA_FROM = {"bf16": (8, 0), "fp8_e4m3": (8, 9), "int8": (7, 2)}


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """One ceiling. ``work`` is counted; ``prepare(backend, seed)`` makes the inputs and returns
    the call to sample; ``unavailable`` says why there is none."""

    implementation: str
    quantity: str
    conditions: dict[str, Any]
    work: Work
    prepare: Callable[[Backend, int], Call]
    unavailable: tuple[Status, str] | None = None


def ceilings(hardware: Hardware, scale: str) -> Iterator[Ceiling]:
    """Every ceiling of a device at this scale. Raises InputError for an unknown scale."""
    if scale not in _SIDES_CPU:
        raise InputError(f"unknown scale {scale!r}; wanted one of {', '.join(_SIDES_CPU)}")
    elements = buffer_bytes(hardware, scale) // 4
    name = hardware.backend
    yield Ceiling(
        implementation=f"{name}.copy",
        quantity="bandwidth",
        conditions={"op": "copy", "dtype": "fp32", "n": elements},
        work=Work(flops=0.0, bytes=8.0 * elements),
        prepare=lambda backend, seed: _copy(backend, elements, seed),
    )
    yield Ceiling(
        implementation=f"{name}.sum",
        quantity="bandwidth",
        conditions={"op": "read", "dtype": "fp32", "n": elements},
        work=Work(flops=float(elements), bytes=4.0 * elements),
        prepare=lambda backend, seed: _sum(backend, elements, seed),
    )
    for dtype in _BYTES_PER_ELEMENT:
        sides = _sides(hardware, scale, dtype)
        for side in sides:
            if side == sides[0] or dtype in _FAST:
                yield matmul(hardware, dtype, side)
                if dtype == "fp32" and name != "mlx" and _is_nvidia(hardware):
                    yield matmul(hardware, dtype, side, tf32=True)


def buffer_bytes(hardware: Hardware, scale: str) -> int:
    """Size of the buffer that is copied or read: many times the last-level cache, except for
    smoke, and at most a sixteenth of the memory."""
    if scale == "smoke":
        return 2**20
    if hardware.device == "cpu":
        wanted = max(_GIB // 4, 8 * (cpu.last_level_cache_bytes() or 0))
    else:
        wanted = _GIB if scale == "small" else 4 * _GIB
    memory = hardware.device_class.memory_bytes
    most = memory // 16 if memory else wanted
    return max(2**20, min(wanted, most) // 2**20 * 2**20)


def _sides(hardware: Hardware, scale: str, dtype: str) -> tuple[int, ...]:
    if hardware.device != "cpu":
        return _SIDES_ACCELERATOR[scale]
    # Seconds a call otherwise: mlx has no fast matrix product on a CPU, and few CPUs have fp16.
    slow = scale != "smoke" and (hardware.backend == "mlx" or dtype == "fp16")
    return tuple(side // 2 if slow else side for side in _SIDES_CPU[scale])


def matmul(hardware: Hardware, dtype: str, side: int, *, tf32: bool = False) -> Ceiling:
    """The product of two ``side`` x ``side`` matrices in one format."""
    variant = {"fp8_e4m3": "scaled_mm", "int8": "int_mm"}.get(dtype, "matmul")
    if hardware.backend != "torch":
        variant = "matmul"
    element = _BYTES_PER_ELEMENT[dtype]
    out = {"fp8_e4m3": 2, "int8": 4}.get(dtype, element)
    reason = _no_matmul(hardware, dtype)
    return Ceiling(
        implementation=f"{hardware.backend}.{variant}{'_tf32' if tf32 else ''}",
        quantity="flop_rate",
        conditions={"op": "matmul", "dtype": dtype, "m": side, "n": side, "k": side},
        work=Work(flops=2.0 * side**3, bytes=float(side**2 * (2 * element + out))),
        prepare=lambda backend, seed: _matmul(backend, dtype, side, seed, tf32),
        unavailable=(Status.UNSUPPORTED, reason) if reason else None,
    )


def _no_matmul(hardware: Hardware, dtype: str) -> str | None:
    backend, on_cpu = hardware.backend, hardware.device == "cpu"
    capability = hardware.compute_capability
    least = _NVIDIA_FROM.get(dtype)
    if capability is not None and least is not None and capability < least:
        return (
            f"compute capability {capability[0]}.{capability[1]} has no matrix unit for {dtype} "
            f"(from {least[0]}.{least[1]})"
        )
    if dtype == "fp8_e4m3" and on_cpu:
        return "no CPU has matrix units for fp8_e4m3"
    if dtype == "fp8_e4m3" and backend == "jax":
        return "zenrepro has no fp8_e4m3 product for jax yet"
    if dtype == "fp64" and backend == "jax":
        return "jax holds fp64 only when 64-bit types are switched on for the whole process"
    if backend == "mlx" and dtype in ("int8", "fp8_e4m3"):
        return f"mlx multiplies no plain {dtype} matrices"
    if backend == "mlx" and dtype == "fp64" and not on_cpu:
        return "mlx has fp64 on the CPU only"
    if backend == "jax" and hardware.device.startswith("tpu") and dtype == "fp16":
        return "a TPU's matrix unit computes in bf16 and int8, not in fp16"
    return None


def _is_nvidia(hardware: Hardware) -> bool:
    # TF32 came with Ampere. A Jetson's capability is known too; unknown means no NVIDIA GPU.
    return hardware.compute_capability is not None and hardware.compute_capability >= (8, 0)


def _copy(backend: Backend, elements: int, seed: int) -> Call:
    source = backend.random((elements,), "fp32", seed)
    # Negated: a compiler may answer a plain copy with the input itself, and in a CUDA graph torch's
    # copy_ (a memcpy node, no kernel) reached 2.8 TB/s on an H200 where a kernel reached 4.3.
    if backend.name == "torch":
        import torch

        target = source.clone()
        return lambda: torch.neg(source, out=target)
    negate = backend.compile(lambda x: -x)
    return lambda: negate(source)


def _sum(backend: Backend, elements: int, seed: int) -> Call:
    source = backend.random((elements,), "fp32", seed)
    total = backend.compile(lambda x: x.sum())
    return lambda: total(source)


def _matmul(backend: Backend, dtype: str, side: int, seed: int, tf32: bool) -> Call:
    # Scaled so that fp16 holds the product's sums at any side.
    left = backend.random((side, side), dtype, seed, scale=side**-0.25)
    right = backend.random((side, side), dtype, seed + 1, scale=side**-0.25)
    if backend.name == "torch":
        return _torch_matmul(left, right, dtype, tf32)
    if backend.name == "jax":
        return _jax_matmul(backend, left, right, dtype, tf32)
    product = backend.compile(lambda a, b: a @ b)
    return lambda: product(left, right)


def _torch_matmul(left: Any, right: Any, dtype: str, tf32: bool) -> Call:
    import torch

    if dtype == "int8":
        # Column-major, as the matrix units want the second operand.
        right = right.t().contiguous().t()
        return lambda: torch._int_mm(left, right)
    if dtype == "fp8_e4m3":
        right = right.t().contiguous().t()
        one = torch.ones((), dtype=torch.float32, device=left.device)
        return lambda: torch._scaled_mm(
            left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    if not tf32:
        return lambda: left @ right

    def product() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return left @ right
        finally:
            torch.set_float32_matmul_precision(before)

    return product


def _jax_matmul(backend: Backend, left: Any, right: Any, dtype: str, tf32: bool) -> Call:
    import jax
    import jax.numpy as jnp

    # By default jax multiplies fp32 in TF32 on a GPU and in bf16 on a TPU.
    precision = jax.lax.Precision.HIGHEST if dtype == "fp32" and not tf32 else None
    result = jnp.int32 if dtype == "int8" else None
    product = backend.compile(
        lambda a, b: jnp.matmul(a, b, precision=precision, preferred_element_type=result)
    )
    return lambda: product(left, right)
