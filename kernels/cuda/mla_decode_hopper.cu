// Multi-head latent attention, decode, for Hopper (sm_90a): absorbed queries over a paged cache in
// bf16 (mla_decode_hopper_fp8.cu for an FP8 cache).
//
// The T x H query rows of a sequence read the same cache rows: they are packed into tiles of 64
// (M of one wgmma). A block (one an SM, persistent) owns a tile and an even share of all pages:
//
//   producer    one warp brings pages by TMA in 64-column chunks, each with its own mbarrier
//   consumers   two warpgroups. Page g belongs to warpgroup g % 2: it computes S = Q K^T and the
//               softmax, and hands P, the new maxima and the rescaling to the other one. Each
//               accumulates 256 of the 512 output columns: O = O * alpha + P V.
//
// A page's chunks are given back as soon as they are read (rotary part after S; those of the latent
// one by one as P V goes through them), so that the next loads are under way while the rest is
// computed.
//
// Which block does what, and how the parts of a split sequence are combined: mla_schedule.cuh. Where
// two blocks share a sequence, each keeps half of its columns in registers and leaves the other
// half alone.
//
// Shah et al., FlashAttention-3 (arXiv 2407.08608), for the machinery; DeepSeek-AI, DeepSeek-V2
// (arXiv 2405.04434), for absorption; Dao et al., Flash-Decoding (2023), for the split.
//
// -DFIRST=n: n chunks of the next page's scores come before the values of this one; see consume.
// -DVALUES=64, 128 or 256: columns of a product with values.
// -DLAZY=n: weights are taken with the maximum of the pages before, unless a score of this page
// exceeds it by more than n powers of two; 0: always with this page's. See softmax.
#include "hopper.cuh"
#include "mla_schedule.cuh"

#ifndef FIRST
#define FIRST 0
#endif
#ifndef VALUES
#define VALUES 64
#endif
#ifndef LAZY
#define LAZY 0
#endif

namespace {

constexpr int CHUNK = 64;      // columns of a chunk: 128 bytes, the widest swizzle
constexpr int CHUNKS = ROW / CHUNK;
constexpr int ROTARY = 8;      // the chunk that is not value
constexpr u32 CHUNK_BYTES = 64 * CHUNK * 2;
constexpr u32 PAGE_BYTES = CHUNKS * CHUNK_BYTES;
constexpr int THREADS = 384;

// The order in which chunks are brought and multiplied: rotary part first. With scores ahead, the
// others as the two warpgroups give them back.
DEVICE constexpr int chunk_at(int i) {
    return i == 0 ? ROTARY : FIRST ? (i - 1) / 2 + (i - 1) % 2 * 4 : i - 1;
}

// Shared memory, bytes from its start.
constexpr u32 KV_AT = 0;
constexpr u32 Q_AT = KV_AT + 2 * PAGE_BYTES;
constexpr u32 P_AT = Q_AT + PAGE_BYTES;
constexpr u32 MAXIMA_AT = P_AT + CHUNK_BYTES;  // [64] running maximum of a row, times log2 e
constexpr u32 ALPHA_AT = MAXIMA_AT + 256;      // [64] what O is multiplied by before this page
constexpr u32 SUMS_AT = ALPHA_AT + 256;        // [2][64] row sums of each warpgroup's pages
constexpr u32 FULL_AT = SUMS_AT + 512;         // [2][9] a chunk has landed
constexpr u32 EMPTY_AT = FULL_AT + 2 * CHUNKS * 8;  // [2][9] a chunk has been read
constexpr u32 Q_FULL_AT = EMPTY_AT + 2 * CHUNKS * 8;
constexpr u32 Q_EMPTY_AT = Q_FULL_AT + 8;
constexpr u32 PUBLISHED_AT = Q_EMPTY_AT + 8;  // [2] a warpgroup has written P
constexpr u32 PLAN_AT = PUBLISHED_AT + 16;
constexpr u32 SHARED_BYTES = PLAN_AT + 512 + 1024;  // the last to round the start up
static_assert(SHARED_BYTES <= 232448, "more shared memory than a block can have");

// The caller's words for the same.
#ifdef WANTED_SHARED_BYTES
static_assert(SHARED_BYTES == WANTED_SHARED_BYTES, "shared memory");
#endif
#ifdef WANTED_PROBLEM_BYTES
static_assert(sizeof(Problem) == WANTED_PROBLEM_BYTES, "layout of Problem");
#endif

// ---------------------------------------------------------------- producer

// One lane. The queries of a tile; rows beyond the last come as zeros.
DEVICE void load_queries(const TensorMap* q_map, u32 shared, int tile, int sequence) {
    mbarrier_arrive_expect(shared + Q_FULL_AT, PAGE_BYTES);
    for (int c = 0; c < CHUNKS; ++c) {
        tma_load(shared + Q_AT + c * CHUNK_BYTES, q_map, shared + Q_FULL_AT, L2_EVICT_NORMAL,
                 c * CHUNK, tile * TILE, sequence);
    }
}

// One warp: everything by TMA.
DEVICE void produce(const Problem& problem, const TensorMap* q_map, const TensorMap* kv_map,
                    u32 shared, const Plan& plan, int tile, int tiles, int lane) {
    const u64 policy = tiles > 1 ? L2_EVICT_NORMAL : L2_EVICT_FIRST;
    u32 step = 0, segment = 0;
    Walk walk;
    for (bool more = walk.begin(problem, plan); more;
         more = walk.next(problem, plan), ++step) {
        if (walk.fresh) {
            mbarrier_wait(shared + Q_EMPTY_AT, (segment++ & 1) ^ 1);
            if (lane == 0) load_queries(q_map, shared, tile, walk.sequence);
        }
        const u32 buffer = step & 1, parity = (step >> 1) & 1;
        const u32 kv = shared + KV_AT + buffer * PAGE_BYTES;
        const u32 full = shared + FULL_AT + buffer * CHUNKS * 8;
        const u32 empty = shared + EMPTY_AT + buffer * CHUNKS * 8;
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const int c = chunk_at(i);
            mbarrier_wait(empty + c * 8, parity ^ 1);
            if (lane == 0) {
                mbarrier_arrive_expect(full + c * 8, CHUNK_BYTES);
                tma_load(kv + c * CHUNK_BYTES, kv_map, full + c * 8, policy, c * CHUNK, 0, walk.id);
            }
        }
        __syncwarp();
    }
}

