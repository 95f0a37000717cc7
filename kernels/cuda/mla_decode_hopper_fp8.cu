// Latent decode for Hopper (sm_90a) over an FP8 cache that is multiplied as it is stored.
//
// A cache row is 656 bytes: 512 e4m3 numbers, an fp32 scale for every 128 of them, 64 rotary
// columns in bf16. Nothing of it is expanded. Scores are e4m3 x e4m3, a quarter (128 columns) at a
// time, and a quarter's sums take their keys' scales in fp32; weights take them before they are
// rounded, so values need none. What would be lost by rounding queries and weights to e4m3 is kept
// as a second number: the four leading bits and the next four, each an e4m3, which is all that a
// bf16 query has. Their products with a code add up in the same accumulator: twice the products at
// twice the rate of bf16.
//
// With at most 32 rows in a tile (TILE_ROWS = 32) high and low halves are rows r and r + 8 of one
// product (both of one thread's), which would else multiply padding: half the products.
//
// 8-bit operands have to lie with K innermost: right for keys, so that TMA brings them where wgmma
// reads them, and wrong for values, which warps of their own turn over: ldmatrix transposes pairs
// of bytes, a byte permutation parts them, stmatrix writes them. Keys then come in the order in
// which a thread holds its scores (values_e4m3.cu), and of every 16 columns first the even ones.
//
// 512 threads, 16 warps:
//
//   0 .. 7      consumers: two warpgroups. Page g belongs to warpgroup g % 2: it computes S and P,
//               and leaves P and the maximum that P refers to for both, where the rotary columns
//               were. Each multiplies 256 of the 512 value columns of every page. A page's weights
//               refer to its own maximum: neither warpgroup waits for the other's softmax.
//   8           producer: brings quarters of codes, and a page's side (scales and rotary columns),
//               by TMA; then watches for other blocks' parts
//   9           turns scales into [quarter][key], and into factors of the weights
//   10 .. 15    two teams of three warps turn values over, each team every other quarter
//
// Sides are asked for ahead of the codes: scores need a page's scales, turned, as soon as its first
// product is there, and the turning takes time of its own.
//
// Two teams, so that two quarters are on their way at a time: a quarter's loads, permutations,
// stores and fence come one after another, and one team would have to keep up with the memory.
// Slots of values are a multiple of the teams, so that a slot is always filled by the same team,
// one turn after the other. Were it another team's in turn, that could come two turns late or
// early, which a barrier's parity does not tell from in time.
//
// e4m3 products add up in some 13 bits below the largest, so every page's product with values is a
// sum of its own that fp32 adds to O.
//
// Plan, parts and their combination: mla_schedule.cuh. DeepSeek-AI, DeepSeek-V3 (arXiv 2412.19437),
// section 3.3, for the accumulator; the rest as in mla_decode_hopper.cu.
//
// -DCODE_STAGES, -DSIDE_STAGES: pages of codes, of scales and rotary columns, that are in flight.
// -DSIDE_LEAD: pages that the latter are asked for ahead. -DVALUE_SLOTS: quarters of values.
// -DWIDTH: columns of a product with values.
#include "hopper.cuh"
#include "mla_schedule.cuh"

#ifndef CODE_STAGES
#define CODE_STAGES (TILE_ROWS == 32 ? 3 : 2)
#endif
#ifndef SIDE_STAGES
#define SIDE_STAGES 4
#endif
#ifndef SIDE_LEAD
#define SIDE_LEAD (SIDE_STAGES > 3 ? SIDE_STAGES - 3 : 0)
#endif
#ifndef VALUE_SLOTS
#define VALUE_SLOTS 6
#endif
#ifndef WIDTH
#define WIDTH (TILE_ROWS == 32 ? 128 : 64)
#endif

