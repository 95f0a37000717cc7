// kernels/cuda/hopper.cuh for a CPU: the same functions, each CUDA thread a fiber, so that a
// kernel's logic (indices, layouts, masks, pipeline) runs where there is no GPU.
//
// Asynchrony is adversarial. A copy poisons its target when it is issued and lands later; a matrix
// product may read its operands as early as its issue or as late as the wait for it, and its
// accumulators are NaN in between; which fiber runs next is drawn. A kernel that reads before it
// waits, or hands a buffer back too early, computes NaN under some seed; one that waits for what
// never comes is reported as a deadlock. Reported are also a product or a copy out of shared memory
// that a thread wrote and did not fence for it, and a write to what a product reads before its wait.
// Not modelled: registers of an asynchronous product that are rewritten before its wait, writes
// through plain pointers without a fence, timing.
//
// Layouts follow the PTX ISA manual: "Asynchronous Warpgroup Level Matrix Instructions" (register
// fragments, shared memory layout, matrix descriptor) and "Tensors" (tiled mode, swizzling).
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

struct BF16 {};
struct F16 {};
struct E4M3 {};

struct alignas(64) TensorMap {
    char bytes[128];
};

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __restrict__
#define __launch_bounds__(...)
#define DEVICE inline

using std::max;
using std::min;
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace host {

struct Index {
    u32 x = 0, y = 0, z = 0;
};

// What a tensor map holds here (tests/hopper/emulator.py packs it).
struct Tensor {
    u64 pointer;
    u32 element_bytes, rank, swizzle, unused;
    u32 shape[5], box[5];
    u64 stride[5];  // bytes; stride[0] is the element's
};
static_assert(sizeof(Tensor) <= 128, "a tensor map has 128 bytes");

struct Barrier {
    bool valid = false;
    int count = 0, pending = 0;
    long long bytes = 0;
    u32 phase = 0;
};

struct Block;

struct Product {  // one wgmma of a warpgroup
    int n = 0, depth = 0, issued = 0;
    bool from_registers = false, transpose_a = false, transpose_b = false, accumulate = false;
    int kind = 0;  // 0 bf16, 1 f16, 2 e4m3
    u64 a = 0, b = 0;
    long long group = 0;
    struct Part {
        float* d = nullptr;
        u32 a[4] = {};
    };
    std::vector<Part> parts = std::vector<Part>(128);
    // What it reads of shared memory, in units of 16 bytes: each warp its rows of A, all of them B.
    std::vector<u32> reads_a[4], reads_b;
    bool waited[4] = {};
};

struct Warpgroup {
    std::vector<std::unique_ptr<Product>> products;
    size_t executed = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Block* block = nullptr;
    u32 thread = 0;
    bool done = false;
    std::function<bool()> ready;
    std::string waits_for;
    u64 cluster_generation = 0;  // of the cluster's barrier, when this thread last arrived
    // wgmma
    size_t issued = 0, retired = 0;
    long long group = 0;
    std::map<float*, std::vector<float>> in_flight;
    // copies of this thread that have not landed; bulk stores committed
    int copies = 0;
    std::vector<std::pair<u32, u32>> written;  // (offset, bytes) since the last proxy fence
    std::deque<std::pair<long long, std::function<void()>>> stores;
    long long store_group = 0;
};

struct Exchange {  // lanes of a warp meeting
    u32 arrived = 0, left = 0;
    u64 generation = 0;
    u64 value[32], result[32];
};

struct Named {
    u32 arrived = 0, held = 0, counted = 0;  // held, counted: barrier_count
    u64 generation = 0;
};

struct Block {
    Index index;
    u32 rank = 0, first_of_cluster = 0;  // of its cluster
    size_t first_fiber = 0;
    std::vector<u8> room;
    u8* memory = nullptr;
    std::vector<u16> unfenced;  // by byte: 1 + the thread whose write no proxy fence followed
    std::vector<int> readers;   // by 16 bytes: products that were not yet waited for
    std::map<u32, Barrier> barriers;
    std::map<u32, Named> named;
    std::vector<Exchange> warps;
    std::vector<Warpgroup> warpgroups;
};

struct Machine {
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::unique_ptr<Fiber>> fibers;
    Fiber* now = nullptr;
    ucontext_t scheduler;
    Index grid, block;
    u32 threads = 0, cluster = 1;
    int mode = 0;  // 0: everything at once; 1: everything as late as can be; 2: drawn
    std::mt19937 draw;
    std::vector<std::pair<long long, std::function<void()>>> pending;  // due step, effect
    long long step = 0, most_steps = 0;
    std::string failure;
    std::map<u64, Named> clusters;
};
inline Machine* machine = nullptr;

constexpr u32 SHARED_BASE = 0x410;  // as on a device: not aligned to the swizzle's pattern
constexpr u32 SHARED_WINDOW = 1 << 18;

struct Abort {};
[[noreturn]] inline void fail(const std::string& why) {
    if (machine->failure.empty())
        machine->failure = "block " + std::to_string(machine->now->block->index.x) + " thread " +
                           std::to_string(machine->now->thread) + ": " + why;
    throw Abort{};
}

inline void pause_until(std::function<bool()> ready, std::string what) {
    Fiber* me = machine->now;
    if (!machine->failure.empty()) throw Abort{};
    me->ready = std::move(ready);
    me->waits_for = std::move(what);
    swapcontext(&me->context, &machine->scheduler);
    if (!machine->failure.empty()) throw Abort{};
}
inline void yield() {
    pause_until([] { return true; }, "its turn");
}

// An effect of the asynchronous machinery, some time after now.
inline void later(std::function<void()> effect) {
    Machine& m = *machine;
    if (m.mode == 0) {
        effect();
        return;
    }
    // Some soon, some after every fiber has had many turns: a copy overtakes those before it.
    constexpr u32 TURNS[3] = {1, 8, 64};
    const long long wait =
        m.mode == 1 ? 1 << 20 : m.draw() % (TURNS[m.draw() % 3] * m.fibers.size());
    m.pending.emplace_back(m.step + wait, std::move(effect));
}

inline u8* shared(u32 address, u32 bytes, Block* block = nullptr) {
    if (!block) block = machine->now->block;
    if (address < SHARED_BASE || address + bytes > SHARED_BASE + block->room.size() - 64)
        fail("shared address " + std::to_string(address) + " outside the block's memory");
    return block->memory + (address - SHARED_BASE);
}
// Nothing may write what an asynchronous product reads before those who free it waited for it.
inline void free_of_readers(u32 address, u32 bytes, Block* block) {
    const u32 first = (address - SHARED_BASE) / 16, last = (address - SHARED_BASE + bytes - 1) / 16;
    for (u32 unit = first; unit <= last; ++unit)
        if (block->readers[unit])
            fail("shared address " + std::to_string(address) +
                 " is overwritten while a matrix product that reads it was not waited for");
}
// An ordinary write to shared memory.
inline void write(u32 address, const void* from, u32 bytes) {
    Fiber* me = machine->now;
    u8* to = shared(address, bytes);
    // The same bytes again do no harm (warpgroups that clear what they share).
    if (std::memcmp(to, from, bytes)) free_of_readers(address, bytes, me->block);
    std::memcpy(to, from, bytes);
    const u32 offset = address - SHARED_BASE;
    std::fill_n(me->block->unfenced.begin() + offset, bytes, static_cast<u16>(me->thread + 1));
    me->written.emplace_back(offset, bytes);
}
// What the asynchronous proxy reads.
inline const u8* fenced(u32 address, u32 bytes, Block* block) {
    const u8* at = shared(address, bytes, block);
    for (u32 i = 0; i < bytes; ++i)
        if (const u16 writer = block->unfenced[address - SHARED_BASE + i])
            fail("a matrix product or copy reads what thread " + std::to_string(writer - 1) +
                 " wrote without a proxy fence");
    return at;
}
// What a copy into shared memory overwrites needs no fence any more.
inline u8* overwritten(u32 address, u32 bytes, Block* block) {
    u8* at = shared(address, bytes, block);
    free_of_readers(address, bytes, block);
    std::fill_n(block->unfenced.begin() + (address - SHARED_BASE), bytes, 0);
    return at;
}
inline Block* peer(u32 rank) {
    Block* mine = machine->now->block;
    return machine->blocks.at(mine->first_of_cluster + rank).get();
}

inline Barrier& barrier(u32 address, Block* block = nullptr) {
    if (!block) block = machine->now->block;
    Barrier& found = block->barriers[address];
    if (!found.valid) fail("mbarrier at " + std::to_string(address) + " is not initialised");
    return found;
}
inline void settle(Barrier& b) {
    if (b.pending == 0 && b.bytes == 0) {
        b.phase ^= 1;
        b.pending = b.count;
    }
}
inline void arrive(u32 address, Block* block = nullptr) {
    Barrier& b = barrier(address, block);
    if (b.pending <= 0) fail("more arrivals at an mbarrier than its count");
    --b.pending;
    settle(b);
}

// Lanes of a warp meet; `act` runs once when all of them are there.
inline u64 meet(u64 value, const char* what, const std::function<void(Exchange&)>& act) {
    Fiber* me = machine->now;
    Exchange& x = me->block->warps[me->thread / 32];
    const u32 lane = me->thread % 32;
    pause_until([&x] { return x.left == 0; }, std::string(what) + " (the one before is not over)");
    x.value[lane] = value;
    if (++x.arrived == 32) {
        act(x);
        x.arrived = 0;
        x.left = 32;
        ++x.generation;
    } else {
        const u64 before = x.generation;
        pause_until([&x, before] { return x.generation != before; }, what);
    }
    const u64 result = x.result[lane];
    --x.left;
    return result;
}

inline float from_bf16(u16 bits) {
    const u32 wide = static_cast<u32>(bits) << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}
inline u16 to_bf16(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    bits += 0x7fff + ((bits >> 16) & 1);
    return static_cast<u16>(bits >> 16);
}
inline float from_f16(u16 bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return static_cast<float>(half);
}
inline u16 to_f16(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    u16 bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
inline float from_e4m3(u8 bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    float size;
    if (exponent == 15 && mantissa == 7)
        size = std::numeric_limits<float>::quiet_NaN();
    else if (exponent == 0)
        size = std::ldexp(static_cast<float>(mantissa), -9);
    else
        size = std::ldexp(1.0f + mantissa / 8.0f, exponent - 7);
    return bits & 0x80 ? -size : size;
}
inline u8 to_e4m3(float x) {
    if (x != x) return 0x7f;
    u8 best = 0;
    const float size = std::min(std::fabs(x), 448.0f);
    float least = std::numeric_limits<float>::infinity();
    for (int code = 0; code < 0x7f; ++code) {
        const float off = std::fabs(from_e4m3(static_cast<u8>(code)) - size);
        if (off < least || (off == least && code % 2 == 0)) {
            least = off;
            best = static_cast<u8>(code);
        }
    }
    return std::signbit(x) ? best | 0x80 : best;
}

inline u32 swizzled(u32 address, u32 mode) {  // mode as in a matrix descriptor
    switch (mode) {
        case 1: return address ^ ((address >> 7 & 7) << 4);
        case 2: return address ^ ((address >> 7 & 3) << 4);
        case 3: return address ^ ((address >> 7 & 1) << 4);
        default: return address;
    }
}

// Where element (mn, k) of an operand lies in shared memory.
inline u32 operand_address(u64 descriptor, bool transposed, int kind, int mn, int k) {
    const u32 size = kind == 2 ? 1 : 2;
    const u32 start = (descriptor & 0x3fff) << 4;
    const u32 leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    const u32 mode = descriptor >> 62;
    const u32 row_bytes = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 16;
    if (descriptor >> 49 & 7) fail("matrix descriptor with a base offset");
    u32 address;
    if (!transposed) {
        const u32 byte = k * size;
        address = start + mn % 8 * row_bytes + mn / 8 * stride;
        if (mode == 0)
            address += byte / 16 * leading + byte % 16;
        else
            address += byte;
    } else {
        if (kind == 2) fail("8-bit operands cannot be transposed");
        if (mode == 0) fail("transposed operands without a swizzle are not modelled");
        const u32 wide = row_bytes / size;
        address = start + mn % wide * size + k % 8 * row_bytes + k / 8 * stride + mn / wide * leading;
    }
    return swizzled(address, mode);
}
inline float operand(Block* block, u64 descriptor, bool transposed, int kind, int mn, int k) {
    const u32 address = operand_address(descriptor, transposed, kind, mn, k);
    const u8* at = fenced(address, kind == 2 ? 1 : 2, block);
    if (kind == 2) return from_e4m3(*at);
    u16 bits;
    std::memcpy(&bits, at, 2);
    return kind == 0 ? from_bf16(bits) : from_f16(bits);
}

// Marks what a product reads, from its issue to the waits of the warps that read it.
inline void begin_reading(Block* block, Product& p) {
    const int each = p.kind == 2 ? 16 : 8;  // elements of 16 bytes
    auto units = [&](u64 descriptor, bool transposed, int from, int to) {
        std::vector<u32> found;
        const int mn_step = transposed ? each : 1, k_step = transposed ? 1 : each;
        for (int mn = from; mn < to; mn += mn_step)
            for (int k = 0; k < p.depth; k += k_step)
                found.push_back(
                    (operand_address(descriptor, transposed, p.kind, mn, k) - SHARED_BASE) / 16);
        for (const u32 unit : found)
            if (unit < block->readers.size()) ++block->readers[unit];
        return found;
    };
    p.reads_b = units(p.b, p.transpose_b, 0, p.n);
    for (int warp = 0; warp < 4 && !p.from_registers; ++warp)
        p.reads_a[warp] = units(p.a, p.transpose_a, 16 * warp, 16 * warp + 16);
}
inline void end_reading(Block* block, Product& p, u32 warp) {
    if (p.waited[warp]) return;
    p.waited[warp] = true;
    auto free = [&](const std::vector<u32>& units) {
        for (const u32 unit : units)
            if (unit < block->readers.size()) --block->readers[unit];
    };
    free(p.reads_a[warp]);
    if (p.waited[0] && p.waited[1] && p.waited[2] && p.waited[3]) free(p.reads_b);
}

// A tensor core adds e4m3 products with some 14 bits (DeepSeek-V3, arXiv 2412.19437, section 3.3.2):
// here every term is cut off 13 bits below the largest one's first, and so is their sum.
inline double cut_off(double x, double largest) {
    if (!(largest > 0) || !std::isfinite(largest)) return x;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 13);
    return std::trunc(x / unit) * unit;
}
inline float add_e4m3(double sum, const float* a, const float* b, int depth) {
    double terms[33] = {sum}, largest = std::fabs(sum);
    for (int k = 0; k < depth; ++k) {
        terms[k + 1] = static_cast<double>(a[k]) * b[k];
        largest = std::fmax(largest, std::fabs(terms[k + 1]));
    }
    double all = 0;
    for (int k = 0; k <= depth; ++k) all += cut_off(terms[k], largest);
    return static_cast<float>(cut_off(all, std::fabs(all)));
}

inline void execute(Block* block, u32 first_thread, Product& p) {
    std::vector<float> a(64 * p.depth), b(p.n * p.depth);
    for (int k = 0; k < p.depth; ++k) {
        for (int n = 0; n < p.n; ++n)
            b[n * p.depth + k] = operand(block, p.b, p.transpose_b, p.kind, n, k);
        if (!p.from_registers)
            for (int m = 0; m < 64; ++m)
                a[m * p.depth + k] = operand(block, p.a, p.transpose_a, p.kind, m, k);
    }
    if (p.from_registers) {
        const int each = p.kind == 2 ? 4 : 2;
        for (int t = 0; t < 128; ++t)
            for (int r = 0; r < 4; ++r)
                for (int e = 0; e < each; ++e) {
                    const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (r % 2);
                    const int k = t % 4 * each + e + r / 2 * 4 * each;
                    const u32 word = p.parts[t].a[r];
                    a[row * p.depth + k] =
                        p.kind == 2 ? from_e4m3(static_cast<u8>(word >> 8 * e))
                        : p.kind == 0 ? from_bf16(static_cast<u16>(word >> 16 * e))
                                      : from_f16(static_cast<u16>(word >> 16 * e));
                }
    }
    for (u32 t = 0; t < 128; ++t) {
        Fiber* fiber = machine->fibers[block->first_fiber + first_thread + t].get();
        std::vector<float>& d = fiber->in_flight.at(p.parts[t].d);
        for (int i = 0; i < p.n / 2; ++i) {
            const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2);
            const int column = i / 4 * 8 + t % 4 * 2 + i % 2;
            double sum = p.accumulate ? d[i] : 0.0;
            if (p.kind == 2) {
                d[i] = add_e4m3(sum, &a[row * p.depth], &b[column * p.depth], p.depth);
                continue;
            }
            for (int k = 0; k < p.depth; ++k)
                sum += static_cast<double>(a[row * p.depth + k]) * b[column * p.depth + k];
            d[i] = static_cast<float>(sum);
        }
    }
}
inline void execute_up_to(Block* block, u32 warpgroup, size_t count) {
    Warpgroup& group = block->warpgroups[warpgroup];
    while (group.executed < count) {
        execute(block, warpgroup * 128, *group.products[group.executed]);
        ++group.executed;
    }
}

