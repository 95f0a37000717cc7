// Hopper's (sm_90a) asynchronous machinery in small inline functions: mbarriers, the tensor
// copy engine (TMA), warpgroup matrix multiply (wgmma), named barriers, register hand-over.
//
// Free of headers, so that NVRTC compiles it alone. Section names below are those of the PTX ISA
// manual. -DDEBUG_SPIN=<polls of 40 cycles> bounds every wait and traps when one does not end.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

static_assert(sizeof(u64) == 8 && sizeof(u32) == 4, "integer sizes");

// A cuTensorMap, passed by value: const __grid_constant__ TensorMap.
struct alignas(64) TensorMap {
    char bytes[128];
};

// Element types of a matrix product (accumulators are always fp32).
struct BF16 {};
struct F16 {};
struct E4M3 {};

#define DEVICE __device__ __forceinline__

// ---------------------------------------------------------------- threads

DEVICE u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

DEVICE u32 lane_index() {
    u32 lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

// The warp's index, in a uniform register, so that role branches are uniform.
DEVICE u32 warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }

// True in exactly one lane of a fully active warp.
DEVICE bool elect_one() {
    u32 chosen;
    asm volatile(
        "{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(chosen));
    return chosen != 0;
}

// The largest, the smallest of all lanes of a warp.
DEVICE u32 warp_max(u32 x) { return __reduce_max_sync(0xffffffffu, x); }
DEVICE u32 warp_min(u32 x) { return __reduce_min_sync(0xffffffffu, x); }

// setmaxnreg: every warp of a warpgroup executes it; counts are multiples of 8 in [24, 256].
template <int COUNT>
DEVICE void registers_release() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DEVICE void registers_claim() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Named barriers (1..15; 0 is __syncthreads). Every thread counted arrives or waits.
DEVICE void barrier_wait(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Waits like barrier_wait, and tells every thread in how many of them the condition held.
DEVICE u32 barrier_count(u32 id, u32 threads, bool condition) {
    u32 count;
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n"
        "barrier.cta.red.popc.aligned.u32 %0, %1, %2, p;\n}\n"
        : "=r"(count)
        : "r"(id), "r"(threads), "r"(static_cast<u32>(condition))
        : "memory");
    return count;
}
DEVICE void barrier_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---------------------------------------------------------------- mbarrier

DEVICE void mbarrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

// Makes initialised barriers visible to the copy engine and to the cluster; then synchronise.
DEVICE void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEVICE void mbarrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The same where the condition holds, without a branch (store_if says why).
DEVICE void mbarrier_arrive_if(u32 barrier, bool condition) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.u32 p, %1, 0;\n"
        "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n}\n" ::"r"(barrier),
        "r"(static_cast<u32>(condition))
        : "memory");
}

// Arrives and announces bytes that asynchronous copies will bring in this phase.
DEVICE void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

DEVICE void mbarrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.expect_tx.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Arrives at the same barrier of another block of the cluster.
DEVICE void mbarrier_arrive_remote(u32 barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// Whether the phase of this parity has completed (the hardware may wait a while first).
DEVICE bool mbarrier_try_wait(u32 barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

// The same with cluster scope: for barriers at which other blocks of the cluster arrive.
DEVICE bool mbarrier_try_wait_cluster(u32 barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

// The same without waiting at all.
DEVICE bool mbarrier_test(u32 barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

#ifdef DEBUG_SPIN
// By the clock: one try_wait may be suspended for longer than many polls take.
static_assert(DEBUG_SPIN <= 100000000, "a clock of 32 bits");
DEVICE u32 clock_now() { return static_cast<u32>(clock()); }
DEVICE void trap_if_late(u32 since) {
    if (clock_now() - since > 40u * DEBUG_SPIN) asm volatile("trap;");
}
#endif

// Waits until the phase of this parity has completed. On a new barrier a wait for parity 1
// returns at once: a producer's first wait for an empty stage passes.
DEVICE void mbarrier_wait(u32 barrier, u32 parity) {
#ifdef DEBUG_SPIN
    const u32 since = clock_now();
    while (!mbarrier_try_wait(barrier, parity)) trap_if_late(since);
#else
    while (!mbarrier_try_wait(barrier, parity)) {
    }
#endif
}

DEVICE void mbarrier_wait_cluster(u32 barrier, u32 parity) {
#ifdef DEBUG_SPIN
    const u32 since = clock_now();
    while (!mbarrier_try_wait_cluster(barrier, parity)) trap_if_late(since);
#else
    while (!mbarrier_try_wait_cluster(barrier, parity)) {
    }
#endif
}

// ---------------------------------------------------------------- proxies and clusters

// Ordinary shared-memory writes before it are seen by wgmma and TMA after a barrier.
DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Programmatic dependent launch: wait for the kernel before; let the kernel after start.
DEVICE void dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void dependency_launch() { asm volatile("griddepcontrol.launch_dependents;"); }

// ---------------------------------------------------------------- cp.async (16 bytes a thread)

// Copies 16 bytes, or writes zeros where valid is false (the source is then not read).
DEVICE void copy16_async(u32 target, const void* source, bool valid) {
    u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target),
                 "l"(source), "r"(bytes)
                 : "memory");
}

// This thread's arrival at the barrier is triggered when its copies so far have landed. The
// barrier's count must include the thread.
DEVICE void copy_async_arrive(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier)
                 : "memory");
}

