"""The inline assembly of the FP8 cache, read from the kernel's source and carried out in numpy.

Triton's interpreter knows no assembly: it takes the other branch. Here is what a card would do.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zenrepro.ops import device_code
from zenrepro.ops.mla import cache

Words = NDArray[np.uint32]


def bf16(bits: Words) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The numbers in a word's lower and upper half."""
    low, high = ((half << 16).astype(np.uint32).view(np.float32) for half in (bits, bits >> 16))
    return low.astype(np.float64), high.astype(np.float64)


def packed(low: NDArray[np.float64], high: NDArray[np.float64]) -> Words:
    """Numbers that bf16 holds exactly -> words."""
    halves = [x.astype(np.float32).view(np.uint32) for x in (low, high)]
    for half, x in zip(halves, (low, high), strict=True):
        assert not (half & 0xFFFF).any()
        assert np.array_equal(half.view(np.float32).astype(np.float64), x)
    return (halves[0] >> 16) | halves[1]


def fused_multiply_add(a: Words, b: Words, c: Words) -> Words:
    """fma.rn.bf16x2, where the exact result is a number of bf16."""
    parts = [x * y + z for x, y, z in zip(bf16(a), bf16(b), bf16(c), strict=True)]
    return packed(*parts)


def look_up(a: Words, b: Words, c: Words, table: Words) -> Words:
    """lop3.b32: each bit by the table of a, b, c."""
    out = np.zeros_like(a)
    for index in range(8):
        if int(table.flat[0]) >> index & 1:
            out |= (
                (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
            ).astype(np.uint32)
    return out


PTX: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "lop3.b32": look_up,
    "fma.rn.bf16x2": fused_multiply_add,
}


def carry_out(assembly: str, words: Words) -> dict[str, Words]:
    registers = {"$2": words}
    for line in assembly.splitlines():
        step = re.match(r"([a-z0-9.]+) +([^,]+), (.*);", line.strip())
        if step is None or line.strip().startswith(".reg"):
            continue
        values = [
            registers[name] if name in registers else np.full_like(words, int(name, 0))
            for name in step[3].split(", ")
        ]
        registers[step[2]] = PTX[step[1]](*values).astype(np.uint32)
    return registers


def test_two_pairs_at_a_time_are_exact() -> None:
    text = device_code.path("triton/e4m3.py").read_text()
    (assembly,) = re.findall(r'inline_asm_elementwise\(\s*"""(.*?)"""', text, re.DOTALL)
    assert len(re.findall(r"(shl|shr|and|lop3|fma)\.", assembly)) == 9
    first = np.arange(2**16, dtype=np.uint32)
    second = np.random.default_rng(0).permutation(2**16).astype(np.uint32)
    registers = carry_out(assembly, first | (second << 16))
    for name, of in (("$0", lambda pair: pair & 0xFF), ("$1", lambda pair: pair >> 8)):
        for pair, found in zip((first, second), bf16(registers[name]), strict=True):
            wanted = cache.decode(of(pair).astype(np.uint8)).astype(np.float64)
            known = np.isfinite(wanted)
            assert np.array_equal(found[known], wanted[known])
            assert np.array_equal(np.signbit(found[known]), np.signbit(wanted[known]))


def test_another_mask_would_be_seen() -> None:
    text = device_code.path("triton/e4m3.py").read_text()
    (assembly,) = re.findall(r'inline_asm_elementwise\(\s*"""(.*?)"""', text, re.DOTALL)
    words = np.arange(2**16, dtype=np.uint32) << 16
    right, wrong = (
        carry_out(text, words)["$1"]
        for text in (assembly, assembly.replace("0x07F007F0", "0x07E007F0"))
    )
    assert not np.array_equal(right, wrong)