__attribute__((noinline)) inline void issue(float* d, int n, int depth, int kind, const u32* regs,
                                            u64 a, u64 b, bool transpose_a, bool transpose_b,
                                            bool accumulate) {
    Fiber* me = machine->now;
    Block* block = me->block;
    const u32 which = me->thread / 128;
    Warpgroup& group = block->warpgroups.at(which);
    if (me->issued == group.products.size())
        group.products.push_back(std::make_unique<Product>());
    Product& p = *group.products[me->issued];
    if (p.issued == 0) {
        p.n = n, p.depth = depth, p.kind = kind, p.from_registers = regs != nullptr;
        p.a = a, p.b = b, p.transpose_a = transpose_a, p.transpose_b = transpose_b;
        p.accumulate = accumulate, p.group = me->group;
        begin_reading(block, p);
    } else if (p.n != n || p.kind != kind || p.from_registers != (regs != nullptr) || p.a != a ||
               p.b != b || p.transpose_b != transpose_b || p.transpose_a != transpose_a ||
               p.accumulate != accumulate || p.group != me->group) {
        fail("threads of a warpgroup issue different matrix products");
    }
    Product::Part& part = p.parts[me->thread % 128];
    part.d = d;
    if (regs) std::memcpy(part.a, regs, sizeof part.a);
    auto& flying = me->in_flight[d];
    if (flying.empty()) {
        flying.assign(d, d + n / 2);
        std::fill(d, d + n / 2, std::numeric_limits<float>::quiet_NaN());
    } else if (flying.size() != static_cast<size_t>(n / 2)) {
        fail("one accumulator in matrix products of two shapes");
    }
    ++me->issued;
    if (++p.issued == 128) {
        const bool now = machine->mode == 0 || (machine->mode == 2 && machine->draw() % 2);
        if (now) execute_up_to(block, which, me->issued);
    }
}

