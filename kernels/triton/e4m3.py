"""FP8 numbers (e4m3, as caches hold them) to bf16, exactly."""

import triton
import triton.language as tl


@triton.jit
def e4m3_to_bf16(x):
    """uint32 with an e4m3 number in its uppermost byte -> bf16 of that number, exactly.

    Sign stays on top, exponent and fraction go to fp32's place; that reads the exponent with fp32's
    bias of 127 in place of 7, so the number is 2**120 too small: one exact product mends it,
    subnormal numbers included. NaN (all ones below the sign) reads as 480: caches hold none.
    """
    bits = (x & 0x80000000) | ((x >> 4) & 0x07F00000)
    return (bits.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(tl.bfloat16)


@triton.jit
def e4m3_pairs(x, PACKED: tl.constexpr):
    """uint16 of two e4m3 numbers -> bf16 of the lower, bf16 of the upper byte; both exact.

    For cards without FP8 units, and for Hopper, which cannot go from e4m3 to bf16 directly. PACKED
    does ``e4m3_to_bf16`` in bf16's place, two pairs at a time in 9 instructions, 2.25 a number.
    """
    if PACKED:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 lower, upper, minus_zero, factor;
            mov.b32 minus_zero, 0x80008000;
            mov.b32 factor, 0x7B807B80;
            shl.b32 lower, $2, 8;
            shr.u32 upper, $2, 4;
            and.b32 upper, upper, 0x07F007F0;
            lop3.b32 upper, $2, 0x80008000, upper, 0xEA;
            fma.rn.bf16x2 $1, upper, factor, minus_zero;
            shr.u32 upper, lower, 4;
            and.b32 upper, upper, 0x07F007F0;
            lop3.b32 lower, lower, 0x80008000, upper, 0xEA;
            fma.rn.bf16x2 $0, lower, factor, minus_zero;
            }
            """,
            "=&r,=&r,r",
            [x],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        wide = x.to(tl.uint32)
        low = e4m3_to_bf16(wide << 24)
        high = e4m3_to_bf16((wide & 0xFF00) << 16)
    return low, high