namespace {

static_assert(TILE == 32 || TILE == 64, "rows of a tile");
constexpr bool BESIDE = TILE == 32;     // high and low halves in the rows of one product
constexpr int HALVES = BESIDE ? 1 : 2;  // rows of the tile that a thread holds
constexpr int QUARTER = 128;            // columns that share a scale
constexpr int QUARTERS = LATENT / QUARTER;
constexpr u32 QUARTER_BYTES = PAGE * QUARTER;
constexpr u32 ROTARY_BYTES = PAGE * 64 * 2;
constexpr u32 SCALE_BYTES = PAGE * QUARTERS * 4;
constexpr u32 FACTOR_BYTES = PAGE * QUARTERS * 2 + QUARTERS * 8;
constexpr int THREADS = 512;
constexpr int SCORES_IN_FLIGHT = BESIDE ? 2 : 1;        // products that run at a time
constexpr int CONSUMER_REGISTERS = BESIDE ? 184 : 224;  // of 256, the others' included
constexpr int TEAMS = 2, TEAM = 3;  // of turners, each with every other quarter; warps of one
static_assert(VALUE_SLOTS >= QUARTERS && CODE_STAGES >= 2 && SIDE_STAGES >= 2, "a deadlock");
// A barrier's parity tells one turn from the next, not from the one after: a slot's turns are one
// team's, which comes to one after the other.
static_assert(VALUE_SLOTS % TEAMS == 0 && QUARTERS % TEAMS == 0, "turns that two teams share");
static_assert(SIDE_LEAD >= 0 && SIDE_LEAD < SIDE_STAGES, "a deadlock");
static_assert(WIDTH <= QUARTER && QUARTER % WIDTH == 0, "a quarter is a whole number of products");

// Shared memory, bytes from its start.
constexpr u32 HIGH_AT = 0;  // queries: 64 rows of a product, quarter by quarter
constexpr u32 LOW_AT = HIGH_AT + QUARTERS * QUARTER_BYTES;
constexpr u32 Q_ROTARY_AT = BESIDE ? LOW_AT : LOW_AT + QUARTERS * QUARTER_BYTES;
constexpr u32 CODES_AT = Q_ROTARY_AT + ROTARY_BYTES;
constexpr u32 VALUES_AT = CODES_AT + CODE_STAGES * QUARTERS * QUARTER_BYTES;  // [slot][128][64]
constexpr u32 ROTARY_AT = VALUES_AT + VALUE_SLOTS * QUARTER_BYTES;            // later the page's P
constexpr u32 SCALES_AT = ROTARY_AT + SIDE_STAGES * ROTARY_BYTES;
constexpr u32 FACTORS_AT = SCALES_AT + SIDE_STAGES * SCALE_BYTES;   // see turn_scales
constexpr u32 MAXIMA_AT = FACTORS_AT + SIDE_STAGES * FACTOR_BYTES;  // [stage][64] what P refers to
constexpr u32 UP_AT = MAXIMA_AT + SIDE_STAGES * 256;  // [64] what a row's rotary part is scaled by
constexpr u32 DOWN_AT = UP_AT + 256;                  // [64] what its scores are
constexpr u32 SUMS_AT = DOWN_AT + 256;                // [2][64] maximum, sum of a warpgroup's pages
constexpr u32 CODES_FULL_AT = SUMS_AT + 1024;         // [stage][4] a quarter has landed
constexpr u32 CODES_EMPTY_AT = CODES_FULL_AT + CODE_STAGES * QUARTERS * 8;
constexpr u32 VALUES_FULL_AT = CODES_EMPTY_AT + CODE_STAGES * QUARTERS * 8;  // [slot]
constexpr u32 VALUES_EMPTY_AT = VALUES_FULL_AT + VALUE_SLOTS * 8;
constexpr u32 SIDE_FULL_AT = VALUES_EMPTY_AT + VALUE_SLOTS * 8;  // [stage] rotary columns, scales
constexpr u32 SIDE_EMPTY_AT = SIDE_FULL_AT + SIDE_STAGES * 8;
constexpr u32 SCALES_FULL_AT = SIDE_EMPTY_AT + SIDE_STAGES * 8;  // [stage] as [quarter][key]
constexpr u32 PUBLISHED_AT = SCALES_FULL_AT + SIDE_STAGES * 8;   // [stage] P
constexpr u32 PLAN_AT = (PUBLISHED_AT + SIDE_STAGES * 8 + 15) / 16 * 16;
constexpr u32 SHARED_BYTES = PLAN_AT + 512 + 1024;  // the last to round the start up
static_assert(SHARED_BYTES <= 232448, "more shared memory than a block can have");

// The caller's words for the same: it asks for as much as any build wants.
#ifdef WANTED_PROBLEM_BYTES
static_assert(sizeof(Problem) == WANTED_PROBLEM_BYTES, "layout of Problem");
#endif
#ifdef WANTED_SHARED_BYTES
static_assert(SHARED_BYTES <= WANTED_SHARED_BYTES, "shared memory");
#endif

// A number's place in a ring, and the parity of its turn.
template <int SLOTS>
struct Ring {
    u32 slot, parity;
    DEVICE explicit Ring(u32 number) : slot(number % SLOTS), parity(number / SLOTS & 1) {}
};

// ---------------------------------------------------------------- numbers

// Powers of two are made of exponents (as a float's bits hold them, 127 for 1).
DEVICE float power(int exponent) { return __int_as_float(exponent << 23); }
DEVICE int exponent_of(float positive) { return __float_as_int(positive) >> 23; }

// A number rounded to the four bits that e4m3 holds. What is left is exact, and at most five bits
// of a bf16 number's eight: no more than a sign and four.
DEVICE float high_part(float x) {
    return __int_as_float((__float_as_int(x) + 0x80000) & 0xfff00000);
}
DEVICE void high_and_low(float x0, float x1, float x2, float x3, u32& high, u32& low) {
    const float h0 = high_part(x0), h1 = high_part(x1), h2 = high_part(x2), h3 = high_part(x3);
    high = pack_e4m3(h0, h1, h2, h3);
    low = pack_e4m3(x0 - h0, x1 - h1, x2 - h2, x3 - h3);
}
// The same for fp16, in pairs: 11 bits, of which the second number keeps four.
DEVICE void high_and_low(u32 x01, u32 x23, u32& high, u32& low) {
    const u32 h01 = (x01 + 0x00400040u) & 0xff80ff80u, h23 = (x23 + 0x00400040u) & 0xff80ff80u;
    high = halves_to_e4m3(h01, h23);
    low = halves_to_e4m3(sub_f16x2(x01, h01), sub_f16x2(x23, h23));
}

// Keys' scales are kept times 2^-8, so that products with queries (which are below 2^8) do not
// overflow. Weights are 2^8 where their row has its maximum.
constexpr int SCALE_BITS = 8, WEIGHT_BITS = 8;

// O is rescaled when a page's maximum exceeds what it refers to by more than this.
constexpr float LAZY_BITS = 8;

// Weights times scales are to be e4m3, whose numbers reach from 2^-9 to 2^8: a page's scales,
// divided by a power of two above the largest, are multiplied in groups of eight powers of two, and
// each but the first (nearly always the only one) costs another product with the values.
constexpr int GROUP_BITS = 3;
DEVICE int group_of(float scale, int largest_exponent) {
    return max(largest_exponent - exponent_of(fabsf(scale)), 0) >> GROUP_BITS;
}

// ---------------------------------------------------------------- producer

// One warp.
DEVICE void produce(const Problem& problem, const TensorMap* codes_map, const TensorMap* scales_map,
                    const TensorMap* rotary_map, u32 shared, const Plan& plan, int tiles,
                    int lane) {
    const u64 policy = tiles > 1 ? L2_EVICT_NORMAL : L2_EVICT_FIRST;
    auto bring_side = [&](u32 number, int page) {
        const Ring<SIDE_STAGES> side(number);
        const u32 full = shared + SIDE_FULL_AT + side.slot * 8;
        mbarrier_wait(shared + SIDE_EMPTY_AT + side.slot * 8, side.parity ^ 1);
        if (lane == 0) {
            mbarrier_arrive_expect(full, SCALE_BYTES + ROTARY_BYTES);
            tma_load(shared + SCALES_AT + side.slot * SCALE_BYTES, scales_map, full, policy, 0, 0,
                     page);
            tma_load(shared + ROTARY_AT + side.slot * ROTARY_BYTES, rotary_map, full, policy, 0, 0,
                     page);
        }
    };
    Walk walk, ahead;
    u32 step = 0, side_step = 0;
    bool more = walk.begin(problem, plan), more_sides = ahead.begin(problem, plan);
    for (; more; more = walk.next(problem, plan), ++step) {
        const Ring<CODE_STAGES> codes(step);
#pragma unroll
        for (int c = 0; c < QUARTERS; ++c) {
            const u32 place = codes.slot * QUARTERS + c, full = shared + CODES_FULL_AT + place * 8;
            mbarrier_wait(shared + CODES_EMPTY_AT + place * 8, codes.parity ^ 1);
            if (lane == 0) {
                mbarrier_arrive_expect(full, QUARTER_BYTES);
                tma_load(shared + CODES_AT + place * QUARTER_BYTES, codes_map, full, policy,
                         c * QUARTER, 0, walk.id);
            }
        }
        for (; more_sides && side_step <= step + SIDE_LEAD; ++side_step) {
            bring_side(side_step, ahead.id);
            more_sides = ahead.next(problem, plan);
        }
        __syncwarp();
    }
}

// ---------------------------------------------------------------- turners

// One warp: a page's scales from [key][quarter] to [quarter][key], in place, zeros behind the
// sequence's end, where the pool may hold anything. And as fp16 factors, [quarter][pair of columns
// in a fragment][8 pairs of keys]: the first group's scales over the power of two; then, for every
// quarter, that power of two and the count of groups.
DEVICE void turn_scales(u32 scales, u32 factors, int valid, int lane) {
    const float4 even = load_shared<float4>(scales + lane * 32);
    const float4 odd = load_shared<float4>(scales + lane * 32 + 16);
    const float of[QUARTERS][2] = {
        {even.x, odd.x}, {even.y, odd.y}, {even.z, odd.z}, {even.w, odd.w}};
    __syncwarp();
#pragma unroll
    for (int c = 0; c < QUARTERS; ++c) {
        float2 two = make_float2(0, 0);
        if (2 * lane < valid) two.x = of[c][0] * power(127 - SCALE_BITS);
        if (2 * lane + 1 < valid) two.y = of[c][1] * power(127 - SCALE_BITS);
        const u32 x = __float_as_uint(fabsf(two.x)), y = __float_as_uint(fabsf(two.y));
        const u32 largest = warp_max(max(x, y)), smallest = warp_min(min(x - 1, y - 1)) + 1;
        const int exponent = min(max(static_cast<int>(largest >> 23), 1), 252);
        const float down = power(253 - exponent);
        store_shared(scales + (c * PAGE + 2 * lane) * 4, two);
        store_shared(
            factors + c * 128 + lane % 4 * 32 + lane / 4 * 4,
            static_cast<int>(pack<F16>(group_of(two.x, exponent) == 0 ? two.x * down : 0.0f,
                                       group_of(two.y, exponent) == 0 ? two.y * down : 0.0f)));
        if (lane == 0) {
            const int groups = 1 + group_of(__uint_as_float(smallest), exponent);
            store_shared(factors + PAGE * QUARTERS * 2 + c * 8,
                         make_float2(power(exponent + 1), __int_as_float(largest ? groups : 1)));
        }
    }
    __syncwarp();
}

// Pieces FIRST .. FIRST + COUNT - 1 of a quarter's 16, each of 32 columns x 16 keys, which a warp's
// ldmatrix reads at once. Lane l names key l % 16 and columns 16 (l / 16) to read, and a row to
// write; everything else of an address is known here. `valid` keys of the page are seen; what lies
// behind may be NaN, and 0 x NaN is NaN.
template <int FIRST, int COUNT>
DEVICE void turn_pieces(u32 source, u32 target, int valid, int lane) {
    const u32 key = lane % 16;
    const u32 from = source + key * 128 + ((lane / 16 ^ key % 8) << 4);
    const u32 to = target + lane * 64 + (lane / 2 % 4 << 4);
    u32 words[COUNT][4];
#pragma unroll
    for (int n = 0; n < COUNT; ++n) {
        const int keys = (FIRST + n) / 4, columns = (FIRST + n) % 4;
        ldmatrix_x4_transposed(words[n], (from ^ columns * 32) + keys * 2048);
    }
    if (valid < PAGE) {
#pragma unroll 1
        for (int i = 0; i < 2; ++i) {  // keys 2 c, 2 c + 1 and 8 + 2 c, 9 + 2 c of 16
#pragma unroll
            for (int n = 0; n < COUNT; ++n) {
                const int first = (FIRST + n) / 4 * 16 + i * 8 + lane % 4 * 2;
                const u32 seen =
                    (first < valid ? 0xffffu : 0) | (first + 1 < valid ? 0xffff0000u : 0);
                const u32 mask = i == 0 ? seen : 0xffffffffu, other = i == 1 ? seen : 0xffffffffu;
                words[n][0] &= mask;
                words[n][2] &= mask;
                words[n][1] &= other;
                words[n][3] &= other;
            }
        }
    }
#pragma unroll
    for (int n = 0; n < COUNT; ++n) {
        const int keys = (FIRST + n) / 4, columns = (FIRST + n) % 4;
        const u32(&x)[4] = words[n];
        stmatrix_x4((to ^ keys * 16) + columns * 2048, permute_bytes(x[0], x[1], 0x6420),
                    permute_bytes(x[0], x[1], 0x7531), permute_bytes(x[2], x[3], 0x6420),
                    permute_bytes(x[2], x[3], 0x7531));
    }
}

// A page of a block's share, and how many of its keys (or more) are the sequence's.
struct Cursor {
    int sequence, page, end, length;

