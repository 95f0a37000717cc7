// What the kernels of latent decode for Hopper share: which block does what, the parts of split
// sequences and their combination, and the walk over a block's pages. None of it depends on how
// a page is read or multiplied.
//
// Which block does what is worked out in the kernel from cache_seqlens (see make_plan). A sequence
// that is split leaves fp32 parts; each of its blocks then waits for the others and combines its own
// share of the output in a fixed order: no second launch, and bit-identical results.
//
// -DTILE_ROWS: query rows of a tile. -DSTART_COST, -DSNAP: of the plan.
#pragma once
#include "hopper.cuh"

#ifndef TILE_ROWS
#define TILE_ROWS 64
#endif

namespace {

constexpr int ROW = 576;       // latent + rotary columns of a cache row
constexpr int LATENT = 512;    // columns that are also the value
constexpr int PAGE = 64;       // rows of a page
constexpr int TILE = TILE_ROWS;
constexpr int CONSUMERS = 256;  // threads that multiply, and that plan before

// Named barriers.
constexpr u32 BOTH = 1;         // the two consumer warpgroups
constexpr u32 OWN = 2;          // and 3: one consumer warpgroup
constexpr u32 PART = 4;         // and 5: the part of the first (last) shared sequence is written
constexpr u32 ALL_PARTS = 6;    // and 7: all blocks have written theirs
constexpr int WATCHED = CONSUMERS + 32;  // threads at PART and ALL_PARTS: consumers and watcher

struct Problem {
    const int* block_table;
    const int* cache_seqlens;
    u16* out;               // [B, rows, 512]
    float* parts;           // [2 x blocks][64][512]
    float2* part_sums;      // [2 x blocks][64]: maximum, sum
    u32* counters;          // [2][B x tiles]: parts written; blocks that have combined
    int batch;
    int table_width;
    int table_stride;
    int pool_pages;
    int heads;
    int query_len;
    float scale_log2;  // scale x log2 e
    const u16* q;      // [B, rows, 576]
};

// A block's share: pages first_page.. of sequence first, all of those between, pages ..last_end of
// sequence last. A sequence shared by several blocks: how many, this block's place, where they
// begin.
struct Plan {
    int first, first_page, last, last_end;
    int first_splits, first_index, first_block;
    int last_splits, last_index, last_block;
    int ragged;  // sequences of unlike page counts
    int pieces;  // every block has one piece of one sequence
};

DEVICE int cache_length(const Problem& problem, int sequence) {
    int length = __ldg(problem.cache_seqlens + sequence);
    return min(max(length, 0), problem.table_width * PAGE);
}
DEVICE int page_count(int length) { return (length + PAGE - 1) / PAGE; }

// ---------------------------------------------------------------- plan

// What a sequence costs besides its pages, in pages: queries, first loads, output.
#ifndef START_COST
#define START_COST 2
#endif
// Pages that are too few to split off.
#ifndef SNAP
#define SNAP 3
#endif
constexpr int TRIALS = 4;

// Two sums at once: 32 bits each, or four of 16 bits.
DEVICE u64 pair(u32 low, u32 high) { return static_cast<u64>(high) << 32 | low; }

DEVICE u64 warp_scan(u64 x, int lane) {
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
        const u64 other = __shfl_up_sync(0xffffffffu, x, step);
        if (lane >= step) x += other;
    }
    return x;
}

// Sum over the threads of the block before this one; over all of them.
DEVICE u64 block_scan(u64 mine, u64* total, u64* scratch, int warp, int lane) {
    const u64 inclusive = warp_scan(mine, lane);
    barrier_wait(BOTH, CONSUMERS);  // scratch may still be read
    if (lane == 31) scratch[warp] = inclusive;
    barrier_wait(BOTH, CONSUMERS);
    const u64 warps = warp_scan(lane < CONSUMERS / 32 ? scratch[lane] : 0, lane);
    *total = __shfl_sync(0xffffffffu, warps, 31);
    const u64 before = __shfl_sync(0xffffffffu, warps, max(warp - 1, 0));
    return (warp == 0 ? 0 : before) + inclusive - mine;
}

