// Rows of an FP8 latent cache as bf16: e4m3 codes times their fp32 scale, eight at a time.
#pragma once
#include "hopper.cuh"

// Eight e4m3 numbers times their scale: exact products, rounded once. For any code and any scale.
DEVICE uint4 dequantise(u32 low, u32 high, float scale) {
    u32 out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 word = i < 2 ? low : high;
        const float2 x = halves_to_floats(unpack_e4m3(static_cast<u16>(word >> (i % 2 * 16))));
        out[i] = pack<BF16>(x.x * scale, x.y * scale);
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

// The same in two thirds of the instructions, for codes that are numbers (see nan_bits) and scales
// that fit (see scale_fits). An e4m3 code's exponent and mantissa, moved to those of a bf16, are
// the number times 2^-120, the numbers below 2^-6 included. The scale, times 2^120, comes as the
// sum of two bf16 (see split_scale), 16 bits of it.
DEVICE uint4 dequantise_fast(u32 low, u32 high, u32 scale) {
    const u32 large = permute_bytes(scale, 0x1010), small = permute_bytes(scale, 0x3232);
    u32 out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // Two codes, each in the low byte of 16 bits that repeat its sign above.
        const u32 wide = permute_bytes(i < 2 ? low : high, i % 2 ? 0xb3a2 : 0x9180);
        const u32 number = (wide << 4) & 0x87f087f0u;
        out[i] = fma_bf16x2(number, large, mul_bf16x2(number, small));
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

// Times 2^120 it is a finite bf16, rounded up too.
DEVICE bool scale_fits(float scale) { return fabsf(scale) < 128.0f; }

// A scale times 2^120 as a bf16 and, in the high half, what that rounding left.
DEVICE u32 split_scale(float scale) {
    const float wide = scale * 0x1p120f;
    const u32 large = pack<BF16>(wide, 0.0f);
    return pack<BF16>(wide, wide - __uint_as_float(large << 16));
}

// The bits 7, 15, 23, 31 where some of four codes is NaN (7 low bits set); none where none is.
DEVICE u32 nan_bits(u32 codes) { return (codes + 0x01010101u) ^ codes; }
