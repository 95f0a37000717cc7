// For tests of the emulator itself: one tile copied, multiplied and stored.
#include "hopper.cuh"

extern "C" __global__ void __launch_bounds__(128, 1)
    probe(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
          float* out) {
    extern __shared__ unsigned char memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u;
    const u32 full = base, a = base + 1024, b = a + 64 * 128;
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(full, 64 * 128 + COLUMNS * 128 + EXTRA_BYTES);
        tma_load(a, &a_map, full, L2_EVICT_FIRST, 0, 0);
#if MN_MAJOR
        for (int c = 0; c < COLUMNS / 64; ++c)
            tma_load(b + c * 64 * 128, &b_map, full, L2_EVICT_FIRST, 64 * c, 0);
#else
        tma_load(b, &b_map, full, L2_EVICT_FIRST, 0, 0);
#endif
    }
#if WAIT
    mbarrier_wait(full, 0);
#endif
    float d[COLUMNS / 2];
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) d[i] = 0.0f;
    registers_pin(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#if MN_MAJOR
        const u64 right = matrix_descriptor(b + 2048 * k, 1024, 64 * 128);
#else
        const u64 right = matrix_descriptor(b + 32 * k, 1024);
#endif
        Wgmma<COLUMNS, DTYPE>::ss<MN_MAJOR>(d, matrix_descriptor(a + 32 * k, 1024), right, 1);
    }
    wgmma_commit();
#if OVERWRITE
    if (threadIdx.x == OVERWRITE) store_shared(OVERWRITE == 1 ? a : b, 1.0f);
#endif
#if WAIT_PRODUCT
    wgmma_wait<0>();
#endif
    registers_pin(d);
    const int row = 16 * (threadIdx.x / 32) + threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i)
        out[(row + 8 * (i / 2 % 2)) * COLUMNS + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = d[i];
#if !WAIT_PRODUCT
    wgmma_wait<0>();
#endif
}
