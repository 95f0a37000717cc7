// Attention for Hopper (sm_90a): O = softmax(scale Q K^T, masked) V, never storing the scores.
//
// Shah et al. 2024, FlashAttention-3 (arXiv 2407.08608): one warpgroup issues TMA loads, the others
// compute; a block's maxima are found under the product of the older block's weights, its
// exponentials taken under the products of the other warpgroup. Between tiles the tensor cores do
// not drain: the first product of the next runs with the last of this one. fp32 scores, sums and
// output accumulators; the unnormalised weights are rounded to the input type before P V. No
// atomics on floats: the result is the same bits every time.
//
// With e4m3 inputs the output is bf16, and V comes transposed and permuted (values_e4m3.cu): wgmma
// takes 8-bit operands K-major only. The weights are scaled by 2^8, which their sum undoes.
//
// Macros: HEAD_DIM, VALUE_DIM (multiples of 64), WARPGROUPS (64 query rows each), BLOCK_N (keys a
// block), STAGES, CAUSAL (bottom-right), DTYPE (BF16, F16 or E4M3), VARLEN (rows of all sequences
// packed, cu_seqlens), PAGE_ROWS (K and V in pages, of which a copy takes so many rows; 0: not).
// Schedules, each 0 or 1 unless said:
// PINGPONG: warpgroups take turns at issuing products.
// Q_REGISTERS: Q is read from shared memory once a tile instead of once a block, which leaves more
//     of its bandwidth to K, V and the loads.
// Q_STAGES (a number): tiles of Q in shared memory.
// SPLIT: the few tiles that are left over when all blocks have had the same number are cut along
//     the keys, one part a block, so that the others do not wait for them; the last part to end
//     adds them up, always in the same order. Full attention, dense.
#include "hopper.cuh"

#ifndef PAGE_ROWS
#define PAGE_ROWS 0
#endif
#ifndef PINGPONG
#define PINGPONG 1
#endif
#ifndef Q_STAGES
#define Q_STAGES 1
#endif
#ifndef SPLIT
#define SPLIT 0
#endif
#ifndef Q_REGISTERS
#define Q_REGISTERS 0
#endif

template <class A, class B>
constexpr bool SAME = false;
template <class A>
constexpr bool SAME<A, A> = true;

constexpr bool EIGHT = SAME<DTYPE, E4M3>;
constexpr int BLOCK_M = 64 * WARPGROUPS;
constexpr int THREADS = 128 * (WARPGROUPS + 1);
// Of 65536 registers: multiples of 8 a thread.
constexpr int PRODUCER_REGISTERS = WARPGROUPS == 3 ? 32 : 24;
constexpr int CONSUMER_REGISTERS = WARPGROUPS == 3 ? 160 : WARPGROUPS == 1 ? 256 : 240;
// Tiles are chunks of 128-byte rows, swizzled: CHUNK elements of the inner dimension, which is D.
// The inner dimension of a transposed V is keys; its rows have 64 bytes where that divides a block.
constexpr int CHUNK = EIGHT ? 128 : 64;
constexpr int K_CHUNKS = (HEAD_DIM + CHUNK - 1) / CHUNK;
constexpr int V_CHUNK = EIGHT && BLOCK_N % 128 == 0 ? 128 : 64;
constexpr int V_CHUNKS = (EIGHT ? BLOCK_N : VALUE_DIM) / V_CHUNK;
constexpr u32 V_ROW_BYTES = EIGHT ? V_CHUNK : 128;
constexpr u32 V_CHUNK_BYTES = (EIGHT ? VALUE_DIM : BLOCK_N) * V_ROW_BYTES;
constexpr Swizzle V_SWIZZLE = V_ROW_BYTES == 128 ? Swizzle::BYTES_128 : Swizzle::BYTES_64;
constexpr u32 Q_BYTES = 64 * 128 * K_CHUNKS;  // of one warpgroup
constexpr u32 K_BYTES = BLOCK_N * 128 * K_CHUNKS;
constexpr u32 V_BYTES = V_CHUNK_BYTES * V_CHUNKS;
constexpr u32 BARRIER_BYTES = 1024;
constexpr u32 SHARED_BYTES =
    BARRIER_BYTES + Q_STAGES * WARPGROUPS * Q_BYTES + STAGES * (K_BYTES + V_BYTES);
// The host asks for 1024 bytes more than this, to align.
static_assert(SHARED_BYTES + 1024 <= 232448, "more shared memory than a Hopper SM gives");
static_assert(BLOCK_N % 16 == 0 && BLOCK_N <= 256, "a block of keys is one wgmma wide");
static_assert(!EIGHT || BLOCK_N % 64 == 0, "e4m3: whole chunks of keys");
constexpr bool PAGED = PAGE_ROWS > 0;
constexpr bool DENSE = !VARLEN && !PAGED;
static_assert(!EIGHT || DENSE, "e4m3: neither packed nor paged");
static_assert(!PAGED || (!VARLEN && PAGE_ROWS % 8 == 0), "whole patterns of the swizzle");
static_assert(!PAGED || BLOCK_N % (PAGED ? PAGE_ROWS : 1) == 0, "whole copies");
static_assert(!SPLIT || (!CAUSAL && DENSE), "every part has blocks");

