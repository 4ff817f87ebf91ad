// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//
// Gather, scatter and checksum kernels of the copy engine.
//
// One launch covers `entries` blocks x `rows` rows x `heads` heads. A row is one (layer, part) of a block; the run of one
// head in one row is `inner_bytes` long and contiguous on both sides. The "near" side is the engine's KV memory, addressed by
// the strides of its layers; the "far" side is either a dense staging slot or the pool itself (host memory), addressed by
// `far_row_stride`. Addresses are computed here: no descriptor per run crosses the link.
//
// A warp copies one chunk (at most `chunk_bytes` of one run) at a time, adds up the checksum terms of what it read and
// either adds the sum to `sums[entry][head]` or, with FLAG_PARTIALS, stores it as `sums[chunk]`, to be added up by the CPU.
//
// The layout of `Args` is mirrored in src/device/cuda/driver/module.rs; asserts there and below hold the two together.

typedef unsigned int u32;
typedef unsigned long long u64;

#define CHUNK_MAX 4096u
#define WORDS 960u
#define WORDS_SMALL 24u

enum : u32 {
    FLAG_PARTIALS = 1u,   // sums[chunk] = sum instead of sums[entry][head] += sum
    FLAG_PLACES = 2u,     // words[] holds (block, place low, place high) an entry; else the block alone, far side dense
    FLAG_SIGNAL = 4u,     // the last thread block stores `signal_value` at `signal` when all is visible system-wide
    FLAG_PUBLISH = 8u,    // before that, it moves the job's sums to the host and leaves zeros
};

struct Layer { u64 base, block_stride, part_stride, head_stride; };

// Divides numbers below 2^31 by a number that the launch knows: magic = ceil(2^shift / divisor), shift = 31 + ceil(log2
// divisor). The product exceeds the exact quotient's by less than one, so it is exact (Granlund and Montgomery, 1994).
struct Divider { u32 magic, shift; };
static __device__ __forceinline__ u32 operator/(u32 n, Divider d) { return (u32)(((u64)n * d.magic) >> d.shift); }

template <u32 N>
struct ArgsOf {
    const Layer* layers;     // one per layer of the slot
    u64 far;                 // far side: staging slot, or pool base as the device sees it
    u64 far_entry_stride;    // dense staging: bytes between entries (FLAG_PLACES: unused)
    u64 far_row_stride;      // bytes between rows of an entry
    u64 inner_bytes;         // multiple of 8
    u64* sums;
    u32* signal;             // host memory
    u32* arrivals;           // device counter, zero between launches
    u64* publish_from;       // the job's sums, all of them
    u64* publish_to;         // host memory
    u32 publish_count;
    u32 signal_value;
    u32 flags;
    u32 entries;
    u32 parts;
    u32 heads;               // heads of the slot
    u32 row_first;           // first row, counted from the slot's first layer
    u32 rows;
    u32 layer_first;         // absolute layer of the slot's first layer (for the checksum's word positions)
    u32 chunks_per_run;
    u32 chunk_bytes;         // a power of two, at most CHUNK_MAX
    Divider by_chunks_per_run, by_heads, by_rows, by_parts;
    u32 words[N];
};
typedef ArgsOf<WORDS> Args;
typedef ArgsOf<WORDS_SMALL> ArgsSmall;   // a launch copies its arguments: few entries cost less
static_assert(sizeof(Args) == 160 + 4 * WORDS, "mirrored in driver/module.rs");

static __device__ __forceinline__ u64 term(u64 w, u64 key) {
    u64 x = w ^ key;
    return (u64)(u32)x * (u64)(u32)(x >> 32) + ((x << 32) | (x >> 32));
}

#define GOLDEN 0x9E3779B97F4A7C15ull

