"""Products and roundings that Triton's interpreter gets wrong in bf16, right on both sides."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, INTERPRETED: tl.constexpr):
    """``acc + a @ b`` in fp32. Triton's interpreter holds bf16 as bits and cannot multiply it."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def narrowed(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 -> ``dtype``, to nearest. Triton's interpreter truncates to bf16: it gets numbers whose
    lower half was rounded away before."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