// Weights are 2^WEIGHT_LOG2 where the score is the running maximum, and may exceed that by
// 2^LAZY_LOG2 before the maximum is moved and O rescaled: 2^8 in all, of e4m3's 448.
constexpr float WEIGHT_LOG2 = EIGHT ? 8.0f : 0.0f;
constexpr float LAZY_LOG2 = EIGHT ? 0.0f : 8.0f;

constexpr u32 NAMED_TURN = 1;  // barriers 1 .. WARPGROUPS: whose turn at the tensor cores

struct Arguments {
    u64 output;        // [.., H, VALUE_DIM], strides below in elements, columns contiguous
    u64 cu_seqlens_q;  // int32 [batch + 1] (VARLEN)
    u64 cu_seqlens_k;
    u64 block_table;    // int32 [batch, table_width] (PAGED)
    u64 cache_seqlens;  // int32 [batch] (PAGED)
    u64 counters;  // int32 [2 + split_tiles * WARPGROUPS], zero before and after
    u64 partials;  // float [split_tiles * parts, WARPGROUPS, VALUE_DIM / 2 + 4, 128] (SPLIT)
    long long output_batch_stride, output_row_stride, output_head_stride;
    int batch, heads, group;  // query heads to a key head
    int query_len, cache_len;  // the longest, when VARLEN
    int query_rows, key_rows;  // packed rows that there are (VARLEN)
    int pages, page_size, table_width;  // of the cache (PAGED)
    int value_dim;             // columns to store, a multiple of 8, at most VALUE_DIM
    int row_blocks;            // blocks of BLOCK_M rows in query_len
    int heads_at_once;         // heads whose K and V stay in L2 together
    int split_tiles, parts;    // the last tiles, and how many parts each has (SPLIT)
    float scale_log2;
    float value_scale;  // of the output
};

// One block of query rows of one head of one sequence.
struct Tile {
    int batch, head, row;    // row: of the first query, in its sequence
    int queries, keys;       // lengths of the sequence
    int query_at, key_at;    // where its rows begin in the tensors
    int first, blocks;       // key blocks to visit: from blocks - 1 down to first
    int whole;               // blocks below this one need no mask
    int part;                // which part of all split tiles' this is; -1: a whole tile
};

DEVICE int work_items(const Arguments& a) {
    const int tiles = a.batch * a.heads * a.row_blocks;
    return SPLIT ? tiles + a.split_tiles * (a.parts - 1) : tiles;
}

// Tiles in order: groups of heads whose K and V fit L2; within a group the longest first.
DEVICE Tile tile_of(int index, const Arguments& a) {
    const int heads = a.batch * a.heads;
    int part = -1;
    if (SPLIT) {
        const int split_from = heads * a.row_blocks - a.split_tiles;
        if (index >= split_from) {
            part = index - split_from;
            index = split_from + part / a.parts;
        }
    }
    const int first = index / (a.heads_at_once * a.row_blocks) * a.heads_at_once;
    const int here = min(a.heads_at_once, heads - first);
    const int rest = index - first * a.row_blocks;
    Tile t;
    int block = rest / here;
    const int flat = first + rest - block * here;
    if (CAUSAL) block = a.row_blocks - 1 - block;
    t.batch = flat / a.heads;
    t.head = flat - t.batch * a.heads;
    t.row = block * BLOCK_M;
    t.queries = a.query_len;
    t.keys = a.cache_len;
    t.query_at = 0;
    t.key_at = 0;
    if (VARLEN) {
        // Bad offsets must not make a fault: clamp them into the tensors.
        const int* cu_q = reinterpret_cast<const int*>(a.cu_seqlens_q) + t.batch;
        const int* cu_k = reinterpret_cast<const int*>(a.cu_seqlens_k) + t.batch;
        t.query_at = min(max(cu_q[0], 0), a.query_rows);
        t.key_at = min(max(cu_k[0], 0), a.key_rows);
        t.queries = min(max(cu_q[1], t.query_at), a.query_rows) - t.query_at;
        t.keys = min(max(cu_k[1], t.key_at), a.key_rows) - t.key_at;
        t.batch = 0;
    }
    if (PAGED) {
        const int length = reinterpret_cast<const int*>(a.cache_seqlens)[t.batch];
        t.keys = min(max(length, 0), a.cache_len);
    }
    // By the first query of the tile, and by the last.
    int seen_first = t.keys, seen_last = t.keys;
    if (CAUSAL) {
        seen_first = min(max(t.row + t.keys - t.queries + 1, 0), t.keys);
        seen_last = min(max(t.row + BLOCK_M + t.keys - t.queries, 0), t.keys);
    }
    t.whole = seen_first / BLOCK_N;
    t.blocks = (seen_last + BLOCK_N - 1) / BLOCK_N;
    t.first = 0;
    t.part = part;
    if (SPLIT && part >= 0) {
        const int all = t.blocks, mine = part % a.parts;
        t.first = all * mine / a.parts;
        t.blocks = all * (mine + 1) / a.parts;
    }
    return t;
}