// Streaming loads and stores: nothing that passes through here is read again by this kernel.
static __device__ __forceinline__ ulonglong2 load16(u64 p) {
    ulonglong2 v;
    asm volatile("ld.global.cs.v2.u64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ void store16(u64 p, ulonglong2 v) {
    asm volatile("st.global.v2.u64 [%0], {%1, %2};" :: "l"(p), "l"(v.x), "l"(v.y) : "memory");
}

static __device__ __forceinline__ u64 load8(u64 p, u32 width) {
    if (width == 8) return *(const volatile u64*)p;
    if (width == 4) {
        const volatile u32* q = (const volatile u32*)p;
        return (u64)q[0] | ((u64)q[1] << 32);
    }
    const volatile unsigned char* q = (const volatile unsigned char*)p;
    u64 w = 0;
    for (u32 i = 0; i < 8; ++i) w |= (u64)q[i] << (8 * i);
    return w;
}
static __device__ __forceinline__ void store8(u64 p, u64 w, u32 width) {
    if (width == 8) { *(volatile u64*)p = w; return; }
    if (width == 4) {
        volatile u32* q = (volatile u32*)p;
        q[0] = (u32)w; q[1] = (u32)(w >> 32);
        return;
    }
    volatile unsigned char* q = (volatile unsigned char*)p;
    for (u32 i = 0; i < 8; ++i) q[i] = (unsigned char)(w >> (8 * i));
}

// A full chunk, aligned: all of it is in flight before the first use, 8 loads a lane.
template <bool STORE>
static __device__ __forceinline__ u64 copy_full_chunk(u64 src, u64 dst, u64 position, u32 lane) {
    ulonglong2 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = load16(src + lane * 16 + i * 512);
    u64 key = (position + 2 * lane + 1) * GOLDEN;
    u64 sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (STORE) store16(dst + lane * 16 + i * 512, v[i]);
        sum += term(v[i].x, key) + term(v[i].y, key + GOLDEN);
        key += GOLDEN * 64;                              // 32 lanes x 2 words
    }
    return sum;
}

// One chunk by one warp; returns this lane's share of the sum. `position` is the checksum position of the first word.
template <bool STORE>
static __device__ __forceinline__ u64 copy_chunk(u64 src, u64 dst, u32 bytes, u64 position, u32 lane) {
    u64 sum = 0;
    if (((src | (STORE ? dst : 0) | bytes) & 15) == 0) {
        if (bytes == CHUNK_MAX) return copy_full_chunk<STORE>(src, dst, position, lane);
        const u64 step = GOLDEN * 64;                    // 32 lanes x 2 words
        u64 key = (position + 2 * lane + 1) * GOLDEN;
        for (u32 at = lane * 16; at < bytes; at += 1024) {
            const bool two = at + 512 < bytes;
            const ulonglong2 a = load16(src + at);
            ulonglong2 b = {0, 0};
            if (two) b = load16(src + at + 512);
            if (STORE) store16(dst + at, a);
            sum += term(a.x, key) + term(a.y, key + GOLDEN);
            if (two) {
                if (STORE) store16(dst + at + 512, b);
                sum += term(b.x, key + step) + term(b.y, key + step + GOLDEN);
            }
            key += 2 * step;
        }
    } else {
        u64 low = src | (STORE ? dst : 0);
        u32 width = (low & 7) == 0 ? 8 : (low & 3) == 0 ? 4 : 1;
        for (u32 at = lane * 8; at < bytes; at += 256) {
            u64 w = load8(src + at, width);
            if (STORE) store8(dst + at, w, width);
            sum += term(w, (position + at / 8 + 1) * GOLDEN);
        }
    }
    return sum;
}

static __device__ __forceinline__ u64 warp_sum(u64 v) {
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) v += __shfl_down_sync(0xffffffffu, v, i);
    return v;
}

// Every thread's stores first become visible system-wide, then its block arrives. True in all threads of the last one,
// which sees what the others stored.
static __device__ __forceinline__ bool arrives_last(u32* arrivals) {
    __threadfence_system();
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        last = atomicAdd(arrivals, 1u) == gridDim.x - 1;
        if (last) *(volatile u32*)arrivals = 0;
        __threadfence_system();
    }
    return __syncthreads_or(last);
}

static __device__ __forceinline__ void publish(u64* from, u64* to, u64 count, u64 first, u64 step) {
    for (u64 i = first; i < count; i += step) {
        *(volatile u64*)(to + i) = __ldcg(from + i);
        from[i] = 0;
    }
}