__attribute__((noinline)) inline void retire(int pending) {
    Fiber* me = machine->now;
    Block* block = me->block;
    const u32 which = me->thread / 128;
    Warpgroup& group = block->warpgroups.at(which);
    const long long last = me->group - 1 - pending;  // the newest group that must be over
    size_t upto = me->retired;
    while (upto < me->issued && group.products[upto]->group <= last) ++upto;
    if (upto == me->retired) return;
    Product* newest = group.products[upto - 1].get();
    pause_until([newest] { return newest->issued == 128; }, "wgmma by all of the warpgroup");
    execute_up_to(block, which, upto);
    const u32 t = me->thread % 128;
    for (size_t i = me->retired; i < upto; ++i) end_reading(block, *group.products[i], t / 32);
    me->retired = upto;
    for (auto it = me->in_flight.begin(); it != me->in_flight.end();) {
        bool flies = false;
        for (size_t i = upto; i < me->issued; ++i)
            flies = flies || group.products[i]->parts[t].d == it->first;
        if (flies) {
            ++it;
        } else {
            std::copy(it->second.begin(), it->second.end(), it->first);
            it = me->in_flight.erase(it);
        }
    }
}

inline const Tensor& tensor(const TensorMap* map) {
    const auto* t = reinterpret_cast<const Tensor*>(map->bytes);
    if (t->rank < 1 || t->rank > 5) fail("not a tensor map");
    return *t;
}