// A place in a ring of stages and the parity of its current round.
template <int COUNT>
struct Ring {
    u32 stage = 0, parity = 0;
    DEVICE void next() {
        if (++stage == COUNT) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Addresses in shared memory. Barriers take 8 bytes; those of Q: one a stage and warpgroup.
struct Shared {
    u32 q, k, v;
    u32 q_full, q_empty, k_full, k_empty, v_full, v_empty;
    u32 tile;  // what the tile is, beside each q_full
    u32 told;  // a word for each warpgroup
};

// A tile as one thread tells it to a warpgroup, which would take longer to divide its index by the
// numbers of heads and blocks than a block of keys takes.
constexpr int TILE_WORDS = sizeof(Tile) / 4;
constexpr int NO_TILE = -1;  // blocks, when there is no more work

DEVICE void tell_tile(u32 target, const Tile& t) {
    const int words[TILE_WORDS] = {t.batch, t.head, t.row, t.queries, t.keys, t.query_at,
                                   t.key_at, t.first, t.blocks, t.whole, t.part};
#pragma unroll
    for (int i = 0; i < TILE_WORDS; ++i) store_shared(target + 4 * i, words[i]);
}
DEVICE Tile told_tile(u32 source) {
    int words[TILE_WORDS];
#pragma unroll
    for (int i = 0; i < TILE_WORDS; ++i) words[i] = load_shared<int>(source + 4 * i);
    return {words[0], words[1], words[2], words[3], words[4], words[5],
            words[6], words[7], words[8], words[9], words[10]};
}

// One thread loads everything, in the order in which it is needed: the keys of a block, then the
// values of the block before; and so from the last block of a tile to the first of the next.
DEVICE void produce(const TensorMap* q_map, const TensorMap* k_map, const TensorMap* v_map,
                    const Arguments& a, const Shared& s) {
    tensor_map_prefetch(q_map);
    tensor_map_prefetch(k_map);
    tensor_map_prefetch(v_map);
    const int tiles = work_items(a);
    int* counters = reinterpret_cast<int*>(a.counters);
    Ring<Q_STAGES> q_ring;
    Ring<STAGES> k_ring, v_ring;
    // Announces a tile to a warpgroup, and loads its 64 rows of Q.
    auto load_q = [&](int warpgroup, const Tile& t) {
        const u32 slot = q_ring.stage * WARPGROUPS + warpgroup;
        mbarrier_wait(s.q_empty + 8 * slot, q_ring.parity ^ 1);
        tell_tile(s.tile + 4 * TILE_WORDS * slot, t);
        const u32 full = s.q_full + 8 * slot;
        if (t.blocks == NO_TILE) {
            mbarrier_arrive(full);
            return;
        }
        mbarrier_arrive_expect(full, Q_BYTES);
#pragma unroll
        for (int c = 0; c < K_CHUNKS; ++c)
            tma_load(s.q + slot * Q_BYTES + c * 64 * 128, q_map, full, L2_EVICT_FIRST, CHUNK * c,
                     t.query_at + t.row + 64 * warpgroup, t.head, t.batch);
    };
    // A tile of K or V, page by page; what lies behind the sequence comes as zeros. The table's
    // entries are next to each other: most look-ups find theirs in L1.
    auto load_pages = [&](u32 target, const TensorMap* map, u32 full, int chunks, u32 chunk_bytes,
                          int block, const Tile& t) {
        const int* table = reinterpret_cast<const int*>(a.block_table) +
                           static_cast<long long>(t.batch) * a.table_width;
#pragma unroll 1
        for (int row = 0; row < BLOCK_N; row += PAGED ? PAGE_ROWS : BLOCK_N) {
            const int key = block * BLOCK_N + row;
            int page = a.pages;  // none: outside the tensor
            if (key < t.keys) page = min(max(table[key / a.page_size], 0), a.pages - 1);
            for (int c = 0; c < chunks; ++c)
                tma_load(target + c * chunk_bytes + row * 128, map, full, L2_EVICT_LAST, CHUNK * c,
                         key % a.page_size, t.head / a.group, page);
        }
    };
    auto load_k = [&](int block, const Tile& t) {
        mbarrier_wait(s.k_empty + 8 * k_ring.stage, k_ring.parity ^ 1);
        const u32 full = s.k_full + 8 * k_ring.stage;
        mbarrier_arrive_expect(full, K_BYTES);
        const u32 target = s.k + k_ring.stage * K_BYTES;
        if (PAGED) {
            load_pages(target, k_map, full, K_CHUNKS, BLOCK_N * 128, block, t);
        } else {
#pragma unroll
            for (int c = 0; c < K_CHUNKS; ++c)
                tma_load(target + c * BLOCK_N * 128, k_map, full, L2_EVICT_LAST, CHUNK * c,
                         t.key_at + block * BLOCK_N, t.head / a.group, t.batch);
        }
        k_ring.next();
    };
    auto load_v = [&](int block, const Tile& t) {
        mbarrier_wait(s.v_empty + 8 * v_ring.stage, v_ring.parity ^ 1);
        const u32 full = s.v_full + 8 * v_ring.stage;
        mbarrier_arrive_expect(full, V_BYTES);
        const u32 target = s.v + v_ring.stage * V_BYTES;
        if (PAGED) {
            load_pages(target, v_map, full, V_CHUNKS, V_CHUNK_BYTES, block, t);
        } else {
#pragma unroll
            for (int c = 0; c < V_CHUNKS; ++c)
                tma_load(target + c * V_CHUNK_BYTES, v_map, full, L2_EVICT_LAST,
                         V_CHUNK * c + (EIGHT ? block * BLOCK_N : 0),
                         EIGHT ? 0 : t.key_at + block * BLOCK_N, t.head / a.group, t.batch);
        }
        v_ring.next();
    };

    Tile t, older;
    bool owed = false;  // the values of the last block of `older`
    for (int index = blockIdx.x, next; index < tiles; index = next) {
        next = gridDim.x + atomicAdd(counters, 1);
        t = tile_of(index, a);
        if (VARLEN && t.row >= t.queries) continue;
        // Q last: its place is free later than those of the others.
        if (t.blocks > 0) load_k(t.blocks - 1, t);
        if (owed) load_v(older.first, older);
        for (int w = 0; w < WARPGROUPS; ++w) load_q(w, t);
        q_ring.next();
        for (int block = t.blocks - 1; block > t.first; --block) {
            load_k(block - 1, t);
            load_v(block, t);
        }
        owed = t.blocks > 0;
        older = t;
    }
    if (owed) load_v(older.first, older);
    t.blocks = NO_TILE;
    for (int w = 0; w < WARPGROUPS; ++w) load_q(w, t);
    // The last block to leave puts the counters back for the next launch.
    __threadfence();
    if (atomicAdd(counters + 1, 1) == static_cast<int>(gridDim.x) - 1) {
        counters[0] = 0;
        counters[1] = 0;
    }
}

BF16 output_type(BF16);
F16 output_type(F16);
BF16 output_type(E4M3);

using Scores = float[BLOCK_N / 2];
using Weights = u32[EIGHT ? BLOCK_N / 8 : BLOCK_N / 4];
using OutputType = decltype(output_type(DTYPE{}));
using Output = float[VALUE_DIM / 2];

// This warpgroup's 64 rows of Q: where they lie, and (Q_REGISTERS) as A fragments.
struct Queries {
    u64 matrix;
    u32 fragments[Q_REGISTERS ? HEAD_DIM * (EIGHT ? 1 : 2) / 8 : 1];
};

// Takes the fragments of rows 16 w .. 16 w + 15 from the swizzled tile: 32 bytes of each a step.
DEVICE void load_queries(Queries& q, u32 tile, u32 warp) {
    const u32 lane = lane_index();
    const u32 at = (16 * warp + lane % 16) * 128 + lane / 16 * 16;
#pragma unroll
    for (int step = 0; step < HEAD_DIM / Wgmma<BLOCK_N, DTYPE>::K; ++step) {
        u32 r[4];
        ldmatrix_x4(r, tile + step / 4 * 64 * 128 + swizzle128(at + step % 4 * 32));
#pragma unroll
        for (int i = 0; i < 4; ++i) q.fragments[Q_REGISTERS ? 4 * step + i : 0] = r[i];
    }
}

// S = Q K^T for this warpgroup's 64 rows, 32 bytes of D a step. Asynchronous: one committed group.
DEVICE void multiply_qk(Scores& scores, const Queries& q, u64 k) {
    using Product = Wgmma<BLOCK_N, DTYPE>;
#pragma unroll
    for (int step = 0; step < HEAD_DIM / Product::K; ++step) {
        const u32 within = step % 4 * 32;
        const u64 keys = descriptor_advance(k, step / 4 * BLOCK_N * 128 + within);
        if constexpr (Q_REGISTERS) {
            const u32* a = q.fragments + 4 * step;
            Product::template rs<false>(scores, a[0], a[1], a[2], a[3], keys, step != 0);
        } else {
            Product::ss(scores, descriptor_advance(q.matrix, step / 4 * 64 * 128 + within), keys,
                        step != 0);
        }
    }
    wgmma_commit();
}

// Whether a step masks its scores, as a type.
template <bool VALUE>
struct Constant {
    static constexpr bool value = VALUE;
};

// O += P V, 16 keys a step, or 32 of a transposed V. Asynchronous: one committed group.
DEVICE void multiply_pv(Output& out, const Weights& p, u64 v) {
    using Product = Wgmma<VALUE_DIM, DTYPE>;
#pragma unroll
    for (int step = 0; step < BLOCK_N / Product::K; ++step) {
        constexpr int EACH = V_CHUNK / 32;  // steps of a transposed chunk
        const u32 at = EIGHT ? step / EACH * V_CHUNK_BYTES + step % EACH * 32 : step * 2048;
        Product::template rs<!EIGHT>(out, p[4 * step], p[4 * step + 1], p[4 * step + 2],
                                     p[4 * step + 3], descriptor_advance(v, at), 1);
    }
    wgmma_commit();
}

// The running softmax of this thread's two rows (g and g + 8 of its warp's 16).
struct Softmax {
    float top[2];       // running maximum, the same in the four threads of a row
    float total[2][2];  // this thread's part of the row sum: even columns, odd columns
    float shift[2];     // added to the scaled scores: the exponents of the weights
    float rescale[2];   // what the older output is to be multiplied by
    bool moved;         // whether it is to be (the same in a whole warp)
};

// Scores of columns at or past `seen` (counted from this thread's first column) become -inf.
DEVICE void mask(Scores& scores, const int (&seen)[2]) {
#pragma unroll
    for (int i = 0; i < BLOCK_N / 2; ++i)
        if (i / 4 * 8 + i % 2 >= seen[i / 2 % 2]) scores[i] = -infinity();
}

// Moves the running maximum where a score exceeds it by much, which is seldom after a tile's first
// block, and scales the sums by it. Eight chains of comparisons, so that none waits for the one
// before it.
template <bool MASKED>
DEVICE void find_top(const Scores& scores, Softmax& state, float scale_log2) {
    float chains[2][4];
#pragma unroll
    for (int i = 0; i < BLOCK_N / 8; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& chain = chains[h][i % 2 * 2 + e];
                const float x = scores[4 * i + 2 * h + e];
                chain = i < 2 ? x : fmaxf(chain, x);
            }
        }
    }
    float top[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
        top[h] = fmaxf(fmaxf(chains[h][0], chains[h][1]), fmaxf(chains[h][2], chains[h][3]));
#pragma unroll
    for (int h = 0; h < 2; ++h) top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
#pragma unroll
    for (int h = 0; h < 2; ++h) top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
    // Written so that a first block (top -inf) and NaN do not stay.
    const bool stay = (top[0] - state.top[0]) * scale_log2 <= LAZY_LOG2 &&
                      (top[1] - state.top[1]) * scale_log2 <= LAZY_LOG2;
    state.moved = __any_sync(0xffffffffu, !stay);
    if (state.moved) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float newer = fmaxf(state.top[h], top[h]);
            const float base = MASKED && newer == -infinity() ? 0.0f : newer;
            state.rescale[h] = exp2_fast((state.top[h] - base) * scale_log2);
            state.top[h] = newer;
            state.total[h][0] *= state.rescale[h];
            state.total[h][1] *= state.rescale[h];
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float base = MASKED && state.top[h] == -infinity() ? 0.0f : state.top[h];
        state.shift[h] = fmaf(-base, scale_log2, WEIGHT_LOG2);
    }
}