// ---------------------------------------------------------------- TMA

// L2 eviction policies, as the copy instructions encode them.
constexpr u64 L2_EVICT_NORMAL = 0x1000000000000000ull;
constexpr u64 L2_EVICT_FIRST = 0x12F0000000000000ull;
constexpr u64 L2_EVICT_LAST = 0x14F0000000000000ull;

DEVICE void tensor_map_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<u64>(map)) : "memory");
}

// tma_load(target, map, barrier, policy, c0, c1 ...): box at coordinates, innermost first; what
// lies outside the tensor comes as zeros and still counts as bytes. One thread issues it.
#define TMA_LOAD(DIMS, COORDINATES, ...)                                                        \
    asm volatile("cp.async.bulk.tensor." DIMS                                                   \
                 ".shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"          \
                 " [%0], [%1, {" COORDINATES "}], [%2], %3;" ::"r"(target),                     \
                 "l"(reinterpret_cast<u64>(map)), "r"(barrier), "l"(policy), __VA_ARGS__        \
                 : "memory")

DEVICE void tma_load(u32 target, const TensorMap* map, u32 barrier, u64 policy, int c0, int c1) {
    TMA_LOAD("2d", "%4, %5", "r"(c0), "r"(c1));
}
DEVICE void tma_load(u32 target, const TensorMap* map, u32 barrier, u64 policy, int c0, int c1,
                     int c2) {
    TMA_LOAD("3d", "%4, %5, %6", "r"(c0), "r"(c1), "r"(c2));
}
DEVICE void tma_load(u32 target, const TensorMap* map, u32 barrier, u64 policy, int c0, int c1,
                     int c2, int c3) {
    TMA_LOAD("4d", "%4, %5, %6, %7", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
}
DEVICE void tma_load(u32 target, const TensorMap* map, u32 barrier, u64 policy, int c0, int c1,
                     int c2, int c3, int c4) {
    TMA_LOAD("5d", "%4, %5, %6, %7, %8", "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4));
}
#undef TMA_LOAD

// Multicast: the box lands at the same offset in every block of the mask, and completes bytes on
// the barrier at the same offset there.
#define TMA_MULTICAST(DIMS, COORDINATES, ...)                                                   \
    asm volatile(                                                                               \
        "cp.async.bulk.tensor." DIMS                                                            \
        ".shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"\
        " [%0], [%1, {" COORDINATES "}], [%2], %3, %4;" ::"r"(target),                          \
        "l"(reinterpret_cast<u64>(map)), "r"(barrier), "h"(mask), "l"(policy), __VA_ARGS__      \
        : "memory")

DEVICE void tma_multicast(u32 target, const TensorMap* map, u32 barrier, u16 mask, u64 policy,
                          int c0, int c1, int c2) {
    TMA_MULTICAST("3d", "%5, %6, %7", "r"(c0), "r"(c1), "r"(c2));
}
DEVICE void tma_multicast(u32 target, const TensorMap* map, u32 barrier, u16 mask, u64 policy,
                          int c0, int c1, int c2, int c3) {
    TMA_MULTICAST("4d", "%5, %6, %7, %8", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
}
#undef TMA_MULTICAST

// tma_store(map, source, c0, c1 ...): parts of the box outside the tensor are not written.
#define TMA_STORE(DIMS, COORDINATES, ...)                                                       \
    asm volatile("cp.async.bulk.tensor." DIMS ".global.shared::cta.bulk_group"                  \
                 " [%0, {" COORDINATES "}], [%1];" ::"l"(reinterpret_cast<u64>(map)),           \
                 "r"(source), __VA_ARGS__                                                       \
                 : "memory")

DEVICE void tma_store(const TensorMap* map, u32 source, int c0, int c1) {
    TMA_STORE("2d", "%2, %3", "r"(c0), "r"(c1));
}
DEVICE void tma_store(const TensorMap* map, u32 source, int c0, int c1, int c2) {
    TMA_STORE("3d", "%2, %3, %4", "r"(c0), "r"(c1), "r"(c2));
}
DEVICE void tma_store(const TensorMap* map, u32 source, int c0, int c1, int c2, int c3) {
    TMA_STORE("4d", "%2, %3, %4, %5", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
}
DEVICE void tma_store(const TensorMap* map, u32 source, int c0, int c1, int c2, int c3, int c4) {
    TMA_STORE("5d", "%2, %3, %4, %5, %6", "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4));
}
#undef TMA_STORE

// Bulk copies of plain bytes (multiples of 16, 16-byte aligned).
DEVICE void bulk_load(u32 target, const void* source, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(target),
        "l"(source), "r"(bytes), "r"(barrier)
        : "memory");
}
DEVICE void bulk_store(void* target, u32 source, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target),
                 "r"(source), "r"(bytes)
                 : "memory");
}

DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most PENDING groups still read shared memory (the source may then be rewritten).
template <int PENDING = 0>
DEVICE void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
template <int PENDING = 0>
DEVICE void store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---------------------------------------------------------------- ldmatrix, stmatrix

DEVICE void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void stmatrix_x4(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(r0), "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}
DEVICE void stmatrix_x4_transposed(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     address),
                 "r"(r0), "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}

// The byte offset of TMA's 128-byte swizzle: 16-byte chunk index ^= row index within 8 rows.
// offset is relative to a 1024-byte aligned base.
DEVICE u32 swizzle128(u32 offset) { return offset ^ ((offset >> 3) & 0x70); }
DEVICE u32 swizzle64(u32 offset) { return offset ^ ((offset >> 3) & 0x30); }

// ---------------------------------------------------------------- numbers

// 2^x, fast (MUFU.EX2); 2^-inf = 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float infinity() { return __int_as_float(0x7f800000); }

// Two floats rounded to nearest into one register, `low` in the low half.
template <class T>
DEVICE u32 pack(float low, float high);
template <>
DEVICE u32 pack<BF16>(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
template <>
DEVICE u32 pack<F16>(float low, float high) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
// Four floats to e4m3 bytes (saturating), lowest index in the lowest byte.
DEVICE u32 pack_e4m3(float x0, float x1, float x2, float x3) {
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(x1), "f"(x0));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(x3), "f"(x2));
    return static_cast<u32>(low) | (static_cast<u32>(high) << 16);
}
// Four fp16 to e4m3 bytes (saturating), lowest index in the lowest byte.
DEVICE u32 halves_to_e4m3(u32 low, u32 high) {
    u16 first, second;
    asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(first) : "r"(low));
    asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(second) : "r"(high));
    return static_cast<u32>(first) | (static_cast<u32>(second) << 16);
}
// Two fp16 each, rounded to nearest, subnormal ones included.
DEVICE u32 mul_f16x2(u32 x, u32 y) {
    u32 out;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(x), "r"(y));
    return out;
}
DEVICE u32 sub_f16x2(u32 x, u32 y) {
    u32 out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(x), "r"(y));
    return out;
}

