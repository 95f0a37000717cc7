// V [B, S, Hkv, Dv] of 8-bit elements to [B, Hkv, Dv, padded]: keys innermost, zeros behind the
// last, and within every 32 keys in the order in which a score fragment holds its columns.
//
// Position 16 h + 4 c + r of 32 is key 8 (2 h + r / 2) + 2 c + r % 2 (attention_hopper.cu,
// round_weights). A block of 256 threads moves 128 keys of one head through shared memory.
#include "hopper.cuh"

constexpr int KEYS = 128;

extern "C" __global__ void __launch_bounds__(256)
    values_e4m3(const u8* values, u8* transposed, long long batch_stride, long long key_stride,
                long long head_stride, int keys, int padded, int dim) {
    extern __shared__ unsigned char memory[];
    const int pitch = dim + 4;  // 16 keys apart lies in the other half of the banks
    const int first = blockIdx.x * KEYS, head = blockIdx.y, batch = blockIdx.z;
    const u8* from = values + batch * batch_stride + head * head_stride;
    const int vectors = dim / 16;
    for (int i = threadIdx.x; i < KEYS * vectors; i += 256) {
        const int key = i / vectors, part = i % vectors;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (first + key < keys)
            x = *reinterpret_cast<const uint4*>(from + (first + key) * key_stride + 16 * part);
        u32* to = reinterpret_cast<u32*>(memory + key * pitch + 16 * part);
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    }
    __syncthreads();
    u8* rows = transposed + (static_cast<long long>(batch) * gridDim.y + head) * dim * padded;
    for (int i = threadIdx.x; i < dim * (KEYS / 16); i += 256) {
        const int half = i % 2, row = i / 2 % dim, group = i / 2 / dim;
        u32 words[4];
        for (int c = 0; c < 4; ++c) {
            words[c] = 0;
            for (int r = 0; r < 4; ++r) {
                const int key = 32 * group + 8 * (2 * half + r / 2) + 2 * c + r % 2;
                words[c] |= static_cast<u32>(memory[key * pitch + row]) << (8 * r);
            }
        }
        *reinterpret_cast<uint4*>(rows + static_cast<long long>(row) * padded + first +
                                  32 * group + 16 * half) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
}