// ---------------------------------------------------------------- consumers

// The rows of this warpgroup's half of the values that lie beyond the sequence become zeros: what
// the pool holds there may be NaN, and 0 x NaN is NaN.
DEVICE void clear_values(u32 kv, int valid, int group, int thread) {
    const int units = (PAGE - valid) * 8;  // of 16 bytes, in each of four chunks
    for (int unit = thread; unit < 4 * units; unit += 128) {
        const int chunk = unit / units, rest = unit % units;
        store_shared(kv + (group * 4 + chunk) * CHUNK_BYTES + valid * 128 + rest * 16,
                     make_uint4(0, 0, 0, 0));
    }
    fence_async_shared();
    barrier_wait(OWN + group, 128);
}

// FIRST: before a warpgroup waits for the other's P of a page it multiplies that many chunks of its
// own next page, under the other's softmax. That fills the tensor cores where data come faster than
// the products are done (several tiles, which share what is read). Elsewhere it would only keep
// buffers from being given back.
DEVICE void consume(const Problem& problem, char* shared_pointer, const Plan& plan, int block,
                    int tile, int tiles, int group) {
    const u32 shared = shared_address(shared_pointer);
    const int thread = threadIdx.x % 128, warp = uniform(thread / 32), lane = thread % 32;
    const int rows_all = problem.query_len * problem.heads;
    const int rows = min(TILE, rows_all - tile * TILE);
    const int row0 = warp * 16 + lane / 4, row1 = row0 + 8;  // this thread's, in the tile
    const int query0 = (tile * TILE + row0) / problem.heads;
    const int query1 = (tile * TILE + row1) / problem.heads;
    const u32 published = shared + PUBLISHED_AT;
    // Where a page of this warpgroup lies, and where one of the other.
    const u32 own_kv = shared + KV_AT + group * PAGE_BYTES;
    const u32 other_kv = shared + KV_AT + (1 - group) * PAGE_BYTES;
    const u32 own_full = shared + FULL_AT + group * CHUNKS * 8;
    const u32 other_full = shared + FULL_AT + (1 - group) * CHUNKS * 8;
    const u32 own_empty = shared + EMPTY_AT + group * CHUNKS * 8;
    const u32 other_empty = shared + EMPTY_AT + (1 - group) * CHUNKS * 8;

    // A product with values has VALUES columns: the narrower, the sooner the first chunks are free.
    constexpr int PIECES = 256 / VALUES, PIECE_CHUNKS = VALUES / 64;
    float pieces[PIECES][VALUES / 2];
    auto o_at = [&](int i) -> float& { return pieces[i / (VALUES / 2)][i % (VALUES / 2)]; };
    u32 step = 0, segment = 0;
    const int last_sequence = uniform(plan.last);
    for (int sequence = uniform(plan.first); sequence <= last_sequence; ++sequence) {
        const int length = uniform(cache_length(problem, sequence));
        const int pages = page_count(length);
        const int begin = uniform(sequence == plan.first ? plan.first_page : 0);
        const int end = uniform(sequence == last_sequence ? plan.last_end : pages);
        if (begin >= end) continue;
        // Keys that a row sees: 0 .. limit - 1.
        const int limit0 = length - problem.query_len + 1 + query0;
        const int limit1 = length - problem.query_len + 1 + query1;
        const int unmasked = length - problem.query_len + 1;  // seen by every row
        float maximum0 = -infinity(), maximum1 = -infinity(), sum0 = 0, sum1 = 0;
#pragma unroll
        for (int i = 0; i < 128; ++i) o_at(i) = 0;

        auto pin = [&]() {
#pragma unroll
            for (int j = 0; j < PIECES; ++j) registers_pin(pieces[j]);
        };
        auto scale = [&](float alpha0, float alpha1) {
#pragma unroll
            for (int i = 0; i < 128; ++i) o_at(i) *= i % 4 < 2 ? alpha0 : alpha1;
        };
        // Waits for the products with values, and gives the chunks back piece by piece.
        auto finish = [&](u32 empty) {
            auto give_back = [&](int piece) {
#pragma unroll
                for (int c = 0; c < PIECE_CHUNKS; ++c) {
                    release(empty + (group * 4 + piece * PIECE_CHUNKS + c) * 8, lane);
                }
            };
            if (PIECES == 4) {
                wgmma_wait<3>();
                give_back(0);
                wgmma_wait<2>();
                give_back(1);
            }
            if (PIECES > 1) {
                wgmma_wait<1>();
                give_back(PIECES - 2);
            }
            wgmma_wait<0>();
            pin();
            give_back(PIECES - 1);
        };

        // O = O alpha + P V for a page whose P is the other warpgroup's. In flight on return.
        auto add_other = [&](int page, u32 parity) {
            // Landed before P comes of it, but this warpgroup has to have seen it.
#pragma unroll
            for (int c = 0; c < 4; ++c) mbarrier_wait(other_full + (group * 4 + c) * 8, parity);
            mbarrier_wait(published + (1 - group) * 8, parity);
            maximum0 = load_shared(shared + MAXIMA_AT + row0 * 4);
            maximum1 = load_shared(shared + MAXIMA_AT + row1 * 4);
            const float alpha0 = load_shared(shared + ALPHA_AT + row0 * 4);
            const float alpha1 = load_shared(shared + ALPHA_AT + row1 * 4);
            sum0 *= alpha0;
            sum1 *= alpha1;
            const u32 values = other_kv + group * 4 * CHUNK_BYTES;
            const int valid = length - page * PAGE;
            if (valid < PAGE) clear_values(other_kv, valid, group, thread);
            const bool fresh = page == begin;
            if (!fresh && __any_sync(0xffffffffu, alpha0 != 1 || alpha1 != 1)) {
                scale(alpha0, alpha1);
            }
            pin();
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < PIECES; ++j) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const u64 a = matrix_descriptor(shared + P_AT + k * 32, 1024);
                    const u64 b = matrix_descriptor(
                        values + j * PIECE_CHUNKS * CHUNK_BYTES + k * 2048, 1024, CHUNK_BYTES);
                    Wgmma<VALUES, BF16>::template ss<true>(pieces[j], a, b, 1);
                }
                wgmma_commit();
            }
        };

        for (int page = begin; page < end; ++page, ++step) {
            const u32 parity = (step >> 1) & 1;
            const bool fresh = page == begin;
            if ((step & 1) != static_cast<u32>(group)) {
                if (FIRST && page + 1 < end) continue;  // with this warpgroup's next page
                add_other(page, parity);
                finish(other_empty);
                continue;
            }

            // S = Q K^T.
            float s[32];
            auto multiply_chunks = [&](int from, int to) {
#pragma unroll
                for (int i = 0; i < CHUNKS; ++i) {
                    if (i < from || i >= to) continue;
                    const int c = chunk_at(i);
                    mbarrier_wait(own_full + c * 8, parity);
                    wgmma_fence();
                    const u64 a = matrix_descriptor(shared + Q_AT + c * CHUNK_BYTES, 1024);
                    const u64 b = matrix_descriptor(own_kv + c * CHUNK_BYTES, 1024);
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        Wgmma<64, BF16>::ss(s, descriptor_advance(a, k * 32),
                                            descriptor_advance(b, k * 32), i + k > 0);
                    }
                }
            };
            // P = exp2(S scale log2 e - maximum), in the registers of a product's left operand.
            u32 p[16];
            float alpha0, alpha1;
            auto softmax = [&]() {
                registers_pin(s);
                release(own_empty + ROTARY * 8, lane);
                if (page * PAGE + PAGE > unmasked) {
#pragma unroll
                    for (int i = 0; i < 32; ++i) {
                        const int key = page * PAGE + i / 4 * 8 + lane % 4 * 2 + i % 2;
                        if (key >= (i % 4 < 2 ? limit0 : limit1)) s[i] = -infinity();
                    }
                }
                float top0 = s[0], top1 = s[2];
#pragma unroll
                for (int i = 0; i < 32; i += 4) {
                    top0 = fmaxf(top0, fmaxf(s[i], s[i + 1]));
                    top1 = fmaxf(top1, fmaxf(s[i + 2], s[i + 3]));
                }
                // Adds the weights' sums to `to0` and `to1`.
                auto weigh = [&](float base0, float base1, float& to0, float& to1) {
#pragma unroll
                    for (int i = 0; i < 32; i += 4) {
                        const float x0 = exp2_fast(s[i] * problem.scale_log2 - base0);
                        const float x1 = exp2_fast(s[i + 1] * problem.scale_log2 - base0);
                        const float y0 = exp2_fast(s[i + 2] * problem.scale_log2 - base1);
                        const float y1 = exp2_fast(s[i + 3] * problem.scale_log2 - base1);
                        to0 += x0 + x1;
                        to1 += y0 + y1;
                        p[i / 2] = pack<BF16>(x0, x1);
                        p[i / 2 + 1] = pack<BF16>(y0, y1);
                    }
                };
                auto base = [](float maximum) { return maximum == -infinity() ? 0 : maximum; };
                auto raise = [&](float& to0, float& to1) {
                    const float new0 = fmaxf(maximum0, quad_max(top0) * problem.scale_log2);
                    const float new1 = fmaxf(maximum1, quad_max(top1) * problem.scale_log2);
                    alpha0 = exp2_fast(maximum0 - base(new0));
                    alpha1 = exp2_fast(maximum1 - base(new1));
                    maximum0 = new0;
                    maximum1 = new1;
                    sum0 *= alpha0;
                    sum1 *= alpha1;
                    weigh(base(new0), base(new1), to0, to1);
                };
                if (LAZY) {
                    // The other warpgroup waits for P: by the old maxima, before the new are known.
                    float more0 = 0, more1 = 0;
                    alpha0 = alpha1 = 1;
                    weigh(base(maximum0), base(maximum1), more0, more1);
                    // A row that saw no key before has -infinity, which any score exceeds.
                    const bool stays = top0 * problem.scale_log2 <= maximum0 + LAZY &&
                                       top1 * problem.scale_log2 <= maximum1 + LAZY;
                    if (__any_sync(0xffffffffu, !stays)) {
                        more0 = more1 = 0;
                        raise(more0, more1);
                    }
                    sum0 += more0;
                    sum1 += more1;
                } else {
                    raise(sum0, sum1);
                }
            };
            // This warpgroup's first page here. With scores ahead it may come before the other's P,
            // and copies land in any order: nothing else says that the queries are there.
            if (page <= begin + 1) mbarrier_wait(shared + Q_FULL_AT, segment & 1);
            if (FIRST && !fresh) {
                // Some of this page's scores while the other warpgroup does its softmax.
                multiply_chunks(0, FIRST);
                wgmma_commit();
                add_other(page - 1, ((step - 1) >> 1) & 1);
                finish(other_empty);
                multiply_chunks(FIRST, CHUNKS);
            } else {
                multiply_chunks(0, CHUNKS);
            }
            wgmma_commit();
            wgmma_wait<0>();
            // P for the other warpgroup: rows of 128 bytes, swizzled as TMA would.
            auto p_at = [&](int k) {
                const u32 row = warp * 16 + lane % 16, unit = k * 2 + lane / 16;
                return shared + P_AT + row * 128 + ((unit ^ (row & 7)) << 4);
            };
            u32 place[1] = {p_at(0)};
            if (LAZY) registers_pin(place);  // worked out before P, which is waited for
            softmax();
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                stmatrix_x4(LAZY ? place[0] ^ k * 32 : p_at(k), p[4 * k], p[4 * k + 1],
                            p[4 * k + 2], p[4 * k + 3]);
            }
            if (lane % 4 == 0) {
                store_shared(shared + MAXIMA_AT + row0 * 4, maximum0);
                store_shared(shared + MAXIMA_AT + row1 * 4, maximum1);
                store_shared(shared + ALPHA_AT + row0 * 4, alpha0);
                store_shared(shared + ALPHA_AT + row1 * 4, alpha1);
            }
            fence_async_shared();
            release(published + group * 8, lane);

            const u32 values = own_kv + group * 4 * CHUNK_BYTES;
            const int valid = length - page * PAGE;
            if (valid < PAGE) clear_values(own_kv, valid, group, thread);
            if (!fresh && __any_sync(0xffffffffu, alpha0 != 1 || alpha1 != 1)) {
                scale(alpha0, alpha1);
            }
            pin();
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < PIECES; ++j) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const u64 b = matrix_descriptor(
                        values + j * PIECE_CHUNKS * CHUNK_BYTES + k * 2048, 1024, CHUNK_BYTES);
                    Wgmma<VALUES, BF16>::template rs<true>(pieces[j], p[4 * k], p[4 * k + 1],
                                                           p[4 * k + 2], p[4 * k + 3], b, 1);
                }
                wgmma_commit();
            }
            finish(own_empty);
        }
        release(shared + Q_EMPTY_AT, lane);
        ++segment;

        // Row sums over both warpgroups' pages.
        sum0 = quad_sum(sum0);
        sum1 = quad_sum(sum1);
        barrier_wait(BOTH, CONSUMERS);  // the sums of the sequence before have been read
        if (lane % 4 == 0) {
            store_shared(shared + SUMS_AT + (group * 64 + row0) * 4, sum0);
            store_shared(shared + SUMS_AT + (group * 64 + row1) * 4, sum1);
        }
        barrier_wait(BOTH, CONSUMERS);
        sum0 = load_shared(shared + SUMS_AT + row0 * 4) +
               load_shared(shared + SUMS_AT + (64 + row0) * 4);
        sum1 = load_shared(shared + SUMS_AT + row1 * 4) +
               load_shared(shared + SUMS_AT + (64 + row1) * 4);

        const bool whole = begin == 0 && end == pages;
        const bool exchanged = uniform(plan.pieces && plan.first_splits == 2);
        float factor0 = reciprocal_or_zero(sum0), factor1 = reciprocal_or_zero(sum1);
        if (!whole) {
            const int slot = part_slot(block, begin == 0 ? 0 : 1, tiles, tile);
            if (group == 0 && lane % 4 == 0) {
                problem.part_sums[slot * TILE + row0] = make_float2(maximum0, sum0);
                problem.part_sums[slot * TILE + row1] = make_float2(maximum1, sum1);
            }
            if (exchanged && warp * 16 < rows) {
                // Block 0 of the two has the last word on columns 0 .. 255, block 1 on the rest.
                const int index = begin == 0 ? 0 : 1;
                float4* part = reinterpret_cast<float4*>(problem.parts) +
                               static_cast<long long>(slot) * (TILE * LATENT / 4) + thread;
                if (group != index) {
#pragma unroll
                    for (int i = 0; i < 32; ++i) {
                        part[i * 128] = make_float4(o_at(4 * i), o_at(4 * i + 1), o_at(4 * i + 2), o_at(4 * i + 3));
                    }
                }
            } else if (warp * 16 < rows) {
                float* part = problem.parts + static_cast<long long>(slot) * TILE * LATENT +
                              group * 256 + lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < 128; i += 4) {
                    if (row0 < rows) {
                        *reinterpret_cast<float2*>(part + row0 * LATENT + i * 2) =
                            make_float2(o_at(i), o_at(i + 1));
                    }
                    if (row1 < rows) {
                        *reinterpret_cast<float2*>(part + row1 * LATENT + i * 2) =
                            make_float2(o_at(i + 2), o_at(i + 3));
                    }
                }
            }
            barrier_arrive(sequence == plan.first ? PART : PART + 1, WATCHED);
        }
        if (exchanged) {
            barrier_wait(ALL_PARTS, WATCHED);
            const int index = begin == 0 ? 0 : 1;
            if (group == index && warp * 16 < rows) {
                const int slot = part_slot(plan.first_block + 1 - index, 1 - index, tiles, tile);
                const float4* part = reinterpret_cast<const float4*>(problem.parts) +
                                     static_cast<long long>(slot) * (TILE * LATENT / 4) + thread;
                const float2 other0 = load_l2(problem.part_sums + slot * TILE + row0);
                const float2 other1 = load_l2(problem.part_sums + slot * TILE + row1);
                float top0 = fmaxf(maximum0, other0.x), top1 = fmaxf(maximum1, other1.x);
                if (top0 == -infinity()) top0 = 0;
                if (top1 == -infinity()) top1 = 0;
                factor0 = exp2_fast(maximum0 - top0);
                factor1 = exp2_fast(maximum1 - top1);
                float weight0 = exp2_fast(other0.x - top0), weight1 = exp2_fast(other1.x - top1);
                const float inverse0 = reciprocal_or_zero(sum0 * factor0 + other0.y * weight0);
                const float inverse1 = reciprocal_or_zero(sum1 * factor1 + other1.y * weight1);
                constexpr int AT_ONCE = 8;  // as many as registers hold
                factor0 *= inverse0, weight0 *= inverse0;
                factor1 *= inverse1, weight1 *= inverse1;
#pragma unroll
                for (int i = 0; i < 32; i += AT_ONCE) {
                    float4 x[AT_ONCE];
#pragma unroll
                    for (int j = 0; j < AT_ONCE; ++j) x[j] = load_l2(part + (i + j) * 128);
#pragma unroll
                    for (int j = 0; j < AT_ONCE; ++j) {
                        const int at = 4 * (i + j);
                        o_at(at) = o_at(at) * factor0 + x[j].x * weight0;
                        o_at(at + 1) = o_at(at + 1) * factor0 + x[j].y * weight0;
                        o_at(at + 2) = o_at(at + 2) * factor1 + x[j].z * weight1;
                        o_at(at + 3) = o_at(at + 3) * factor1 + x[j].w * weight1;
                    }
                }
                factor0 = factor1 = 1;
            }
        }
        if ((whole || (exchanged && group == (begin == 0 ? 0 : 1))) && warp * 16 < rows) {
            // 16 bytes a lane: columns group * 256 + 32 i + 8 (lane % 4) and on.
            u16* out = problem.out +
                       (static_cast<long long>(sequence) * rows_all + tile * TILE) * LATENT +
                       group * 256 + lane % 4 * 8;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                u32 upper[4], lower[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int at = 16 * i + 4 * j;
                    upper[j] = pack<BF16>(o_at(at) * factor0, o_at(at + 1) * factor0);
                    lower[j] = pack<BF16>(o_at(at + 2) * factor1, o_at(at + 3) * factor1);
                }
                const uint4 first = transpose_quad(upper, lane);
                const uint4 second = transpose_quad(lower, lane);
                if (row0 < rows) *reinterpret_cast<uint4*>(out + row0 * LATENT + i * 32) = first;
                if (row1 < rows) *reinterpret_cast<uint4*>(out + row1 * LATENT + i * 32) = second;
            }
        }
    }

    // Sequences without a key.
    for (int sequence = block; sequence < problem.batch; sequence += gridDim.x / tiles) {
        if (cache_length(problem, sequence) > 0) continue;
        uint4* out = reinterpret_cast<uint4*>(
            problem.out + (static_cast<long long>(sequence) * rows_all + tile * TILE) * LATENT);
        for (int i = group * 128 + thread; i < rows * LATENT / 8; i += CONSUMERS) {
            out[i] = make_uint4(0, 0, 0, 0);
        }
    }

    if (plan.last < 0) return;
    const int all = group * 128 + thread;
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
        const int splits = which == 0 ? plan.first_splits : plan.last_splits;
        if (splits <= 1 || (plan.pieces && splits == 2)) continue;
        barrier_wait(ALL_PARTS + which, WATCHED);
        combine(problem, shared_pointer, which == 0 ? plan.first : plan.last, tile, tiles, rows,
                splits, which == 0 ? plan.first_index : plan.last_index,
                which == 0 ? plan.first_block : plan.last_block, all);
    }
}

}  // namespace