    DEVICE bool begin(const Problem& problem, const Plan& plan) {
        sequence = plan.first - 1;
        page = end = 0;
        return next(problem, plan);
    }
    DEVICE bool next(const Problem& problem, const Plan& plan) {
        ++page;
        while (page >= end) {
            if (++sequence > plan.last) return false;
            length = cache_length(problem, sequence);
            page = sequence == plan.first ? plan.first_page : 0;
            end = sequence == plan.last ? plan.last_end : page_count(length);
        }
        return true;
    }
    DEVICE int valid() const { return length - page * PAGE; }
};

// One warp: all scales, as soon as they are there.
DEVICE void turn_all_scales(const Problem& problem, u32 shared, const Plan& plan, int lane) {
    u32 step = 0;
    Cursor at;
    for (bool more = at.begin(problem, plan); more; more = at.next(problem, plan), ++step) {
        const Ring<SIDE_STAGES> side(step);
        mbarrier_wait(shared + SIDE_FULL_AT + side.slot * 8, side.parity);
        turn_scales(shared + SCALES_AT + side.slot * SCALE_BYTES,
                    shared + FACTORS_AT + side.slot * FACTOR_BYTES, at.valid(), lane);
        if (lane == 0) mbarrier_arrive(shared + SCALES_FULL_AT + side.slot * 8);
    }
}

// A warp of a team: its pieces of the team's quarters.
template <int FIRST, int COUNT>
DEVICE void turn_quarters(const Problem& problem, u32 shared, const Plan& plan, int team,
                          int lane) {
    constexpr int AT_ONCE = BESIDE ? COUNT : (COUNT + 1) / 2;  // else few registers are left
    u32 step = 0;
    Cursor at;
#pragma unroll 1
    for (bool more = at.begin(problem, plan); more; more = at.next(problem, plan), ++step) {
        const Ring<CODE_STAGES> codes(step);
        const int valid = at.valid();
#pragma unroll 1
        for (int c = team; c < QUARTERS; c += TEAMS) {
            const u32 place = codes.slot * QUARTERS + c;
            const Ring<VALUE_SLOTS> to(step * QUARTERS + c);
            mbarrier_wait(shared + CODES_FULL_AT + place * 8, codes.parity);
            mbarrier_wait(shared + VALUES_EMPTY_AT + to.slot * 8, to.parity ^ 1);
            const u32 source = shared + CODES_AT + place * QUARTER_BYTES;
            const u32 target = shared + VALUES_AT + to.slot * QUARTER_BYTES;
            turn_pieces<FIRST, AT_ONCE>(source, target, valid, lane);
            if constexpr (AT_ONCE < COUNT) {
                turn_pieces<FIRST + AT_ONCE, COUNT - AT_ONCE>(source, target, valid, lane);
            }
            fence_async_shared();
            __syncwarp();
            if (lane == 0) {
                mbarrier_arrive(shared + VALUES_FULL_AT + to.slot * 8);
                mbarrier_arrive(shared + CODES_EMPTY_AT + place * 8);
            }
        }
    }
}

// ---------------------------------------------------------------- consumers

// The consumers' threads: a tile's queries in two halves. A row is multiplied by the power of two
// that brings its largest latent number to 128 .. 256, where e4m3 has bits to spare below.
DEVICE void split_queries(const Problem& problem, u32 shared, int sequence, int tile, int rows,
                          int thread) {
    const int warp = thread / 32, lane = thread % 32;
    const u16* queries =
        problem.q +
        (static_cast<long long>(sequence) * problem.query_len * problem.heads + tile * TILE) * ROW;
    // All that a warp reads is on its way before any of it is used.
    constexpr int EACH = TILE / (CONSUMERS / 32);
    uint4 latent[EACH][2];
    u32 rotary[EACH];
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        const int r = warp + n * (CONSUMERS / 32);
        latent[n][0] = latent[n][1] = make_uint4(0, 0, 0, 0);
        rotary[n] = 0;
        if (r < rows) {
            const u16* from = queries + r * ROW;
            latent[n][0] = load_once(from + lane * 16);
            latent[n][1] = load_once(from + lane * 16 + 8);
            rotary[n] = __ldg(reinterpret_cast<const u32*>(from + LATENT) + lane);
        }
    }
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        const int r = warp + n * (CONSUMERS / 32);
        const u32 row = BESIDE ? r / 8 * 16 + r % 8 : r;  // of the product
        const uint4(&of)[2] = latent[n];
        const u32 words[8] = {of[0].x, of[0].y, of[0].z, of[0].w,
                              of[1].x, of[1].y, of[1].z, of[1].w};
        float x[16], largest = 0;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            x[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
            largest = fmaxf(largest, fabsf(x[i]));
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
        }
        const int exponent = min(max(exponent_of(largest), 127 - 60), 127 + 60);
        const float up = power(127 + 7 + 127 - exponent);
        u32 high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            high_and_low(x[4 * i] * up, x[4 * i + 1] * up, x[4 * i + 2] * up, x[4 * i + 3] * up,
                         high[i], low[i]);
        }
        const u32 at = lane / 8 * QUARTER_BYTES, unit = lane % 8 * 16;
        const u32 low_at = BESIDE ? HIGH_AT + at + swizzle128((row + 8) * 128 + unit)
                                  : LOW_AT + at + swizzle128(row * 128 + unit);
        store_shared(shared + HIGH_AT + at + swizzle128(row * 128 + unit),
                     make_uint4(high[0], high[1], high[2], high[3]));
        store_shared(shared + low_at, make_uint4(low[0], low[1], low[2], low[3]));
        store_shared(shared + Q_ROTARY_AT + swizzle128(row * 128 + lane * 4),
                     static_cast<int>(rotary[n]));
        if (BESIDE) {
            store_shared(shared + Q_ROTARY_AT + swizzle128((row + 8) * 128 + lane * 4), 0);
        }
        if (lane == 0) {
            // Scores come as q k 2^-8 up.
            store_shared(shared + UP_AT + r * 4, power(127 + 7 + 127 - exponent - SCALE_BITS));
            store_shared(shared + DOWN_AT + r * 4,
                         problem.scale_log2 * power(exponent - 7 + SCALE_BITS));
        }
    }
    fence_async_shared();
    barrier_wait(BOTH, CONSUMERS);
}