// Visits the box: (byte offset in shared memory, global address or null when outside).
inline void visit(const Tensor& t, const int (&at)[5],
                  const std::function<void(u32, u8*)>& element) {
    u32 total = 1;
    for (u32 i = 0; i < t.rank; ++i) total *= t.box[i];
    for (u32 i = 0; i < total; ++i) {
        u32 rest = i;
        u64 address = t.pointer;
        bool inside = true;
        for (u32 d = 0; d < t.rank; ++d) {
            const long long c = static_cast<long long>(at[d]) + rest % t.box[d];
            rest /= t.box[d];
            inside = inside && c >= 0 && c < static_cast<long long>(t.shape[d]);
            address += c * static_cast<long long>(t.stride[d]);
        }
        element(i * t.element_bytes, inside ? reinterpret_cast<u8*>(address) : nullptr);
    }
}
inline u32 box_bytes(const Tensor& t) {
    u32 bytes = t.element_bytes;
    for (u32 i = 0; i < t.rank; ++i) bytes *= t.box[i];
    return bytes;
}
inline u32 swizzle_mode(const Tensor& t) {
    return t.swizzle == 128 ? 1 : t.swizzle == 64 ? 2 : t.swizzle == 32 ? 3 : 0;
}

inline void load(u32 target, const TensorMap* map, u32 barrier_address, Block* block,
                 std::vector<int> coordinates) {
    const Tensor t = tensor(map);
    if (coordinates.size() != t.rank) fail("a copy with another number of coordinates than its map");
    if (target % 128) fail("the target of a tensor copy is not aligned to 128 bytes");
    if (t.swizzle && t.box[0] * t.element_bytes > t.swizzle) fail("a box wider than its swizzle");
    int at[5] = {};
    std::copy(coordinates.begin(), coordinates.end(), at);
    std::memset(overwritten(target, box_bytes(t), block), 0xff, box_bytes(t));
    Fiber* issuer = machine->now;
    const std::vector<int> where(at, at + 5);
    later([t, target, barrier_address, block, issuer, where] {
        machine->now = issuer;
        int c[5];
        std::copy(where.begin(), where.end(), c);
        visit(t, c, [&](u32 offset, u8* from) {
            u8* to = shared(swizzled(target + offset, swizzle_mode(t)), t.element_bytes, block);
            if (from)
                std::memcpy(to, from, t.element_bytes);
            else
                std::memset(to, 0, t.element_bytes);
        });
        Barrier& b = barrier(barrier_address, block);
        b.bytes -= box_bytes(t);
        settle(b);
    });
}

inline void store(const TensorMap* map, u32 source, std::vector<int> coordinates) {
    const Tensor t = tensor(map);
    if (coordinates.size() != t.rank) fail("a copy with another number of coordinates than its map");
    Fiber* me = machine->now;
    Block* block = me->block;
    me->stores.emplace_back(me->store_group, [t, source, block, coordinates] {
        int c[5] = {};
        std::copy(coordinates.begin(), coordinates.end(), c);
        visit(t, c, [&](u32 offset, u8* to) {
            const u32 from = swizzled(source + offset, swizzle_mode(t));
            if (to) std::memcpy(to, fenced(from, t.element_bytes, block), t.element_bytes);
        });
    });
}

inline void finish_stores(int pending) {
    Fiber* me = machine->now;
    while (!me->stores.empty() && me->stores.front().first < me->store_group - pending) {
        me->stores.front().second();
        me->stores.pop_front();
    }
}