// Byte n of the result is that which nibble n of the selector names: 0..3 of x, 4..7 of y.
DEVICE u32 permute_bytes(u32 x, u32 y, u32 selector) {
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(x), "r"(y), "r"(selector));
    return out;
}

// ---------------------------------------------------------------- words of memory

// Shared memory, past the compiler's back: none of these is moved over a barrier.
DEVICE void store_shared(u32 address, int x) {
    asm volatile("st.shared.s32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
DEVICE void store_shared(u32 address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}
DEVICE void store_shared(u32 address, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y),
                 "r"(x.z), "r"(x.w)
                 : "memory");
}
DEVICE void store_shared(u32 address, float2 x) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x.x), "f"(x.y) : "memory");
}
template <class T = float>
DEVICE T load_shared(u32 address);
template <>
DEVICE int load_shared<int>(u32 address) {
    int x;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
    return x;
}
template <>
DEVICE float load_shared<float>(u32 address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}
template <>
DEVICE float2 load_shared<float2>(u32 address) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(x.x), "=f"(x.y)
                 : "r"(address)
                 : "memory");
    return x;
}
template <>
DEVICE float4 load_shared<float4>(u32 address) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}
template <>
DEVICE uint4 load_shared<uint4>(u32 address) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

// Global memory that other blocks write in this launch: not from this multiprocessor's L1.
DEVICE float4 load_l2(const float4* address) {
    float4 x;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(address)
                 : "memory");
    return x;
}
DEVICE float2 load_l2(const float2* address) {
    float2 x;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];"
                 : "=f"(x.x), "=f"(x.y)
                 : "l"(address)
                 : "memory");
    return x;
}
// Global memory that is read once and that nothing writes in this launch.
DEVICE uint4 load_once(const void* address) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(address));
    return x;
}