DEVICE void consume(const Problem& problem, char* shared_pointer, const Plan& plan, int block,
                    int tile, int tiles, int group) {
    const u32 shared = shared_address(shared_pointer);
    u32 number_of_thread[1] = {threadIdx.x};
    if (BESIDE) registers_pin(number_of_thread);  // else it is asked for again, and waited for
    const int thread = number_of_thread[0] % 128, warp = uniform(thread / 32), lane = thread % 32;
    const int rows_all = problem.query_len * problem.heads;
    const int rows = min(TILE, rows_all - tile * TILE);
    const int warp_row = warp * 8 * HALVES;  // the warp's first
    int row[HALVES], query[HALVES];          // this thread's, in the tile
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        row[h] = warp_row + lane / 4 + 8 * h;
        query[h] = (tile * TILE + row[h]) / problem.heads;
    }
    // O of this warpgroup's two quarters: as the products' fragments, without the low halves' rows
    // where those lie beside.
    constexpr int PIECES = QUARTER / WIDTH, EACH = WIDTH / 4 * HALVES;
    float o[2][PIECES][EACH];
    u32 step = 0;
    const int last_sequence = uniform(plan.last);
    for (int sequence = uniform(plan.first); sequence <= last_sequence; ++sequence) {
        const int length = uniform(cache_length(problem, sequence));
        const int pages = page_count(length);
        const int begin = uniform(sequence == plan.first ? plan.first_page : 0);
        const int end = uniform(sequence == last_sequence ? plan.last_end : pages);
        if (begin >= end) continue;
        const int unmasked = length - problem.query_len + 1;  // keys that every row sees

        // Of this warpgroup's pages: the maximum of scores times log2 e, the sum of weights.
        float maximum[HALVES], sum[HALVES];
        float reference[HALVES];  // what O refers to
        float up[HALVES], down[HALVES];
        split_queries(problem, shared, sequence, tile, rows, group * 128 + thread);
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            maximum[h] = reference[h] = -infinity();
            sum[h] = 0;
            up[h] = load_shared(shared + UP_AT + row[h] * 4);
            down[h] = load_shared(shared + DOWN_AT + row[h] * 4);
        }