inline std::string describe_deadlock() {
    std::map<std::string, int> reasons;
    for (auto& f : machine->fibers)
        if (!f->done)
            ++reasons["block " + std::to_string(f->block->index.x) + " warp " +
                      std::to_string(f->thread / 32) + " waits for " + f->waits_for];
    std::string out = "deadlock:";
    for (auto& [why, count] : reasons) out += "\n  " + why + " (" + std::to_string(count) + " threads)";
    return out;
}

inline std::function<void()> body;

inline void entry() {
    try {
        if (machine->failure.empty()) body();
        Fiber* me = machine->now;
        me->store_group += 1;
        finish_stores(0);
        if (!me->in_flight.empty() && machine->failure.empty())
            fail("a thread ended with matrix products that it did not wait for");
    } catch (const Abort&) {
    }
    machine->now->done = true;
    swapcontext(&machine->now->context, &machine->scheduler);
}

inline void run() {
    Machine& m = *machine;
    size_t at = 0, left = m.fibers.size();
    size_t idle = 0;
    while (left) {
        ++m.step;
        if (m.step > m.most_steps && m.failure.empty())
            m.failure = "no end after " + std::to_string(m.step) + " steps: a spin that never ends?";
        for (size_t i = 0; i < m.pending.size();) {
            if (m.pending[i].first > m.step) {
                ++i;
                continue;
            }
            auto effect = std::move(m.pending[i].second);
            m.pending.erase(m.pending.begin() + i);
            try {
                effect();
            } catch (const Abort&) {
            }
            idle = 0;
        }
        // Not while nothing seems to run: a sweep from there on has to reach every fiber.
        if (idle == 0 && m.draw() % 512 == 0) at = m.draw();
        Fiber* f = m.fibers[at++ % m.fibers.size()].get();
        if (f->done || (m.failure.empty() && f->ready && !f->ready())) {
            if (++idle > 2 * m.fibers.size()) {
                if (!m.pending.empty()) {  // nothing can run: the asynchronous machinery moves on
                    auto first = std::min_element(
                        m.pending.begin(), m.pending.end(),
                        [](const auto& x, const auto& y) { return x.first < y.first; });
                    first->first = 0;
                } else if (m.failure.empty()) {
                    m.now = f;
                    m.failure = describe_deadlock();
                }
                idle = 0;
            }
            continue;
        }
        idle = 0;
        f->ready = nullptr;
        m.now = f;
        swapcontext(&m.scheduler, &f->context);
        if (f->done) --left;
    }
}

template <class... A, size_t... I>
std::function<void()> bound(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    using Held = std::tuple<std::remove_cv_t<A>...>;
    auto held = std::make_shared<Held>();
    (std::memcpy(&std::get<I>(*held), arguments[I], sizeof(std::remove_cv_t<A>)), ...);
    return [kernel, held] { kernel(std::get<I>(*held)...); };
}

template <class... A>
int launch(void (*kernel)(A...), void** arguments, const u32* grid, const u32* block,
           u32 shared_bytes, u32 cluster, int mode, u32 seed, long long most_steps, char* message,
           int room) {
    Machine m;
    machine = &m;
    m.grid = {grid[0], grid[1], grid[2]};
    m.block = {block[0], block[1], block[2]};
    m.threads = block[0] * block[1] * block[2];
    m.cluster = cluster;
    m.mode = mode;
    m.draw.seed(seed);
    m.most_steps = most_steps;
    body = bound(kernel, arguments, std::index_sequence_for<A...>{});
    for (u32 z = 0; z < grid[2]; ++z)
        for (u32 y = 0; y < grid[1]; ++y)
            for (u32 x = 0; x < grid[0]; ++x) {
                auto b = std::make_unique<Block>();
                b->index = {x, y, z};
                const u32 flat = m.blocks.size();
                b->rank = flat % cluster;
                b->first_of_cluster = flat - b->rank;
                b->first_fiber = m.fibers.size();
                b->room.assign(shared_bytes + 64 + 4096, 0xff);
                u8* base = b->room.data();
                b->memory = base + (16 - reinterpret_cast<u64>(base) % 16) % 16;
                b->unfenced.assign(b->room.size(), 0);
                b->readers.assign(b->room.size() / 16 + 1, 0);
                b->warps.resize((m.threads + 31) / 32);
                b->warpgroups.resize((m.threads + 127) / 128);
                for (u32 t = 0; t < m.threads; ++t) {
                    auto f = std::make_unique<Fiber>();
                    f->block = b.get();
                    f->thread = t;
                    constexpr size_t STACK = 1 << 17;
                    f->stack.reset(new char[STACK]);
                    getcontext(&f->context);
                    f->context.uc_stack.ss_sp = f->stack.get();
                    f->context.uc_stack.ss_size = STACK;
                    f->context.uc_link = nullptr;
                    makecontext(&f->context, entry, 0);
                    m.fibers.push_back(std::move(f));
                }
                m.blocks.push_back(std::move(b));
            }
    run();
    std::snprintf(message, room, "%s", m.failure.c_str());
    machine = nullptr;
    return m.failure.empty() ? 0 : 1;
}

inline Index thread_index() {
    const u32 t = machine->now->thread;
    const Index& b = machine->block;
    return {t % b.x, t / b.x % b.y, t / (b.x * b.y)};
}
inline u8* shared_memory() { return machine->now->block->memory; }

}  // namespace host

#define threadIdx (host::thread_index())
#define blockIdx (host::machine->now->block->index)
#define gridDim (host::machine->grid)
#define blockDim (host::machine->block)

// ---------------------------------------------------------------- threads

inline u32 shared_address(const void* pointer) {
    return host::SHARED_BASE +
           static_cast<u32>(static_cast<const u8*>(pointer) - host::shared_memory());
}
inline u32 lane_index() { return host::machine->now->thread % 32; }
inline u32 warp_index() { return host::machine->now->thread / 32; }
inline bool elect_one() { return lane_index() == 0; }
template <int COUNT>
inline void registers_release() {}
template <int COUNT>
inline void registers_claim() {}