// Pages of a sequence that lie before `cost` on the line on which sequences follow each other,
// each START_COST + its pages long. A cut near an end moves to it.
DEVICE int pages_before(int cost, int start, int pages) {
    int n = cost - start - START_COST;
    if (n < SNAP) return 0;
    if (n > pages - SNAP) return pages;
    return n;
}

DEVICE int splits_of(int pages, float pieces_a_page) {
    return static_cast<int>(ceilf(static_cast<float>(pages) * pieces_a_page));
}

// Two ways to divide. Where it fits, every block gets one equal piece of one sequence: tried with
// pieces a little longer than the mean, so that no sequence is split that need not be. Else
// the line of all sequences is cut in even lengths.
//
// The consumers' threads do this. Every block does it for itself, with a cold instruction cache.
DEVICE void make_plan(const Problem& problem, int block, int blocks, Plan* plan, void* memory) {
    u64* scratch = static_cast<u64*>(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int each = (problem.batch + CONSUMERS - 1) / CONSUMERS;
    const int begin = min(static_cast<int>(threadIdx.x) * each, problem.batch);
    const int end = min(begin + each, problem.batch);

    if (threadIdx.x == 0) {
        plan->first = problem.batch;
        plan->last = -1;
        plan->ragged = plan->pieces = 0;
        plan->first_splits = plan->last_splits = 1;
    }
    u64 mine = 0, total;
    int longest = 0;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
        const int pages = page_count(cache_length(problem, i));
        mine += pair(pages, pages > 0);
        longest = max(longest, pages);
    }
    mine = block_scan(mine, &total, scratch, warp, lane);
    const int pages_total = static_cast<int>(total), count = static_cast<int>(total >> 32);
    // Of this thread's sequences, on the line.
    const int start = static_cast<int>(mine) + START_COST * static_cast<int>(mine >> 32);
    if (pages_total == 0) return;

    if (count <= blocks) {
        // At most blocks + count pieces: 16 bits do.
        const float mean = __fdividef(static_cast<float>(blocks), static_cast<float>(pages_total));
        const float factors[TRIALS] = {1 / 1.001f, 1 / 1.04f, 1 / 1.1f, 1 / 1.18f};
        mine = 0;
#pragma unroll 1
        for (int i = begin; i < end; ++i) {
            const int pages = page_count(cache_length(problem, i));
#pragma unroll
            for (int k = 0; k < TRIALS; ++k) {
                mine += static_cast<u64>(splits_of(pages, fminf(mean * factors[k], 1.0f)))
                        << (16 * k);
            }
        }
        mine = block_scan(mine, &total, scratch, warp, lane);
        int base = -1;
        float pieces_a_page = 0;
#pragma unroll
        for (int k = TRIALS - 1; k >= 0; --k) {
            if (static_cast<int>(total >> (16 * k) & 0xffff) <= blocks) {
                base = static_cast<int>(mine >> (16 * k) & 0xffff);
                pieces_a_page = fminf(mean * factors[k], 1.0f);
            }
        }
        if (base >= 0) {
#pragma unroll 1
            for (int i = begin; i < end; ++i) {
                const int pages = page_count(cache_length(problem, i));
                const int splits = splits_of(pages, pieces_a_page);
                const u32 index = block - base;
                if (index < static_cast<u32>(splits)) {
                    plan->first = plan->last = i;
                    plan->first_page = index * pages / static_cast<u32>(splits);
                    plan->last_end = (index + 1) * pages / static_cast<u32>(splits);
                    plan->first_splits = splits;
                    plan->first_index = index;
                    plan->first_block = base;
                    plan->pieces = 1;
                }
                base += splits;
            }
            barrier_wait(BOTH, CONSUMERS);
            return;
        }
    }

    if (longest * count > pages_total) plan->ragged = 1;
    barrier_wait(BOTH, CONSUMERS);
    int cost = pages_total + START_COST * count;
    int share = (cost + blocks - 1) / blocks;
    if (!plan->ragged) {  // whole sequences for every block, if that is hardly longer
        int one = pages_total / count + START_COST;
        int whole = (share + one - 1) / one * one;
        if (whole * 12 <= share * 13) share = whole;
    }
    // The first and last sequence of this block, then their details by the threads that hold them.
    int at = start;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
        int pages = page_count(cache_length(problem, i));
        if (pages == 0) continue;
        int from = pages_before(block * share, at, pages);
        int to = block + 1 == blocks ? pages : pages_before((block + 1) * share, at, pages);
        if (from < to) {
            atomicMin(&plan->first, i);
            atomicMax(&plan->last, i);
        }
        at += pages + START_COST;
    }
    barrier_wait(BOTH, CONSUMERS);
    at = start;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
        int pages = page_count(cache_length(problem, i));
        if (pages == 0) continue;
        if (i == plan->first || i == plan->last) {
            int from = pages_before(block * share, at, pages);
            int to = block + 1 == blocks ? pages : pages_before((block + 1) * share, at, pages);
            int head = min(at / share, blocks - 1);
#pragma unroll 1
            while (head + 1 < blocks && pages_before((head + 1) * share, at, pages) == 0) ++head;
            int tail = head;
#pragma unroll 1
            while (tail + 1 < blocks && pages_before((tail + 1) * share, at, pages) < pages) ++tail;
            if (i == plan->first) {
                plan->first_page = from;
                plan->first_splits = tail - head + 1;
                plan->first_index = block - head;
                plan->first_block = head;
            }
            if (i == plan->last) {
                plan->last_end = to;
                plan->last_splits = i == plan->first ? 1 : tail - head + 1;
                plan->last_index = block - head;
                plan->last_block = head;
            }
        }
        at += pages + START_COST;
    }
    barrier_wait(BOTH, CONSUMERS);
}