#pragma unroll
        for (int i = 0; i < 2 * PIECES * EACH; ++i)
            o[i / EACH / PIECES][i / EACH % PIECES][i % EACH] = 0;

        // Scores of a page, their weights, and what the other warpgroup is to know of them.
        auto scores = [&](int page, u32 number) {
            const Ring<CODE_STAGES> codes(number);
            const Ring<SIDE_STAGES> side(number);
            const u32 full = shared + CODES_FULL_AT + codes.slot * QUARTERS * 8;
            const u32 empty = shared + CODES_EMPTY_AT + codes.slot * QUARTERS * 8;
            const u32 keys = shared + CODES_AT + codes.slot * QUARTERS * QUARTER_BYTES;
            const u32 rotary = shared + ROTARY_AT + side.slot * ROTARY_BYTES;
            const u32 scales = shared + SCALES_AT + side.slot * SCALE_BYTES + lane % 4 * 8;
            // Each quarter is a product of its own, as are the rotary columns, behind them.
            constexpr int ALL = QUARTERS + 1;
            float products[SCORES_IN_FLIGHT][PAGE / 2];
            float s[8][HALVES][2];  // [8 keys][row][key]
            auto multiply = [&](int j) {
                auto& d = products[j % SCORES_IN_FLIGHT];
                if (j < QUARTERS) mbarrier_wait(full + j * 8, codes.parity);
                registers_pin(d);
                wgmma_fence();
                if (j < QUARTERS) {
                    const u64 b = matrix_descriptor(keys + j * QUARTER_BYTES, 1024);
                    const u64 high = matrix_descriptor(shared + HIGH_AT + j * QUARTER_BYTES, 1024);
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        Wgmma<PAGE, E4M3>::ss(d, descriptor_advance(high, k * 32),
                                              descriptor_advance(b, k * 32), k > 0);
                    }
                    if (!BESIDE) {
                        const u64 low =
                            matrix_descriptor(shared + LOW_AT + j * QUARTER_BYTES, 1024);
#pragma unroll
                        for (int k = 0; k < 4; ++k) {
                            Wgmma<PAGE, E4M3>::ss(d, descriptor_advance(low, k * 32),
                                                  descriptor_advance(b, k * 32), 1);
                        }
                    }
                } else {
                    const u64 a = matrix_descriptor(shared + Q_ROTARY_AT, 1024);
                    const u64 b = matrix_descriptor(rotary, 1024);
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        Wgmma<PAGE, BF16>::ss(d, descriptor_advance(a, k * 32),
                                              descriptor_advance(b, k * 32), k > 0);
                    }
                }
                wgmma_commit();
            };
            // Where registers are left the keys' scales are fetched while products run.
            auto fetch = [&](int j, float2(&of_keys)[8]) {
#pragma unroll
                for (int b = 0; b < 8; ++b) {
                    of_keys[b] = load_shared<float2>(scales + j * PAGE * 4 + b * 32);
                }
            };
            auto take = [&](int j, float2(&of_keys)[8]) {
                auto& d = products[j % SCORES_IN_FLIGHT];
                registers_pin(d);
                if (!BESIDE && j < QUARTERS) fetch(j, of_keys);
                if (j < QUARTERS) release(empty + j * 8, lane);
#pragma unroll
                for (int b = 0; b < 8; ++b) {
                    const float2 scale = of_keys[b];
#pragma unroll
                    for (int m = 0; m < 2 * HALVES; ++m) {
                        const int h = m / 2, e = m % 2;
                        const float key_scale = e ? scale.y : scale.x;
                        if (j == QUARTERS) {
                            s[b][h][e] += d[4 * b + m] * up[h];
                        } else {
                            const float product =
                                BESIDE ? d[4 * b + m] + d[4 * b + 2 + m] : d[4 * b + m];
                            if (j == 0) {
                                s[b][h][e] = product * key_scale;
                            } else {
                                s[b][h][e] += product * key_scale;
                            }
                        }
                    }
                }
            };
#pragma unroll
            for (int j = 0; j < SCORES_IN_FLIGHT; ++j) multiply(j);
            mbarrier_wait(shared + SCALES_FULL_AT + side.slot * 8, side.parity);
            mbarrier_wait(shared + SIDE_FULL_AT + side.slot * 8, side.parity);
#pragma unroll
            for (int j = 0; j < ALL; ++j) {
                constexpr int MOST = SCORES_IN_FLIGHT - 1;
                float2 of_keys[8];
                if (BESIDE && j < QUARTERS) fetch(j, of_keys);
                if (ALL - 1 - j >= MOST) {
                    wgmma_wait<MOST>();
                } else {
                    wgmma_wait<0>();
                }
                take(j, of_keys);
                if (j + SCORES_IN_FLIGHT < ALL) multiply(j + SCORES_IN_FLIGHT);
            }
            u32 p[HALVES][8];
            float of_page[HALVES];
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                if (page * PAGE + PAGE > unmasked) {
                    const int limit = unmasked + query[h];  // keys that the row sees
#pragma unroll
                    for (int i = 0; i < 16; ++i) {
                        const int key = page * PAGE + i / 2 * 8 + lane % 4 * 2 + i % 2;
                        if (key >= limit) s[i / 2][h][i % 2] = -infinity();
                    }
                }
                float top = s[0][h][0];
#pragma unroll
                for (int i = 0; i < 16; ++i) top = fmaxf(top, s[i / 2][h][i % 2]);
                of_page[h] = quad_max(top) * down[h];
                const float base = of_page[h] == -infinity() ? 0 : of_page[h];
                float page_sum = 0;