// Stores 16 bytes where the condition holds, without a branch: after one on which the lanes of a
// warp differ, ptxas keeps nothing in uniform registers in the loop around it.
DEVICE void store_if(void* address, uint4 x, bool condition) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n"
        "@p st.global.v4.b32 [%0], {%1, %2, %3, %4};\n}\n" ::"l"(address),
        "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(static_cast<u32>(condition))
        : "memory");
}

// Brings a line of 128 bytes to L2.
DEVICE void prefetch_l2(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address) : "memory");
}
// Brings bytes to L2 (a multiple of 16, 16-byte aligned).
DEVICE void prefetch_bulk_l2(const void* address, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes)
                 : "memory");
}

// Waits until a counter in global memory has reached a value; what was written before it counted
// (by a thread that then fenced) is seen.
DEVICE void wait_global(const u32* counter, u32 wanted) {
#ifdef DEBUG_SPIN
    const u32 since = clock_now();
#endif
    for (;;) {
        u32 have;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(have) : "l"(counter) : "memory");
        if (have >= wanted) return;
#ifdef DEBUG_SPIN
        trap_if_late(since);
#endif
    }
}

// ---------------------------------------------------------------- wgmma: matrix descriptors

enum class Swizzle : u32 { NONE = 0, BYTES_128 = 1, BYTES_64 = 2, BYTES_32 = 3 };

// Descriptor of an operand in shared memory (the base of the swizzle pattern aligned, so its
// base offset is 0; start may lie inside the pattern along K).
//
// K-major (each row's K elements contiguous; rows of 128 bytes with BYTES_128): stride_bytes is
// the distance of 8-row groups (1024 for densely packed 128-byte rows), leading_bytes is unused;
// the next 16 columns (16-bit types) or 32 columns (8-bit) begin 32 bytes further.
//
// MN-major (the M or N elements contiguous, 64 of 16 bits to a 128-byte row; transposed bit set):
// stride_bytes is the distance of 8-row groups along K (1024), leading_bytes the distance of
// 64-element column groups along M or N; the next 16 of K begin 2048 bytes further.
template <Swizzle SWIZZLE = Swizzle::BYTES_128>
DEVICE u64 matrix_descriptor(u32 start, u32 stride_bytes, u32 leading_bytes = 16) {
    return static_cast<u64>((start & 0x3ffff) >> 4) |
           (static_cast<u64>((leading_bytes & 0x3ffff) >> 4) << 16) |
           (static_cast<u64>((stride_bytes & 0x3ffff) >> 4) << 32) |
           (static_cast<u64>(SWIZZLE) << 62);
}

// The descriptor `bytes` further (must not carry out of the 18-bit address space).
DEVICE u64 descriptor_advance(u64 descriptor, u32 bytes) { return descriptor + (bytes >> 4); }

// ---------------------------------------------------------------- wgmma: ordering