// Grid: tiles x blocks, tile innermost, all resident at once; THREADS; SHARED_BYTES.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
mla_decode(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map,
           const __grid_constant__ Problem problem, int tiles) {
    extern __shared__ __align__(1024) char memory[];
    const u32 shared = (shared_address(memory) + 1023) & ~1023u;  // the swizzle's pattern
    char* shared_pointer = memory + (shared - shared_address(memory));
    const u32 warp = warp_index();
    const int tile = blockIdx.x % tiles, block = blockIdx.x / tiles;
    const int blocks = min(static_cast<int>(gridDim.x) / tiles, MOST_SPLITS);
    Plan* plan = reinterpret_cast<Plan*>(shared_pointer + PLAN_AT);

    // What each warp does first it fetches from memory, code and arguments too: so side by side.
    if (warp < CONSUMERS / 32) {
        make_plan(problem, block, blocks, plan, shared_pointer + PLAN_AT + 64);
    } else if (warp > CONSUMERS / 32) {
        // The table's entries that this block wants if sequences are alike: on their way meanwhile.
        const float entries = static_cast<float>(problem.batch - 1) * problem.table_stride +
                              problem.table_width;
        const float share = __fdividef(entries, static_cast<float>(blocks));
        const float first_entry = share * min(block, blocks - 1);
        const int ahead = CONSUMERS + 32;
        for (float i = (threadIdx.x - ahead) * 32; i < share; i += (THREADS - ahead) * 32) {
            prefetch_l2(problem.block_table + static_cast<long long>(first_entry + i));
        }
    } else if (threadIdx.x == CONSUMERS) {
        tensor_map_prefetch(&q_map);
        tensor_map_prefetch(&kv_map);
        for (int i = 0; i < 2 * CHUNKS; ++i) mbarrier_init(shared + FULL_AT + i * 8, 1);
        for (int i = 0; i < 2 * CHUNKS; ++i) mbarrier_init(shared + EMPTY_AT + i * 8, 4);
        mbarrier_init(shared + Q_FULL_AT, 1);
        mbarrier_init(shared + Q_EMPTY_AT, 8);
        for (int i = 0; i < 2; ++i) mbarrier_init(shared + PUBLISHED_AT + i * 8, 4);
        mbarrier_init_fence();
    }
    __syncthreads();
    const Plan& mine = *plan;  // read where it is needed: registers are dear

    if (warp >= 8) {
        registers_release<24>();
        const int lane = threadIdx.x % 32;
        if (warp == 8) {
            produce(problem, &q_map, &kv_map, shared, mine, tile, tiles, lane);
        }
        if (warp == 11) watch(problem, mine, tile, tiles, lane);
    } else {
        registers_claim<240>();
        consume(problem, shared_pointer, mine, block, tile, tiles, warp / 4);
    }
}