#pragma unroll
                for (int b = 0; b < 8; ++b) {
                    const float x = exp2_fast(s[b][h][0] * down[h] - (base - WEIGHT_BITS));
                    const float y = exp2_fast(s[b][h][1] * down[h] - (base - WEIGHT_BITS));
                    page_sum += x + y;
                    p[h][b] = pack<F16>(x, y);
                }
                const float larger = fmaxf(maximum[h], of_page[h]);
                const float larger_base = larger == -infinity() ? 0 : larger;
                sum[h] = sum[h] * exp2_fast(maximum[h] - larger_base) +
                         page_sum * exp2_fast(of_page[h] - larger_base);
                maximum[h] = larger;
            }
            // All warps have to be done with the rotary columns.
            barrier_wait(OWN + group, 128);
#pragma unroll
            for (int i = 0; i < 2 * HALVES; ++i) {
                const u32* four = p[i / 2] + i % 2 * 4;
                store_shared(rotary + i * 2048 + thread * 16,
                             make_uint4(four[0], four[1], four[2], four[3]));
            }
            if (lane % 4 == 0) {
#pragma unroll
                for (int h = 0; h < HALVES; ++h) {
                    store_shared(shared + MAXIMA_AT + side.slot * 256 + row[h] * 4, of_page[h]);
                }
            }
            fence_async_shared();  // TMA writes there next
            release(shared + PUBLISHED_AT + side.slot * 8, lane);
        };

        // O += P V of a page, in this warpgroup's two quarters.
        auto values = [&](u32 number) {
            const Ring<SIDE_STAGES> side(number);
            const u32 weights = shared + ROTARY_AT + side.slot * ROTARY_BYTES + thread * 16;
            const u32 scales = shared + SCALES_AT + side.slot * SCALE_BYTES + lane % 4 * 8;
            const u32 factors = shared + FACTORS_AT + side.slot * FACTOR_BYTES;
            mbarrier_wait(shared + PUBLISHED_AT + side.slot * 8, side.parity);
            // Scales are there: who published waited for them. All is fetched before any is used.
            float of_page[HALVES];
            uint4 p[2 * HALVES];
            float2 facts[2];
            u32 key_factors[2][8];
            auto fetch = [&](int ci) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const uint4 four = load_shared<uint4>(factors + (group * 2 + ci) * 128 +
                                                          lane % 4 * 32 + i * 16);
                    key_factors[ci][4 * i] = four.x, key_factors[ci][4 * i + 1] = four.y;
                    key_factors[ci][4 * i + 2] = four.z, key_factors[ci][4 * i + 3] = four.w;
                }
            };
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                of_page[h] = load_shared(shared + MAXIMA_AT + side.slot * 256 + row[h] * 4);
            }
#pragma unroll
            for (int ci = 0; ci < 2; ++ci) {
                facts[ci] =
                    load_shared<float2>(factors + PAGE * QUARTERS * 2 + (group * 2 + ci) * 8);
            }
#pragma unroll
            for (int i = 0; i < 2 * HALVES; ++i) p[i] = load_shared<uint4>(weights + i * 2048);
            fetch(0);
            if (BESIDE) fetch(1);  // else registers are dear

            float weight[HALVES], old[HALVES];
            bool larger = false;
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                const float before = reference[h];
                const bool exceeds = of_page[h] > before + LAZY_BITS;
                reference[h] = exceeds ? of_page[h] : before;
                old[h] = exceeds ? exp2_fast(before - of_page[h]) : 1;
                weight[h] =
                    exp2_fast(of_page[h] - (reference[h] == -infinity() ? 0 : reference[h]));
                larger = larger || exceeds;
            }
            if (__any_sync(0xffffffffu, larger)) {
#pragma unroll
                for (int i = 0; i < 2 * PIECES * EACH; ++i) {
                    o[i / EACH / PIECES][i / EACH % PIECES][i % EACH] *=
                        old[BESIDE ? 0 : i / 2 % 2];
                }
            }
            // Of a quarter: the largest scale's power of two, the count of groups of scales, and
            // the place of its values.
            int exponents[2], groups[2];
            Ring<VALUE_SLOTS> from[2] = {Ring<VALUE_SLOTS>(number * QUARTERS + group * 2),
                                         Ring<VALUE_SLOTS>(number * QUARTERS + group * 2 + 1)};