// Before the first wgmma that reads registers or accumulators written by ordinary instructions.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most PENDING of the newest groups are in flight.
template <int PENDING>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving reads or writes of these registers over this place.
template <int COUNT>
DEVICE void registers_pin(float (&r)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
template <int COUNT>
DEVICE void registers_pin(u32 (&r)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

// ---------------------------------------------------------------- wgmma: products
//
// Wgmma<N, T>::ss<TRANSPOSE_B>(d, a, b, accumulate): D[64, N] (+)= A[64, K] B[K, N], both operands
// by descriptor; K is 16 for 16-bit types and 32 for e4m3.
// Wgmma<N, T>::rs<TRANSPOSE_B>(d, a0..a3, b, accumulate): A from registers.
//
// A warpgroup's fragments (thread t of 128: warp w = t / 32, group g = (t % 32) / 4, pair
// c = t % 4): d[4 i + 2 h + e] is row 16 w + g + 8 h, column 8 i + 2 c + e. The A registers
// (16-bit types): a0 = row g, columns 2c..2c+1; a1 = row g + 8, the same columns; a2 = row g,
// columns 8 + 2c..; a3 = row g + 8, columns 8 + 2c...; so D's columns 16 k .. 16 k + 15, rounded
// and packed pair by pair in order, are the A registers of K step k.
template <int N, class T>
struct Wgmma;

#define W_TEN(T)                                                                             \
    "%" T "0, %" T "1, %" T "2, %" T "3, %" T "4, %" T "5, %" T "6, %" T "7, %" T "8, %" T "9"
#define W_LIST4 "%0, %1, %2, %3"
#define W_LIST8 W_LIST4 ", %4, %5, %6, %7"
#define W_LIST12 W_TEN("") ", %10, %11"
#define W_LIST16 W_LIST12 ", %12, %13, %14, %15"
#define W_LIST20 W_TEN("") ", " W_TEN("1")
#define W_LIST24 W_LIST20 ", %20, %21, %22, %23"
#define W_LIST30 W_LIST20 ", " W_TEN("2")
#define W_LIST32 W_LIST30 ", %30, %31"
#define W_LIST40 W_LIST30 ", " W_TEN("3")
#define W_LIST48 W_LIST40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define W_LIST50 W_LIST40 ", " W_TEN("4")
#define W_LIST56 W_LIST50 ", %50, %51, %52, %53, %54, %55"
#define W_LIST60 W_LIST50 ", " W_TEN("5")
#define W_LIST64 W_LIST60 ", %60, %61, %62, %63"
#define W_LIST70 W_LIST60 ", " W_TEN("6")
#define W_LIST72 W_LIST70 ", %70, %71"
#define W_LIST80 W_LIST70 ", " W_TEN("7")
#define W_LIST88 W_LIST80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define W_LIST90 W_LIST80 ", " W_TEN("8")
#define W_LIST96 W_LIST90 ", %90, %91, %92, %93, %94, %95"
#define W_LIST100 W_LIST90 ", " W_TEN("9")
#define W_LIST110 W_LIST100 ", " W_TEN("10")
#define W_LIST112 W_LIST110 ", %110, %111"
#define W_LIST120 W_LIST110 ", " W_TEN("11")
#define W_LIST128 W_LIST120 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define W_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define W_D8(i) W_D4(i), W_D4(i + 4)
#define W_D16(i) W_D8(i), W_D8(i + 8)
#define W_D32(i) W_D16(i), W_D16(i + 16)
#define W_D64(i) W_D32(i), W_D32(i + 32)
#define W_OUT4 W_D4(0)
#define W_OUT8 W_D8(0)
#define W_OUT12 W_D8(0), W_D4(8)
#define W_OUT16 W_D16(0)
#define W_OUT20 W_D16(0), W_D4(16)
#define W_OUT24 W_D16(0), W_D8(16)
#define W_OUT32 W_D32(0)
#define W_OUT40 W_D32(0), W_D8(32)
#define W_OUT48 W_D32(0), W_D16(32)
#define W_OUT56 W_D32(0), W_D16(32), W_D8(48)
#define W_OUT64 W_D64(0)
#define W_OUT72 W_D64(0), W_D8(64)
#define W_OUT80 W_D64(0), W_D16(64)
#define W_OUT88 W_D64(0), W_D16(64), W_D8(80)
#define W_OUT96 W_D64(0), W_D32(64)
#define W_OUT112 W_D64(0), W_D32(64), W_D16(96)
#define W_OUT128 W_D64(0), W_D64(64)

// i0..i6: the numbers of the operands after the accumulators. K, TYPE and TRANSPOSE (the transposed bits,
// absent for 8 bits) differ between 16-bit and 8-bit types.
#define W_STRUCT(N, R, T, DEPTH, NAME, SS_BITS, RS_BITS, i0, i1, i2, i3, i4, i5, i6)           \
    template <>                                                                                \
    struct Wgmma<N, T> {                                                                       \
        static constexpr int K = DEPTH;                                                        \
        template <bool TRANSPOSE_B = false, bool TRANSPOSE_A = false>                          \
        static DEVICE void ss(float (&d)[R], u64 a, u64 b, int accumulate) {                   \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                     \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k" #DEPTH ".f32." NAME "." NAME\
                         " {" W_LIST##R "}, %" #i0 ", %" #i1 ", p, 1, 1" SS_BITS(i3, i4) ";\n}\n"\
                         : W_OUT##R                                                            \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(TRANSPOSE_A ? 1 : 0),          \
                           "n"(TRANSPOSE_B ? 1 : 0));                                          \
        }                                                                                      \
        template <bool TRANSPOSE_B = false>                                                    \
        static DEVICE void rs(float (&d)[R], u32 a0, u32 a1, u32 a2, u32 a3, u64 b,            \
                              int accumulate) {                                                \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\n"                     \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k" #DEPTH ".f32." NAME "." NAME\
                         " {" W_LIST##R "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4   \
                         ", p, 1, 1" RS_BITS(i6) ";\n}\n"                                      \
                         : W_OUT##R                                                            \
                         : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate),        \
                           "n"(TRANSPOSE_B ? 1 : 0));                                          \
        }                                                                                      \
    };