// Turns scores into unnormalised weights, in place.
DEVICE void weigh(Scores& scores, Softmax& state, float scale_log2) {
#pragma unroll
    for (int i = 0; i < BLOCK_N / 2; ++i) {
        const int h = i / 2 % 2, e = i % 2;
        scores[i] = exp2_fast(fmaf(scores[i], scale_log2, state.shift[h]));
        state.total[h][e] += scores[i];
    }
}

// D's fragment becomes A's. Of 16 bits they agree. Of 8 bits, a thread's A registers hold columns
// 4c .. 4c + 3 and 16 + 4c .., where its scores are columns 8i + 2c, 8i + 2c + 1: they are taken as
// they lie, and the transposed V has its keys in that order.
DEVICE void round_weights(Weights& p, const Scores& scores) {
    if constexpr (EIGHT) {
#pragma unroll
        for (int i = 0; i < BLOCK_N / 8; ++i) {
            const int at = i / 2 * 8 + i % 2 * 2;  // columns 16 (i / 2) .., row half i % 2
            p[i] = pack_e4m3(scores[at], scores[at + 1], scores[at + 4], scores[at + 5]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < BLOCK_N / 4; ++i)
            p[i] = pack<OutputType>(scores[2 * i], scores[2 * i + 1]);
    }
}

DEVICE void rescale(Output& out, const Softmax& state) {
    if (!state.moved) return;
#pragma unroll
    for (int i = 0; i < VALUE_DIM / 2; ++i) out[i] *= state.rescale[i / 2 % 2];
}

// Normalises and stores this warpgroup's 64 rows. The four threads of a row exchange pairs of
// columns until each holds eight in a row, and store those as 16 bytes.
DEVICE void store(const Output& out, const Softmax& state, const Tile& t, const Arguments& a,
                  int row, u32 column) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float total = state.total[h][0] + state.total[h][1];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        // No visible key: 0.
        const float inverse = total == 0.0f ? 0.0f : a.value_scale * reciprocal_fast(total);
        const bool inside = row + 8 * h < t.queries;
        u16* line = reinterpret_cast<u16*>(a.output) + t.batch * a.output_batch_stride +
                    static_cast<long long>(t.query_at + row + 8 * h) * a.output_row_stride +
                    t.head * a.output_head_stride;
#pragma unroll
        for (int j = 0; j < VALUE_DIM / 32; ++j) {
            u32 w[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int at = 4 * (4 * j + k) + 2 * h;
                w[k] = pack<OutputType>(out[at] * inverse, out[at + 1] * inverse);
            }
            const bool odd = column & 1, upper = column & 2;
            const u32 s0 = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
            const u32 s1 = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
            (odd ? w[0] : w[1]) = s0;
            (odd ? w[2] : w[3]) = s1;
            const u32 s2 = __shfl_xor_sync(0xffffffffu, upper ? w[0] : w[2], 2);
            const u32 s3 = __shfl_xor_sync(0xffffffffu, upper ? w[1] : w[3], 2);
            (upper ? w[0] : w[2]) = s2;
            (upper ? w[1] : w[3]) = s3;
            store_if(line + 32 * j + 8 * column, make_uint4(w[0], w[1], w[2], w[3]),
                     inside && 32 * j + 8 * static_cast<int>(column) < a.value_dim);
        }
    }
}