#pragma unroll
            for (int ci = 0; ci < 2; ++ci) {
                exponents[ci] = exponent_of(facts[ci].x) - 1;
                groups[ci] = uniform(__float_as_int(facts[ci].y));
            }
            // Weights times a group's scales as two e4m3 numbers, 16 keys each.
            auto weigh = [&](int ci, int scale_group, u32(&high)[4][HALVES], u32(&low)[4][HALVES]) {
                if (scale_group > 0) {
                    const float down = power(253 - exponents[ci] + (scale_group << GROUP_BITS));
#pragma unroll
                    for (int b = 0; b < 8; ++b) {
                        const float2 two =
                            load_shared<float2>(scales + (group * 2 + ci) * PAGE * 4 + b * 32);
                        const bool x = group_of(two.x, exponents[ci]) == scale_group;
                        const bool y = group_of(two.y, exponents[ci]) == scale_group;
                        key_factors[ci][b] =
                            pack<F16>(x ? two.x * down : 0.0f, y ? two.y * down : 0.0f);
                    }
                }
#pragma unroll
                for (int i = 0; i < 2 * HALVES; ++i) {
                    const int b = i % 2 * 4, k = i % 2 * 2, h = i / 2;
                    high_and_low(mul_f16x2(p[i].x, key_factors[ci][b]),
                                 mul_f16x2(p[i].y, key_factors[ci][b + 1]), high[k][h], low[k][h]);
                    high_and_low(mul_f16x2(p[i].z, key_factors[ci][b + 2]),
                                 mul_f16x2(p[i].w, key_factors[ci][b + 3]), high[k + 1][h],
                                 low[k + 1][h]);
                }
            };
            auto multiply = [&](float(&d)[WIDTH / 2], int ci, int piece, u32(&high)[4][HALVES],
                                u32(&low)[4][HALVES]) {
                const u64 b = matrix_descriptor<Swizzle::BYTES_64>(
                    shared + VALUES_AT + from[ci].slot * QUARTER_BYTES + piece * WIDTH * PAGE, 512);
                registers_pin(d);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    const u64 at = descriptor_advance(b, k * 16);
                    if constexpr (BESIDE) {
                        Wgmma<WIDTH, E4M3>::rs(d, high[k][0], low[k][0], high[k + 1][0],
                                               low[k + 1][0], at, k > 0);
                    } else {
                        Wgmma<WIDTH, E4M3>::rs(d, high[k][0], high[k][1], high[k + 1][0],
                                               high[k + 1][1], at, k > 0);
                        Wgmma<WIDTH, E4M3>::rs(d, low[k][0], low[k][1], low[k + 1][0],
                                               low[k + 1][1], at, 1);
                    }
                }
                wgmma_commit();
            };
            auto add = [&](float(&d)[WIDTH / 2], int ci, int piece, int scale_group) {
                const float factor = power(exponents[ci] + 1 - (scale_group << GROUP_BITS));
                registers_pin(d);
#pragma unroll
                for (int i = 0; i < EACH; ++i) {
                    const float product =
                        BESIDE ? d[i / 2 * 4 + i % 2] + d[i / 2 * 4 + 2 + i % 2] : d[i];
                    o[ci][piece][i] += product * (weight[BESIDE ? 0 : i / 2 % 2] * factor);
                }
            };
            auto arrived = [&](int ci) {
                mbarrier_wait(shared + VALUES_FULL_AT + from[ci].slot * 8, from[ci].parity);
            };
            auto read = [&](int ci) {
                release(shared + VALUES_EMPTY_AT + from[ci].slot * 8, lane);
            };

            if (groups[0] == 1 && groups[1] == 1) {
                // While the first product runs, the second quarter's weights are made.
                u32 high[2][4][HALVES], low[2][4][HALVES];
                float d[WIDTH / 2];
                weigh(0, 0, high[0], low[0]);
                arrived(0);
                multiply(d, 0, 0, high[0], low[0]);
                if (!BESIDE) fetch(1);
                weigh(1, 0, high[1], low[1]);
                release(shared + SIDE_EMPTY_AT + side.slot * 8, lane);
#pragma unroll
                for (int i = 0; i < 2 * PIECES; ++i) {
                    const int ci = i / PIECES, piece = i % PIECES;
                    if (i == PIECES) arrived(1);
                    if (i > 0) multiply(d, ci, piece, high[ci], low[ci]);
                    wgmma_wait<0>();
                    add(d, ci, piece, 0);
                    if (piece == PIECES - 1) read(ci);
                }
                return;
            }
#pragma unroll
            for (int ci = 0; ci < 2; ++ci) {
                if (!BESIDE && ci == 1) fetch(1);
                arrived(ci);
#pragma unroll 1
                for (int scale_group = 0; scale_group < groups[ci]; ++scale_group) {
                    u32 high[4][HALVES], low[4][HALVES];
                    weigh(ci, scale_group, high, low);
#pragma unroll
                    for (int piece = 0; piece < PIECES; ++piece) {
                        float d[WIDTH / 2];
                        multiply(d, ci, piece, high, low);
                        wgmma_wait<0>();
                        add(d, ci, piece, scale_group);
                    }
                }
                read(ci);
            }
            release(shared + SIDE_EMPTY_AT + side.slot * 8, lane);
        };

        const int count = end - begin;
        int own = (static_cast<int>(step) ^ group) & 1;  // its next page with scores of its own