// Where a block leaves its part of a shared sequence: a sequence's first part is its block's last
// piece of work, later parts are their blocks' first.
DEVICE int part_slot(int block, int index, int tiles, int tile) {
    return (2 * block + (index == 0 ? 1 : 0)) * tiles + tile;
}

// ---------------------------------------------------------------- small pieces

DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
// 0 for a row that saw no key; NaN stays NaN.
DEVICE float reciprocal_or_zero(float sum) { return sum == 0 ? 0.0f : 1.0f / sum; }

// Four lanes' four words each: lane l gets word l of all of them.
DEVICE uint4 transpose_quad(const u32 (&words)[4], int lane) {
    const bool odd = lane & 1, high = lane & 2;
    u32 a = words[0], b = words[1], c = words[2], d = words[3];
    const u32 ab = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1);
    const u32 cd = __shfl_xor_sync(0xffffffffu, odd ? c : d, 1);
    a = odd ? ab : a, b = odd ? b : ab;
    c = odd ? cd : c, d = odd ? d : cd;
    const u32 ac = __shfl_xor_sync(0xffffffffu, high ? a : c, 2);
    const u32 bd = __shfl_xor_sync(0xffffffffu, high ? b : d, 2);
    a = high ? ac : a, c = high ? c : ac;
    b = high ? bd : b, d = high ? d : bd;
    return make_uint4(a, b, c, d);
}

// ---------------------------------------------------------------- combination

// One warp that has nothing else to do: tells the other blocks that this block's parts are written,
// and this block's consumers that the others' are.
DEVICE void watch(const Problem& problem, const Plan& plan, int tile, int tiles, int lane) {
    if (plan.last < 0) return;
    const bool shared[2] = {plan.first_splits > 1, plan.last_splits > 1};
    const int sequence[2] = {plan.first, plan.last};
    const int splits[2] = {plan.first_splits, plan.last_splits};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (!shared[i]) continue;
        barrier_wait(PART + i, WATCHED);
        if (lane == 0) {
            __threadfence();
            atomicAdd(problem.counters + sequence[i] * tiles + tile, 1u);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (!shared[i]) continue;
        u32* written = problem.counters + sequence[i] * tiles + tile;
        u32* seen = written + problem.batch * tiles;
        if (lane == 0) wait_global(written, static_cast<u32>(splits[i]));
        __syncwarp();
        barrier_arrive(ALL_PARTS + i, WATCHED);
        // The last to have seen all makes the counters ready for the next call.
        if (lane == 0 && atomicAdd(seen, 1u) == static_cast<u32>(splits[i]) - 1) {
            atomicExch(seen, 0u);
            atomicExch(written, 0u);
        }
    }
}