DEVICE void release(u32 barrier) {
    mbarrier_arrive_if(barrier, lane_index() == 0);
}

// A partly filled last block of packed sequences holds rows of the next sequence, one of pages what
// a page held before. Their weights are zero, but 0 * inf is not: clear them. Every warpgroup
// clears all that it will read.
DEVICE void clear_values(u32 v, int valid) {
    const u32 thread = threadIdx.x % 128;
    for (u32 i = thread; i < static_cast<u32>(BLOCK_N - valid) * V_CHUNKS * 8; i += 128) {
        const u32 row = valid + i / (V_CHUNKS * 8), chunk = i / 8 % V_CHUNKS, part = i % 8;
        store_shared(v + chunk * BLOCK_N * 128 + row * 128 + part * 16, make_uint4(0, 0, 0, 0));
    }
    fence_async_shared();
    barrier_wait(8 + threadIdx.x / 128, 128);
}

DEVICE void clear(Output& out) {
#pragma unroll
    for (int i = 0; i < VALUE_DIM / 2; ++i) out[i] = 0.0f;
}

// Leaves this part where the others find it. True for the last of a tile's parts to come here,
// which then has their sum; the sum runs over the parts in their order, whoever comes last.
DEVICE bool add_parts(Output& out, Softmax& state, const Tile& t, const Arguments& a,
                      u32 warpgroup, u32 told) {
    constexpr int EACH = VALUE_DIM / 2 + 4;  // values a thread
    const u32 thread = threadIdx.x % 128;
    const int tile = t.part / a.parts;
    float* all = reinterpret_cast<float*>(a.partials) + thread;
    auto part_at = [&](int part) {
        return all + static_cast<long long>(part * WARPGROUPS + warpgroup) * EACH * 128;
    };
    float* mine = part_at(t.part);
#pragma unroll
    for (int i = 0; i < VALUE_DIM / 2; ++i) mine[i * 128] = out[i];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        mine[(VALUE_DIM / 2 + h) * 128] = state.top[h];
        mine[(VALUE_DIM / 2 + 2 + h) * 128] = state.total[h][0] + state.total[h][1];
    }
    __threadfence();
    barrier_wait(8 + warpgroup, 128);
    int* arrived = reinterpret_cast<int*>(a.counters) + 2 + tile * WARPGROUPS + warpgroup;
    if (thread == 0) store_shared(told + 4 * warpgroup, atomicAdd(arrived, 1));
    barrier_wait(8 + warpgroup, 128);
    if (load_shared<int>(told + 4 * warpgroup) != a.parts - 1) return false;
    __threadfence();
    if (thread == 0) *arrived = 0;
    float top[2] = {-infinity(), -infinity()};
    for (int i = 0; i < a.parts; ++i) {
        const volatile float* part = part_at(tile * a.parts + i);
#pragma unroll
        for (int h = 0; h < 2; ++h) top[h] = fmaxf(top[h], part[(VALUE_DIM / 2 + h) * 128]);
    }
    state.total[0][0] = state.total[0][1] = state.total[1][0] = state.total[1][1] = 0.0f;
    clear(out);
    for (int i = 0; i < a.parts; ++i) {
        const volatile float* part = part_at(tile * a.parts + i);
        float scale[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float base = top[h] == -infinity() ? 0.0f : top[h];
            scale[h] = exp2_fast((part[(VALUE_DIM / 2 + h) * 128] - base) * a.scale_log2);
            state.total[h][0] =
                fmaf(part[(VALUE_DIM / 2 + 2 + h) * 128], scale[h], state.total[h][0]);
        }
#pragma unroll
        for (int j = 0; j < VALUE_DIM / 2; ++j)
            out[j] = fmaf(part[j * 128], scale[j / 2 % 2], out[j]);
    }
    return true;
}