inline void barrier_arrive(u32 id, u32 threads) {
    host::Named& n = host::machine->now->block->named[id];
    if (++n.arrived == threads) {
        n.arrived = 0;
        ++n.generation;
    }
}
inline void barrier_wait(u32 id, u32 threads) {
    host::Named& n = host::machine->now->block->named[id];
    const u64 before = n.generation;
    barrier_arrive(id, threads);
    host::pause_until([&n, before] { return n.generation != before; },
                      "named barrier " + std::to_string(id));
}
inline u32 barrier_count(u32 id, u32 threads, bool condition) {
    host::Named& n = host::machine->now->block->named[id];
    n.held += condition;
    if (n.arrived + 1 == threads) {
        n.counted = n.held;
        n.held = 0;
    }
    barrier_wait(id, threads);
    return n.counted;
}
inline void __syncthreads() { barrier_wait(0, host::machine->threads); }
inline void __syncwarp(u32 = 0xffffffffu) {
    host::meet(0, "__syncwarp", [](host::Exchange&) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
inline T exchange(T value, const std::function<u32(u32)>& source) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = host::meet(bits, "a shuffle", [&source](host::Exchange& x) {
        for (u32 lane = 0; lane < 32; ++lane) x.result[lane] = x.value[source(lane) % 32];
    });
    T out;
    std::memcpy(&out, &bits, sizeof(T));
    return out;
}
template <class T>
inline T __shfl_sync(u32, T value, int source, int = 32) {
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    host::meet(bits, "a shuffle", [](host::Exchange&) {});
    // No lane passes its next meeting before every lane has come back from this one.
    const host::Fiber* me = host::machine->now;
    const u64 taken = me->block->warps[me->thread / 32].value[static_cast<u32>(source) % 32];
    T out;
    std::memcpy(&out, &taken, sizeof(T));
    return out;
}
template <class T>
inline T __shfl_xor_sync(u32, T value, int mask, int = 32) {
    return exchange(value, [mask](u32 lane) { return lane ^ mask; });
}
template <class T>
inline T __shfl_down_sync(u32, T value, u32 by, int = 32) {
    return exchange(value, [by](u32 lane) { return lane + by < 32 ? lane + by : lane; });
}
template <class T>
inline T __shfl_up_sync(u32, T value, u32 by, int = 32) {
    return exchange(value, [by](u32 lane) { return lane >= by ? lane - by : lane; });
}
inline u32 warp_reduced(u32 value, bool largest) {
    return static_cast<u32>(host::meet(value, "a reduction", [largest](host::Exchange& x) {
        u64 best = x.value[0];
        for (u64 other : x.value) best = largest ? max(best, other) : min(best, other);
        for (u64& out : x.result) out = best;
    }));
}
inline u32 warp_max(u32 value) { return warp_reduced(value, true); }
inline u32 warp_min(u32 value) { return warp_reduced(value, false); }
inline u32 __ballot_sync(u32, int predicate) {
    return static_cast<u32>(host::meet(predicate != 0, "a vote", [](host::Exchange& x) {
        u64 all = 0;
        for (u32 lane = 0; lane < 32; ++lane) all |= (x.value[lane] & 1) << lane;
        for (u32 lane = 0; lane < 32; ++lane) x.result[lane] = all;
    }));
}
inline int __any_sync(u32 mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(u32 mask, int predicate) {
    return __ballot_sync(mask, predicate) == 0xffffffffu;
}
template <class T, class V>
inline T atomicAdd(T* at, V value) {
    host::yield();
    const T before = *at;
    *at = before + static_cast<T>(value);
    return before;
}
template <class T>
inline T atomicExch(T* at, T value) {
    const T before = *at;
    *at = value;
    return before;
}
template <class T>
inline T atomicMin(T* at, T value) {
    const T before = *at;
    *at = min(before, value);
    return before;
}
template <class T>
inline T atomicMax(T* at, T value) {
    const T before = *at;
    *at = max(before, value);
    return before;
}
template <class T>
inline T __ldg(const T* at) {
    return *at;
}
inline float __int_as_float(int bits) {
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline int __float_as_int(float x) {
    int out;
    std::memcpy(&out, &x, 4);
    return out;
}
inline float __uint_as_float(u32 bits) { return __int_as_float(static_cast<int>(bits)); }
inline u32 __float_as_uint(float x) { return static_cast<u32>(__float_as_int(x)); }
inline float __fdividef(float a, float b) { return a / b; }


// ---------------------------------------------------------------- words of memory

inline void store_shared(u32 address, int x) { host::write(address, &x, 4); }
inline void store_shared(u32 address, float x) { host::write(address, &x, 4); }
inline void store_shared(u32 address, float2 x) { host::write(address, &x, 8); }
inline void store_shared(u32 address, uint4 x) { host::write(address, &x, 16); }
template <class T = float>
inline T load_shared(u32 address) {
    T x;
    std::memcpy(&x, host::shared(address, sizeof x), sizeof x);
    return x;
}
template <class T>
inline T load_l2(const T* address) {
    return *address;
}
inline uint4 load_once(const void* address) { return *static_cast<const uint4*>(address); }
inline void store_if(void* address, uint4 x, bool condition) {
    if (condition) *static_cast<uint4*>(address) = x;
}
inline void prefetch_l2(const void*) {}
inline void prefetch_bulk_l2(const void* address, u32 bytes) {
    if (reinterpret_cast<size_t>(address) % 16 || bytes % 16) host::fail("bytes not in sixteens");
}
inline void wait_global(const u32* counter, u32 wanted) {
    host::pause_until([=] { return *static_cast<const volatile u32*>(counter) >= wanted; },
                      "a counter in global memory to reach " + std::to_string(wanted));
}

// ---------------------------------------------------------------- mbarrier

inline void mbarrier_init(u32 barrier, u32 arrivals) {
    host::shared(barrier, 8);
    if (barrier % 8) host::fail("an mbarrier that is not aligned to 8 bytes");
    host::Barrier b;
    b.valid = true;
    b.count = b.pending = static_cast<int>(arrivals);
    host::machine->now->block->barriers[barrier] = b;
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(u32 barrier) { host::arrive(barrier); }
inline void mbarrier_arrive_if(u32 barrier, bool condition) {
    if (condition) host::arrive(barrier);
}
inline void mbarrier_expect(u32 barrier, u32 bytes) { host::barrier(barrier).bytes += bytes; }
inline void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
    mbarrier_expect(barrier, bytes);
    host::arrive(barrier);
}
inline void mbarrier_arrive_remote(u32 barrier, u32 rank) {
    host::arrive(barrier, host::peer(rank));
}
inline bool mbarrier_try_wait(u32 barrier, u32 parity) {
    host::yield();
    return host::barrier(barrier).phase != (parity & 1);
}
inline bool mbarrier_test(u32 barrier, u32 parity) { return mbarrier_try_wait(barrier, parity); }
inline bool mbarrier_try_wait_cluster(u32 barrier, u32 parity) {
    return mbarrier_try_wait(barrier, parity);
}
inline void mbarrier_wait(u32 barrier, u32 parity) {
    host::Barrier* b = &host::barrier(barrier);
    host::pause_until([b, parity] { return b->phase != (parity & 1); },
                      "mbarrier at " + std::to_string(barrier) + " parity " +
                          std::to_string(parity & 1));
}
inline void mbarrier_wait_cluster(u32 barrier, u32 parity) { mbarrier_wait(barrier, parity); }

// ---------------------------------------------------------------- proxies and clusters

inline void fence_async_shared() {
    host::Fiber* me = host::machine->now;
    for (const auto& [offset, bytes] : me->written)
        for (u32 i = offset; i < offset + bytes; ++i)
            if (me->block->unfenced[i] == me->thread + 1) me->block->unfenced[i] = 0;
    me->written.clear();
}
inline void cluster_arrive() {
    host::Fiber* me = host::machine->now;
    host::Named& n = host::machine->clusters[me->block->first_of_cluster];
    me->cluster_generation = n.generation;
    if (++n.arrived == host::machine->threads * host::machine->cluster) {
        n.arrived = 0;
        ++n.generation;
    }
}
inline void cluster_wait() {
    const host::Fiber* me = host::machine->now;
    const host::Named& n = host::machine->clusters[me->block->first_of_cluster];
    const u64 before = me->cluster_generation;
    host::pause_until([&n, before] { return n.generation != before; }, "the cluster's barrier");
}
inline u32 cluster_rank() { return host::machine->now->block->rank; }
inline void dependency_wait() {}
inline void dependency_launch() {}

// ---------------------------------------------------------------- cp.async

inline void copy16_async(u32 target, const void* source, bool valid) {
    if (target % 16) host::fail("the target of a 16-byte copy is not aligned");
    host::Fiber* me = host::machine->now;
    host::write(target, std::string(16, '\xff').data(), 16);
    ++me->copies;
    host::later([=] {
        host::machine->now = me;
        u8* to = host::shared(target, 16, me->block);
        if (valid)
            std::memcpy(to, source, 16);
        else
            std::memset(to, 0, 16);
        --me->copies;
    });
}
inline void copy_async_arrive(u32 barrier) {
    host::Fiber* me = host::machine->now;
    if (me->copies == 0) {
        host::arrive(barrier);
        return;
    }
    // Lands after the copies issued so far: effects of one thread come due in drawn order, so
    // poll until they are through.
    auto poll = std::make_shared<std::function<void()>>();
    *poll = [me, barrier, poll] {
        host::machine->now = me;
        if (me->copies > 0)
            host::machine->pending.emplace_back(host::machine->step + 50, *poll);
        else
            host::arrive(barrier, me->block);
    };
    host::later(*poll);
}

// ---------------------------------------------------------------- TMA

constexpr u64 L2_EVICT_NORMAL = 0x1000000000000000ull;
constexpr u64 L2_EVICT_FIRST = 0x12F0000000000000ull;
constexpr u64 L2_EVICT_LAST = 0x14F0000000000000ull;

inline void tensor_map_prefetch(const TensorMap* map) { host::tensor(map); }
template <class... C>
inline void tma_load(u32 target, const TensorMap* map, u32 barrier, u64, C... at) {
    host::load(target, map, barrier, host::machine->now->block, {static_cast<int>(at)...});
}
template <class... C>
inline void tma_multicast(u32 target, const TensorMap* map, u32 barrier, u16 mask, u64, C... at) {
    for (u32 rank = 0; rank < 16; ++rank)
        if (mask >> rank & 1)
            host::load(target, map, barrier, host::peer(rank), {static_cast<int>(at)...});
}
template <class... C>
inline void tma_store(const TensorMap* map, u32 source, C... at) {
    host::store(map, source, {static_cast<int>(at)...});
}
inline void bulk_load(u32 target, const void* source, u32 bytes, u32 barrier) {
    if (target % 16 || bytes % 16 || reinterpret_cast<u64>(source) % 16)
        host::fail("a bulk copy that is not aligned to 16 bytes");
    host::Fiber* me = host::machine->now;
    std::memset(host::overwritten(target, bytes, me->block), 0xff, bytes);
    host::later([=] {
        host::machine->now = me;
        std::memcpy(host::shared(target, bytes, me->block), source, bytes);
        host::Barrier& b = host::barrier(barrier, me->block);
        b.bytes -= bytes;
        host::settle(b);
    });
}
inline void bulk_store(void* target, u32 source, u32 bytes) {
    host::Fiber* me = host::machine->now;
    me->stores.emplace_back(me->store_group, [=] {
        std::memcpy(target, host::fenced(source, bytes, me->block), bytes);
    });
}
inline void store_commit() { ++host::machine->now->store_group; }
template <int PENDING = 0>
inline void store_wait_read() {
    host::finish_stores(PENDING);
}
template <int PENDING = 0>
inline void store_wait() {
    host::finish_stores(PENDING);
}

// ---------------------------------------------------------------- ldmatrix, stmatrix

namespace host {
// Lane i names row i % 8 of matrix i / 8; lane l holds columns 2 (l % 4).. of row l / 4.
template <bool TRANSPOSED>
inline void load_matrices(u32 (&r)[4], u32 address) {
    u32 rows[32];
    for (int lane = 0; lane < 32; ++lane)
        rows[lane] = __shfl_sync(0xffffffffu, address, lane);
    const u32 lane = lane_index();
    for (int m = 0; m < 4; ++m) {
        u16 pair[2];
        for (u32 e = 0; e < 2; ++e) {
            const u32 row = TRANSPOSED ? lane % 4 * 2 + e : lane / 4;
            const u32 column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + e;
            std::memcpy(&pair[e], shared(rows[8 * m + row] + 2 * column, 2), 2);
        }
        r[m] = pair[0] | static_cast<u32>(pair[1]) << 16;
    }
    __syncwarp();
}
template <bool TRANSPOSED>
inline void store_matrices(u32 address, const u32 (&r)[4]) {
    u32 rows[32];
    for (int lane = 0; lane < 32; ++lane)
        rows[lane] = __shfl_sync(0xffffffffu, address, lane);
    const u32 lane = lane_index();
    for (int m = 0; m < 4; ++m)
        for (u32 e = 0; e < 2; ++e) {
            const u32 row = TRANSPOSED ? lane % 4 * 2 + e : lane / 4;
            const u32 column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + e;
            const u16 value = static_cast<u16>(r[m] >> 16 * e);
            write(rows[8 * m + row] + 2 * column, &value, 2);
        }
    __syncwarp();
}
}  // namespace host
inline void ldmatrix_x4(u32 (&r)[4], u32 address) { host::load_matrices<false>(r, address); }
inline void ldmatrix_x4_transposed(u32 (&r)[4], u32 address) {
    host::load_matrices<true>(r, address);
}
inline void stmatrix_x4(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    host::store_matrices<false>(address, {r0, r1, r2, r3});
}
inline void stmatrix_x4_transposed(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
    host::store_matrices<true>(address, {r0, r1, r2, r3});
}
inline u32 swizzle128(u32 offset) { return offset ^ ((offset >> 3) & 0x70); }
inline u32 swizzle64(u32 offset) { return offset ^ ((offset >> 3) & 0x30); }

// ---------------------------------------------------------------- numbers

inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float infinity() { return std::numeric_limits<float>::infinity(); }
inline float2 halves_to_floats(u32 halves) {
    return {host::from_f16(static_cast<u16>(halves)), host::from_f16(static_cast<u16>(halves >> 16))};
}
template <class T>
inline u32 pack(float low, float high) {
    if constexpr (std::is_same_v<T, BF16>)
        return host::to_bf16(low) | static_cast<u32>(host::to_bf16(high)) << 16;
    else
        return host::to_f16(low) | static_cast<u32>(host::to_f16(high)) << 16;
}
inline u32 permute_bytes(u32 x, u32 y, u32 selector) {
    const u64 both = static_cast<u64>(y) << 32 | x;
    u32 out = 0;
    for (int n = 0; n < 4; ++n) {
        const u32 which = selector >> 4 * n;
        out |= (static_cast<u32>(both >> 8 * (which & 7)) & 0xff) << 8 * n;
    }
    return out;
}
inline u32 pack_e4m3(float x0, float x1, float x2, float x3) {
    return host::to_e4m3(x0) | host::to_e4m3(x1) << 8 | host::to_e4m3(x2) << 16 |
           static_cast<u32>(host::to_e4m3(x3)) << 24;
}
inline u32 halves_to_e4m3(u32 low, u32 high) {
    const float2 x = halves_to_floats(low), y = halves_to_floats(high);
    return pack_e4m3(x.x, x.y, y.x, y.y);
}
inline u32 mul_f16x2(u32 x, u32 y) {  // a product of two fp16 is exact in fp32
    const float2 a = halves_to_floats(x), b = halves_to_floats(y);
    return pack<F16>(a.x * b.x, a.y * b.y);
}
inline u32 sub_f16x2(u32 x, u32 y) {
    const float2 a = halves_to_floats(x), b = halves_to_floats(y);
    return pack<F16>(a.x - b.x, a.y - b.y);
}

// ---------------------------------------------------------------- wgmma

enum class Swizzle : u32 { NONE = 0, BYTES_128 = 1, BYTES_64 = 2, BYTES_32 = 3 };
template <Swizzle SWIZZLE = Swizzle::BYTES_128>
inline u64 matrix_descriptor(u32 start, u32 stride_bytes, u32 leading_bytes = 16) {
    return static_cast<u64>((start & 0x3ffff) >> 4) |
           (static_cast<u64>((leading_bytes & 0x3ffff) >> 4) << 16) |
           (static_cast<u64>((stride_bytes & 0x3ffff) >> 4) << 32) |
           (static_cast<u64>(SWIZZLE) << 62);
}
inline u64 descriptor_advance(u64 descriptor, u32 bytes) { return descriptor + (bytes >> 4); }
inline void wgmma_fence() {}
inline void wgmma_commit() { ++host::machine->now->group; }
template <int PENDING>
inline void wgmma_wait() {
    host::retire(PENDING);
}
template <class T, int COUNT>
inline void registers_pin(T (&r)[COUNT]) {
    asm volatile("" ::"r"(&r) : "memory");
}

template <int N, class T>
struct Wgmma {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "widths of wgmma");
    static constexpr int KIND = std::is_same_v<T, BF16> ? 0 : std::is_same_v<T, F16> ? 1 : 2;
    static constexpr int K = KIND == 2 ? 32 : 16;
    template <bool TRANSPOSE_B = false, bool TRANSPOSE_A = false>
    static void ss(float (&d)[N / 2], u64 a, u64 b, int accumulate) {
        host::issue(d, N, K, KIND, nullptr, a, b, TRANSPOSE_A, TRANSPOSE_B, accumulate != 0);
    }
    template <bool TRANSPOSE_B = false>
    static void rs(float (&d)[N / 2], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, int accumulate) {
        const u32 a[4] = {a0, a1, a2, a3};
        host::issue(d, N, K, KIND, a, 0, b, false, TRANSPOSE_B, accumulate != 0);
    }
};