#pragma unroll 1
        for (int done = 0; done < count; own += 2) {
            if (own < count) scores(begin + own, step + own);
#pragma unroll 1
            for (const int until = min(own, count - 1); done <= until; ++done) values(step + done);
        }
        step += count;

        // Row sums over both warpgroups' pages; what O refers to is the larger maximum.
        float total[HALVES];
        barrier_wait(BOTH, CONSUMERS);  // the sums of the sequence before have been read
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            const float of_all = quad_sum(sum[h]);
            if (lane % 4 == 0) {
                const u32 at = shared + SUMS_AT + (group * 64 + row[h]) * 8;
                store_shared(at, maximum[h]);
                store_shared(at + 4, of_all * power(127 - WEIGHT_BITS));
            }
        }
        barrier_wait(BOTH, CONSUMERS);
        float factor[HALVES];
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            const float base = reference[h] == -infinity() ? 0 : reference[h];
            const float2 even = load_shared<float2>(shared + SUMS_AT + row[h] * 8);
            const float2 odd = load_shared<float2>(shared + SUMS_AT + (64 + row[h]) * 8);
            total[h] = even.y * exp2_fast(even.x - base) + odd.y * exp2_fast(odd.x - base);
            factor[h] = reciprocal_or_zero(total[h]);
        }

        // Four neighbouring columns of a row: 16 j + 4 (lane % 4) and on, of a quarter. Even
        // columns are the first eight of 16 in the product, odd ones the others.
        auto o_at = [&](int ci, int j, int h, int column) -> float& {
            const int block_of_8 = 2 * j + column % 2, e = column / 2;
            const int piece = block_of_8 / (WIDTH / 8), within = block_of_8 % (WIDTH / 8);
            return o[ci][piece][(within * HALVES + h) * 2 + e];
        };
        const bool whole = begin == 0 && end == pages;
        const bool exchanged = uniform(plan.pieces && plan.first_splits == 2);
        constexpr int FOURS = 16 * HALVES;  // fours of columns that a thread holds
        if (!whole) {
            const int slot = part_slot(block, begin == 0 ? 0 : 1, tiles, tile);
            if (group == 0 && lane % 4 == 0) {
#pragma unroll
                for (int h = 0; h < HALVES; ++h) {
                    problem.part_sums[slot * TILE + row[h]] = make_float2(reference[h], total[h]);
                }
            }
            float4* part = reinterpret_cast<float4*>(problem.parts) +
                           static_cast<long long>(slot) * (TILE * LATENT / 4);
            // Where two blocks share a sequence, the first has the last word on columns 0 .. 255.
            if (warp_row < rows && !(exchanged && group == (begin == 0 ? 0 : 1))) {
#pragma unroll
                for (int i = 0; i < FOURS; ++i) {
                    const int ci = i / HALVES / 8, j = i / HALVES % 8, h = i % HALVES;
                    const float4 four = make_float4(o_at(ci, j, h, 0), o_at(ci, j, h, 1),
                                                    o_at(ci, j, h, 2), o_at(ci, j, h, 3));
                    if (exchanged) {
                        part[i * 128 + thread] = four;
                    } else if (row[h] < rows) {
                        part[row[h] * (LATENT / 4) + (group * 2 + ci) * (QUARTER / 4) + j * 4 +
                             lane % 4] = four;
                    }
                }
            }
            barrier_arrive(sequence == plan.first ? PART : PART + 1, WATCHED);
        }
        if (exchanged) {
            barrier_wait(ALL_PARTS, WATCHED);
            const int index = begin == 0 ? 0 : 1;
            if (group == index && warp_row < rows) {
                const int slot = part_slot(plan.first_block + 1 - index, 1 - index, tiles, tile);
                const float4* part = reinterpret_cast<const float4*>(problem.parts) +
                                     static_cast<long long>(slot) * (TILE * LATENT / 4) + thread;
                float weight[HALVES];
#pragma unroll
                for (int h = 0; h < HALVES; ++h) {
                    const float2 other = load_l2(problem.part_sums + slot * TILE + row[h]);
                    float top = fmaxf(reference[h], other.x);
                    if (top == -infinity()) top = 0;
                    factor[h] = exp2_fast(reference[h] - top);
                    weight[h] = exp2_fast(other.x - top);
                    const float inverse =
                        reciprocal_or_zero(total[h] * factor[h] + other.y * weight[h]);
                    factor[h] *= inverse;
                    weight[h] *= inverse;
                }
                constexpr int AT_ONCE = 8;
#pragma unroll
                for (int i = 0; i < FOURS; i += AT_ONCE) {
                    float4 x[AT_ONCE];
#pragma unroll
                    for (int n = 0; n < AT_ONCE; ++n) x[n] = load_l2(part + (i + n) * 128);
#pragma unroll
                    for (int n = 0; n < AT_ONCE; ++n) {
                        const int ci = (i + n) / HALVES / 8, j = (i + n) / HALVES % 8;
                        const int h = (i + n) % HALVES;
                        const float others[4] = {x[n].x, x[n].y, x[n].z, x[n].w};
#pragma unroll
                        for (int column = 0; column < 4; ++column) {
                            float& mine = o_at(ci, j, h, column);
                            mine = mine * factor[h] + others[column] * weight[h];
                        }
                    }
                }
#pragma unroll
                for (int h = 0; h < HALVES; ++h) factor[h] = 1;
            }
        }
        if ((whole || (exchanged && group == (begin == 0 ? 0 : 1))) && warp_row < rows) {
            u16* out = problem.out +
                       (static_cast<long long>(sequence) * rows_all + tile * TILE) * LATENT +
                       group * 256 + lane % 4 * 4;
#pragma unroll
            for (int i = 0; i < FOURS; ++i) {
                const int ci = i / HALVES / 8, j = i / HALVES % 8, h = i % HALVES;
                if (row[h] < rows) {
                    *reinterpret_cast<uint2*>(out + row[h] * LATENT + ci * QUARTER + j * 16) =
                        make_uint2(pack<BF16>(o_at(ci, j, h, 0) * factor[h],
                                              o_at(ci, j, h, 1) * factor[h]),
                                   pack<BF16>(o_at(ci, j, h, 2) * factor[h],
                                              o_at(ci, j, h, 3) * factor[h]));
                }
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
    mla_decode(const __grid_constant__ TensorMap codes_map,
               const __grid_constant__ TensorMap scales_map,
               const __grid_constant__ TensorMap rotary_map,
               const __grid_constant__ Problem problem, int tiles) {
    extern __shared__ __align__(1024) char memory[];
    const u32 shared = (shared_address(memory) + 1023) & ~1023u;  // the swizzle's pattern
    char* shared_pointer = memory + (shared - shared_address(memory));
    const u32 warp = warp_index();
    const int tile = blockIdx.x % tiles, block = blockIdx.x / tiles;
    const int blocks = min(static_cast<int>(gridDim.x) / tiles, MOST_SPLITS);
    Plan* plan = reinterpret_cast<Plan*>(shared_pointer + PLAN_AT);

    if (warp < CONSUMERS / 32) {
        make_plan(problem, block, blocks, plan, shared_pointer + PLAN_AT + 64);
    } else if (threadIdx.x == CONSUMERS) {
        tensor_map_prefetch(&codes_map);
        tensor_map_prefetch(&scales_map);
        tensor_map_prefetch(&rotary_map);
        for (int i = 0; i < CODE_STAGES * QUARTERS; ++i) {
            mbarrier_init(shared + CODES_FULL_AT + i * 8, 1);
            mbarrier_init(shared + CODES_EMPTY_AT + i * 8, 4 + TEAM);
        }
        for (int i = 0; i < VALUE_SLOTS; ++i) {
            mbarrier_init(shared + VALUES_FULL_AT + i * 8, TEAM);
            mbarrier_init(shared + VALUES_EMPTY_AT + i * 8, 4);
        }
        for (int i = 0; i < SIDE_STAGES; ++i) {
            mbarrier_init(shared + SIDE_FULL_AT + i * 8, 1);
            mbarrier_init(shared + SIDE_EMPTY_AT + i * 8, 8);
            mbarrier_init(shared + SCALES_FULL_AT + i * 8, 1);
            mbarrier_init(shared + PUBLISHED_AT + i * 8, 4);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    const Plan& mine = *plan;  // read where it is needed: registers are dear

    if (warp >= 8) {
        registers_release<256 - CONSUMER_REGISTERS>();
        const int lane = threadIdx.x % 32;
        if (warp == 8) {
            produce(problem, &codes_map, &scales_map, &rotary_map, shared, mine, tiles, lane);
            watch(problem, mine, tile, tiles, lane);
        } else if (warp == 9) {
            turn_all_scales(problem, shared, mine, lane);
        } else {
            const int team = (warp - 10) / TEAM, member = (warp - 10) % TEAM;
            if (member == 0) turn_quarters<0, 6>(problem, shared, mine, team, lane);
            if (member == 1) turn_quarters<6, 5>(problem, shared, mine, team, lane);
            if (member == 2) turn_quarters<11, 5>(problem, shared, mine, team, lane);
        }
    } else {
        registers_claim<CONSUMER_REGISTERS>();
        consume(problem, shared_pointer, mine, block, tile, tiles, warp / 4);
    }
}