DEVICE void consume(u32 warpgroup, const Arguments& a, const Shared& s) {
    const u32 warp = warp_index() % 4, lane = lane_index(), column = lane % 4;
    const int row_in_tile = 64 * warpgroup + 16 * warp + lane / 4;
    const u32 turn = NAMED_TURN + warpgroup;
    const u32 next_turn = NAMED_TURN + (warpgroup + 1) % WARPGROUPS;
    if (PINGPONG && warpgroup == WARPGROUPS - 1) barrier_arrive(next_turn, 256);

    Ring<Q_STAGES> q_ring;
    Ring<STAGES> k_ring, v_ring;
    Scores scores;
    Weights p;
    Output out;
    Softmax state;
    Tile t;
    Queries q;
    u32 q_slot;  // of t

    // Waits for the next tile; false when there is none.
    auto fetch = [&] {
        q_slot = q_ring.stage * WARPGROUPS + warpgroup;
        mbarrier_wait(s.q_full + 8 * q_slot, q_ring.parity);
        q_ring.next();

        t = told_tile(s.tile + 4 * TILE_WORDS * q_slot);
        if (t.blocks == NO_TILE) return false;
        q.matrix = matrix_descriptor(s.q + q_slot * Q_BYTES, 1024);
        if (Q_REGISTERS) {
            load_queries(q, s.q + q_slot * Q_BYTES, warp);
            __syncwarp();
            release(s.q_empty + 8 * q_slot);
        }
        return true;
    };
    // After the product of the last block, which is the last that reads Q.
    auto queries_read = [&] {
        if (!Q_REGISTERS) release(s.q_empty + 8 * q_slot);
    };
    auto k_matrix = [&] { return matrix_descriptor(s.k + k_ring.stage * K_BYTES, 1024); };
    auto v_matrix = [&] {
        return matrix_descriptor<V_SWIZZLE>(s.v + v_ring.stage * V_BYTES, 8 * V_ROW_BYTES,
                                            EIGHT ? 16 : V_CHUNK_BYTES);
    };
    auto mask_block = [&](const Tile& tile, int block) {
        int seen[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            seen[h] = tile.keys;
            if (CAUSAL) {
                const int row = tile.row + row_in_tile + 8 * h;
                seen[h] = min(seen[h], row + tile.keys - tile.queries + 1);
            }
            seen[h] -= block * BLOCK_N + 2 * static_cast<int>(column);
        }
        mask(scores, seen);
    };
    auto wait_v = [&](const Tile& tile, int block) {
        mbarrier_wait(s.v_full + 8 * v_ring.stage, v_ring.parity);
        if (!DENSE && (block + 1) * BLOCK_N > tile.keys)
            clear_values(s.v + v_ring.stage * V_BYTES, tile.keys - block * BLOCK_N);
    };
    auto scores_ready = [&] {
        registers_pin(scores);
        release(s.k_empty + 8 * k_ring.stage);
        k_ring.next();
    };
    auto values_added = [&] {
        wgmma_wait<0>();
        registers_pin(out);
        registers_pin(p);
        release(s.v_empty + 8 * v_ring.stage);
        v_ring.next();
    };
    // The scores of one block, and while they are weighed the values of the block before it
    // (`older`, of this tile or of the last) are added.
    auto products = [&](const Tile& older, int older_block) {
        mbarrier_wait(s.k_full + 8 * k_ring.stage, k_ring.parity);
        if (PINGPONG) barrier_wait(turn, 256);
        registers_pin(scores);
        wgmma_fence();
        multiply_qk(scores, q, k_matrix());
        wait_v(older, older_block);
        registers_pin(p);
        registers_pin(out);
        wgmma_fence();
        multiply_pv(out, p, v_matrix());
        if (PINGPONG) barrier_arrive(next_turn, 256);
        wgmma_wait<1>();
        scores_ready();
    };
    // The weights of the scores. `added`: waits for the product that reads the older weights.
    auto weigh_block = [&](auto masked, int block, auto added) {
        if (block == t.first) queries_read();
        if (decltype(masked)::value && block >= t.whole) mask_block(t, block);
        find_top<decltype(masked)::value>(scores, state, a.scale_log2);
        added();
        weigh(scores, state, a.scale_log2);
        round_weights(p, scores);
    };
    auto step = [&](auto masked, int block) {
        products(t, block + 1);
        weigh_block(masked, block, [&] {
            values_added();
            rescale(out, state);
        });
    };
    const Softmax fresh = {{-infinity(), -infinity()}, {}, {}, {1.0f, 1.0f}, false};

    bool some = fetch();
    while (some) {
        clear(out);
        if (t.blocks == 0) {  // rows that see no key
            __syncwarp();
            queries_read();
            state = {};
            store(out, state, t, a, t.row + row_in_tile, column);
            some = fetch();
            continue;
        }
        mbarrier_wait(s.k_full + 8 * k_ring.stage, k_ring.parity);
        registers_pin(scores);
        wgmma_fence();
        multiply_qk(scores, q, k_matrix());
        wgmma_wait<0>();
        scores_ready();
        state = fresh;
        weigh_block(Constant<true>{}, t.blocks - 1, [] {});
        bool joined;  // to the next tile, without draining
        do {
            int block = t.blocks - 2;
            for (; block >= max(t.whole, t.first); --block) step(Constant<true>{}, block);
            for (; block >= t.first; --block) step(Constant<false>{}, block);
            const Tile older = t;
            some = fetch();
            joined = some && t.blocks > 0 && older.part < 0;  // parts end with more work
            if (joined) {
                const Softmax ended = state;
                products(older, older.first);
                state = fresh;
                weigh_block(Constant<true>{}, t.blocks - 1, values_added);
                store(out, ended, older, a, older.row + row_in_tile, column);
                clear(out);
            } else {
                wait_v(older, older.first);
                registers_pin(p);
                registers_pin(out);
                wgmma_fence();
                multiply_pv(out, p, v_matrix());
                values_added();
                if (!SPLIT || older.part < 0 || add_parts(out, state, older, a, warpgroup, s.told))
                    store(out, state, older, a, older.row + row_in_tile, column);
            }
        } while (joined);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_hopper(const __grid_constant__ TensorMap q_map,
                     const __grid_constant__ TensorMap k_map,
                     const __grid_constant__ TensorMap v_map,
                     const __grid_constant__ Arguments a) {
    extern __shared__ unsigned char memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u;
    constexpr u32 Q_SLOTS = Q_STAGES * WARPGROUPS;
    Shared s;
    s.q_full = base;
    s.q_empty = s.q_full + 8 * Q_SLOTS;
    s.k_full = s.q_empty + 8 * Q_SLOTS;
    s.k_empty = s.k_full + 8 * STAGES;
    s.v_full = s.k_empty + 8 * STAGES;
    s.v_empty = s.v_full + 8 * STAGES;
    s.tile = s.v_empty + 8 * STAGES;
    s.told = s.tile + 4 * TILE_WORDS * Q_SLOTS;
    s.q = base + BARRIER_BYTES;
    s.k = s.q + Q_SLOTS * Q_BYTES;
    s.v = s.k + STAGES * K_BYTES;

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < Q_SLOTS; ++i) {
            mbarrier_init(s.q_full + 8 * i, 1);
            mbarrier_init(s.q_empty + 8 * i, 4);  // the warps of one warpgroup
        }
        for (int i = 0; i < STAGES; ++i) {
            mbarrier_init(s.k_full + 8 * i, 1);
            mbarrier_init(s.k_empty + 8 * i, 4 * WARPGROUPS);
            mbarrier_init(s.v_full + 8 * i, 1);
            mbarrier_init(s.v_empty + 8 * i, 4 * WARPGROUPS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();

    const u32 warpgroup = warp_index() / 4;
    if (warpgroup == 0) {
        registers_release<PRODUCER_REGISTERS>();
        if (warp_index() == 0 && elect_one()) produce(&q_map, &k_map, &v_map, a, s);
    } else {
        registers_claim<CONSUMER_REGISTERS>();
        consume(warpgroup - 1, a, s);
    }
}