#define W_TWO_BITS(i, j) ", %" #i ", %" #j
#define W_ONE_BIT(i) ", %" #i
#define W_NO_BITS(...) ""
#define W_TYPES(N, R, ...)                                                                     \
    W_STRUCT(N, R, BF16, 16, "bf16", W_TWO_BITS, W_ONE_BIT, __VA_ARGS__)                       \
    W_STRUCT(N, R, F16, 16, "f16", W_TWO_BITS, W_ONE_BIT, __VA_ARGS__)                         \
    W_STRUCT(N, R, E4M3, 32, "e4m3", W_NO_BITS, W_NO_BITS, __VA_ARGS__)
W_TYPES(8, 4, 4, 5, 6, 7, 8, 9, 10)
W_TYPES(16, 8, 8, 9, 10, 11, 12, 13, 14)
W_TYPES(24, 12, 12, 13, 14, 15, 16, 17, 18)
W_TYPES(32, 16, 16, 17, 18, 19, 20, 21, 22)
W_TYPES(40, 20, 20, 21, 22, 23, 24, 25, 26)
W_TYPES(48, 24, 24, 25, 26, 27, 28, 29, 30)
W_TYPES(64, 32, 32, 33, 34, 35, 36, 37, 38)
W_TYPES(80, 40, 40, 41, 42, 43, 44, 45, 46)
W_TYPES(96, 48, 48, 49, 50, 51, 52, 53, 54)
W_TYPES(112, 56, 56, 57, 58, 59, 60, 61, 62)
W_TYPES(128, 64, 64, 65, 66, 67, 68, 69, 70)
W_TYPES(144, 72, 72, 73, 74, 75, 76, 77, 78)
W_TYPES(160, 80, 80, 81, 82, 83, 84, 85, 86)
W_TYPES(176, 88, 88, 89, 90, 91, 92, 93, 94)
W_TYPES(192, 96, 96, 97, 98, 99, 100, 101, 102)
W_TYPES(224, 112, 112, 113, 114, 115, 116, 117, 118)
W_TYPES(256, 128, 128, 129, 130, 131, 132, 133, 134)
#undef W_TYPES
#undef W_STRUCT
#undef W_TWO_BITS
#undef W_ONE_BIT
#undef W_NO_BITS