// By one thread, after what all threads of its block stored.
static __device__ __forceinline__ void tell(u32* signal, u32 value) {
    if (threadIdx.x == 0) {
        __threadfence_system();
        *(volatile u32*)signal = value;
    }
}

// TO_FAR: near -> far (gather); else far -> near (scatter). STORE false: only reads the near side for its checksum.
template <bool TO_FAR, bool STORE, class A>
static __device__ __forceinline__ void run(const A& args) {
    const u32 lane = threadIdx.x & 31;
    const u32 warp = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const u32 warps = gridDim.x * (blockDim.x >> 5);
    const u32 chunks = args.entries * args.rows * args.heads * args.chunks_per_run;
    for (u32 chunk = warp; chunk < chunks; chunk += warps) {
        // Few instructions: beside a kernel that leaves no issue slot free, each of them waits.
        const u32 run = chunk / args.by_chunks_per_run;
        const u32 part_of_run = chunk - run * args.chunks_per_run;
        const u32 whole_row = run / args.by_heads;
        const u32 head = run - whole_row * args.heads;
        const u32 entry = whole_row / args.by_rows;
        const u32 row = whole_row - entry * args.rows;
        const u32 slot_row = args.row_first + row;
        const u32 layer = slot_row / args.by_parts;
        const u32 part = slot_row - layer * args.parts;

        const u64 offset = (u64)part_of_run * args.chunk_bytes;
        const u64 left = args.inner_bytes - offset;
        const u32 bytes = left < args.chunk_bytes ? (u32)left : args.chunk_bytes;

        const bool places = args.flags & FLAG_PLACES;
        const u32 block = args.words[places ? 3 * entry : entry];
        const Layer view = args.layers[layer];
        const u64 near = view.base + block * view.block_stride + part * view.part_stride
            + head * view.head_stride + offset;
        u64 far = 0;
        if (STORE) {
            far = args.far + row * args.far_row_stride + head * args.inner_bytes + offset;
            far += places ? (u64)args.words[3 * entry + 1] | ((u64)args.words[3 * entry + 2] << 32)
                          : entry * args.far_entry_stride;
        }
        const u64 position = ((u64)(args.layer_first * args.parts + slot_row) * args.inner_bytes + offset) / 8;
        u64 sum = TO_FAR ? copy_chunk<STORE>(near, far, bytes, position, lane)
                         : copy_chunk<STORE>(far, near, bytes, position, lane);
        sum = warp_sum(sum);
        if (lane == 0) {
            if (args.flags & FLAG_PARTIALS) *(volatile u64*)(args.sums + chunk) = sum;
            else atomicAdd(args.sums + (u64)entry * args.heads + head, sum);
        }
    }
    if (!(args.flags & (FLAG_SIGNAL | FLAG_PUBLISH)) || !arrives_last(args.arrivals)) return;
    if (args.flags & FLAG_PUBLISH) {
        publish(args.publish_from, args.publish_to, args.publish_count, threadIdx.x, blockDim.x);
        __threadfence_system();
        __syncthreads();
    }
    if (args.flags & FLAG_SIGNAL) tell(args.signal, args.signal_value);
}

#define ENTRY(name, to_far, store)                                                                      \
    extern "C" __global__ void __launch_bounds__(1024) pegaflow_##name(const __grid_constant__ Args args) {        \
        run<to_far, store>(args);                                                                       \
    }                                                                                                   \
    extern "C" __global__ void __launch_bounds__(1024) pegaflow_##name##_small(const __grid_constant__ ArgsSmall args) { \
        run<to_far, store>(args);                                                                       \
    }
ENTRY(gather, true, true)
ENTRY(scatter, false, true)
ENTRY(checksum, true, false)

// The end of a job whose last launch could not do it: brings its checksums to the host, leaves zeros for the next job, and
// tells the host.
extern "C" __global__ void pegaflow_publish(u64* sums, u64* host, u64 count, u32* signal, u32* arrivals, u32 value) {
    publish(sums, host, count, (u64)blockIdx.x * blockDim.x + threadIdx.x, (u64)gridDim.x * blockDim.x);
    if (signal && arrives_last(arrivals)) tell(signal, value);
}