// Parts that a lane weighs: 32 lanes serve a sequence split over all blocks of a card.
constexpr int LANE_PARTS = 5;
constexpr int MOST_SPLITS = 32 * LANE_PARTS;

// sum += weight x, four columns.
DEVICE void add(float4& sum, float weight, float4 x) {
    sum.x += weight * x.x;
    sum.y += weight * x.y;
    sum.z += weight * x.z;
    sum.w += weight * x.w;
}

// The weight of every part in rows first_row .. first_row + row_count - 1: [row][split].
DEVICE void weigh_parts(const Problem& problem, float* weights, int tile, int tiles, int splits,
                        int first_block, int first_row, int row_count, int warp, int lane) {
#pragma unroll 1
    for (int r = warp; r < row_count; r += CONSUMERS / 32) {
        float2 part[LANE_PARTS];  // maximum, sum
        float maximum = -infinity();
#pragma unroll
        for (int j = 0; j < LANE_PARTS; ++j) {
            const int k = lane + 32 * j;
            part[j] = make_float2(-infinity(), 0);
            if (k < splits) {
                const int slot = part_slot(first_block + k, k, tiles, tile);
                part[j] = load_l2(problem.part_sums + slot * TILE + first_row + r);
            }
        }
#pragma unroll
        for (int j = 0; j < LANE_PARTS; ++j) maximum = fmaxf(maximum, part[j].x);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, step));
        }
        if (maximum == -infinity()) maximum = 0;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < LANE_PARTS; ++j) {
            part[j].x = exp2_fast(part[j].x - maximum);
            sum += part[j].x * part[j].y;
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        }
        const float inverse = reciprocal_or_zero(sum);
#pragma unroll
        for (int j = 0; j < LANE_PARTS; ++j) {
            const int k = lane + 32 * j;
            if (k < splits) weights[r * splits + k] = part[j].x * inverse;
        }
    }
}

// This block's share of a sequence's output tile, from all its parts, in the order of the parts.
// What takes time are trips to the L2: as many loads at once as registers hold.
DEVICE void combine(const Problem& problem, char* shared, int sequence, int tile, int tiles,
                    int rows, int splits, int index, int first_block, int thread) {
    constexpr int EARLY = 9, AT_ONCE = 4;
    // In groups of four columns.
    const int items = rows * (LATENT / 4);
    const int begin = static_cast<int>(static_cast<long long>(items) * index / splits);
    const int end = static_cast<int>(static_cast<long long>(items) * (index + 1) / splits);
    const int first_row = begin / (LATENT / 4);
    const int row_count = end > begin ? (end - 1) / (LATENT / 4) - first_row + 1 : 0;
    const int warp = thread / 32, lane = thread % 32;
    float* weights = reinterpret_cast<float*>(shared);
    const float4* parts = reinterpret_cast<const float4*>(problem.parts);
    auto part_of = [&](int item, int k) {
        const int slot = part_slot(first_block + k, k, tiles, tile);
        return load_l2(parts + static_cast<long long>(slot) * (TILE * LATENT / 4) + item);
    };
    auto weight_of = [&](int item, int k) {
        return weights[(item / (LATENT / 4) - first_row) * splits + k];
    };
    auto store = [&](int item, float4 sum) {
        const long long tile_row =
            static_cast<long long>(sequence) * problem.query_len * problem.heads + tile * TILE;
        reinterpret_cast<uint2*>(problem.out)[tile_row * (LATENT / 4) + item] =
            make_uint2(pack<BF16>(sum.x, sum.y), pack<BF16>(sum.z, sum.w));
    };

    // Few items: `groups` of threads share an item's parts.
    int width = CONSUMERS;
    while (width / 2 >= end - begin && width > 8) width /= 2;
    const int groups = CONSUMERS / width;
    const int group = thread / width, item = begin + thread % width;
    const bool mine = item < end;
    float4 early[EARLY];
    if (groups > 1) {
#pragma unroll
        for (int j = 0; j < EARLY; ++j) {
            const int k = group + j * groups;
            early[j] = make_float4(0, 0, 0, 0);
            if (mine && k < splits) early[j] = part_of(item, k);
        }
    }
    weigh_parts(problem, weights, tile, tiles, splits, first_block, first_row, row_count, warp, lane);
    barrier_wait(BOTH, CONSUMERS);
    if (groups > 1) {
        float4 sum = make_float4(0, 0, 0, 0);
        if (mine) {
#pragma unroll
            for (int j = 0; j < EARLY; ++j) {
                const int k = group + j * groups;
                if (k < splits) add(sum, weight_of(item, k), early[j]);
            }
#pragma unroll 1
            for (int k = group + EARLY * groups; k < splits; k += groups) {
                add(sum, weight_of(item, k), part_of(item, k));
            }
        }
        float4* scratch = reinterpret_cast<float4*>(shared + 73728);
        scratch[thread] = sum;
        barrier_wait(BOTH, CONSUMERS);
        if (mine && group == 0) {
#pragma unroll 1
            for (int k = 1; k < groups; ++k) add(sum, 1, scratch[thread + k * width]);
            store(item, sum);
        }
    } else {
#pragma unroll 1
        for (int base = begin + thread; base < end; base += AT_ONCE * CONSUMERS) {
            float4 sum[AT_ONCE] = {};
#pragma unroll 2
            for (int k = 0; k < splits; ++k) {
                float4 x[AT_ONCE];
#pragma unroll
                for (int m = 0; m < AT_ONCE; ++m) {
                    const int item = base + m * CONSUMERS;
                    if (item < end) x[m] = part_of(item, k);
                }
#pragma unroll
                for (int m = 0; m < AT_ONCE; ++m) {
                    const int item = base + m * CONSUMERS;
                    if (item < end) add(sum[m], weight_of(item, k), x[m]);
                }
            }
#pragma unroll
            for (int m = 0; m < AT_ONCE; ++m) {
                const int item = base + m * CONSUMERS;
                if (item < end) store(item, sum[m]);
            }
        }
    }
    barrier_wait(BOTH, CONSUMERS);  // weights and scratch have been read
}

// ---------------------------------------------------------------- pages

// Walks a block's pages; the table's next entry is under way a page ahead.
struct Walk {
    int sequence, page, end, id;
    bool fresh;  // the first page of a sequence here
    int upcoming;

    // The first page; false if the block has none.
    DEVICE bool begin(const Problem& problem, const Plan& plan) {
        sequence = plan.first - 1;
        page = end = upcoming = 0;
        return next(problem, plan);
    }
    DEVICE bool next(const Problem& problem, const Plan& plan) {
        ++page;
        fresh = page >= end;
        while (page >= end) {
            if (++sequence > plan.last) return false;
            page = sequence == plan.first ? plan.first_page : 0;
            end = sequence == plan.last ? plan.last_end
                                        : page_count(cache_length(problem, sequence));
        }
        const int* entry = problem.block_table +
                           static_cast<long long>(sequence) * problem.table_stride + page;
        id = fresh ? __ldg(entry) : upcoming;
        if (page + 1 < end) upcoming = __ldg(entry + 1);
        id = min(max(id, 0), problem.pool_pages - 1);
        return true;
    }
};

// The same in all lanes, and the compiler knows it. Where a branch could part a warp it puts a
// WARPSYNC before products and arrivals.
DEVICE int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

DEVICE void release(u32 barrier, int lane) {
    __syncwarp();
    if (lane == 0) mbarrier_arrive(barrier);
}

}  // namespace
