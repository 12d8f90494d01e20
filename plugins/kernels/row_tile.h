// 16 rows of quantized weights times up to 16 tokens: what every decode kernel does.
//
// The weights are the operand A of mma.m16n8k16 and the tokens its columns, so that one token costs no
// more reading than eight.  K may be summed in any order, so a lane takes for its fragments the 16
// bytes that it loads: lane 4g + t reads of the rows g and g + 8 the t-th 16 bytes of each 64 (a
// chunk), straight from the layout on disk.  With blocks smaller than a chunk the four lanes of a row
// first exchange words, so that the same few mma belong to one block and its sum takes one scale.
#pragma once

#include <type_traits>

#include "codes.h"
#include "quantized.h"

namespace ernie {

constexpr unsigned all_lanes = 0xffffffffu;

/// The order of K within a chunk of 64 bytes of a row.
template <int bits>
struct Chunk {
    static constexpr int k = 64 * 8 / bits;

    /// Blocks of scales that a chunk spans.
    static __device__ __forceinline__ int parts(int block_size) { return block_size < k ? k / block_size : 1; }

    /// Before: the words 4t … 4t + 3 of the chunk's 16.  After: word i belongs to part i · parts / 4.
    static __device__ __forceinline__ void exchange(uint4& words, int parts, int t) {
        if (parts == 1) return;
        const bool upper = t & 2;
        const unsigned x = __shfl_xor_sync(all_lanes, upper ? words.x : words.z, 2);
        const unsigned y = __shfl_xor_sync(all_lanes, upper ? words.y : words.w, 2);
        words = upper ? make_uint4(x, y, words.z, words.w) : make_uint4(words.x, words.y, x, y);
        if (parts == 2) return;
        const bool odd = t & 1;
        const unsigned z = __shfl_xor_sync(all_lanes, odd ? words.x : words.y, 1);
        const unsigned w = __shfl_xor_sync(all_lanes, odd ? words.z : words.w, 1);
        words = odd ? make_uint4(z, words.y, w, words.w) : make_uint4(words.x, z, words.z, w);
    }

    /// Which of the chunk's 16 words lane t has at place i after the exchange.
    static __device__ __forceinline__ int word(int parts, int t, int i) {
        if (parts == 1) return 4 * t + i;
        if (parts == 2) return 4 * ((i & 2) + (t & 1)) + (t & 2) + (i & 1);
        return 4 * i + t;
    }
};

/// A scale is copied with the four bytes it lies in: these, and whether it is the second of them.
__device__ __forceinline__ const void* word_of(const __half* scale) {
    return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(scale) & ~std::uintptr_t{3});
}
__device__ __forceinline__ bool second_of_word(const __half* scale) {
    return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(scale)) & 2u;
}

/// The two rows of a lane in one matrix and, for each group of 8 tokens, the activations of its own (null: none).
template <class T, int groups>
struct Operands {
    const std::uint8_t* weights[2];
    const __half* scales[2];
    const T* x[groups];
};

/// What a warp has under way of its rows: each lane copies, waits for and reads its own bytes alone, so
/// no barrier is needed.
struct Ring {
    static constexpr int depth = 4;
    struct Stage {
        uint4 words[2][32];
        unsigned scales[2][32];  // two fp16, of which one is meant
    } stages[depth];
};

/// Where a warp is on its way through the chunks of one matrix after the other.
template <class T, int groups>
struct Cursor {
    Operands<T, groups> of;
    int matrix, chunk;
};

/// The walk of a warp over items, each a chunk of 16 rows and its activations; a matrix has `chunks` of them.
/// Source is a function matrix → Operands.  whole: a chunk lies in one block of scales, so that what smaller blocks
/// need, and the bounds of a chunk that is not all there, cost no instructions: on a GPU with much bandwidth for
/// its clock they would be what takes the time.
template <class T, int bits, int groups, bool whole, class Source>
struct RowTile {
    using Order = Chunk<bits>;
    using Codes = Word<T, bits>;
    using At = Cursor<T, groups>;

    Ring& ring;
    const Source& operands;
    const int chunks, begin, end, k_total, block_size;
    const int lane = threadIdx.x % 32, t = threadIdx.x % 4;
    const int parts = whole ? 1 : Order::parts(block_size), blocks = k_total / block_size;

    __device__ __forceinline__ Ring::Stage& stage(int item) const {
        return ring.stages[static_cast<unsigned>(item - begin) % Ring::depth];
    }

    /// The block whose scale this lane holds: for itself or, of parts, for the four lanes of its rows.
    __device__ __forceinline__ int block(int chunk) const {
        if constexpr (whole) return chunk >> (block_size > Order::k);  // of one chunk or of two
        return min(chunk * parts + min(t, parts - 1), blocks - 1);
    }

    __device__ __forceinline__ void advance(At& at, int item) const {
        if (++at.chunk < chunks) return;
        at.chunk = 0;
        if (item + 1 < end) at.of = operands(++at.matrix);
    }

    __device__ __forceinline__ void load(At& at, int item) const {
        if (item < end) {
            const int k = at.chunk * Order::k + t * (Order::k / 4);
            const int of_row = block(at.chunk);
            const bool there = whole || k < k_total;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                ptx::copy_weights(&stage(item).words[r][lane], at.of.weights[r] + (there ? k * bits / 8 : 0), there);
                const __half* scale = at.of.scales[r] + of_row;
                const bool second = second_of_word(scale);
                // Never past the row's last scale: it may be the last of all.
                ptx::copy_async_4(&stage(item).scales[r][lane], word_of(scale),
                                  second || of_row + 1 < blocks ? 4 : 2);
            }
            advance(at, item);
        }
        ptx::copy_commit();
    }

    __device__ __forceinline__ float scale(int item, const At& at, int r) const {
        const unsigned both = stage(item).scales[r][lane];
        const float2 pair = widen(as_pair<__half2>(both));
        return second_of_word(at.of.scales[r] + block(at.chunk)) ? pair.y : pair.x;
    }

    /// The activations of the words of this lane's share of a chunk; zeros where there is no token or no chunk.
    __device__ __forceinline__ void read_x(unsigned (&x)[groups][4][Codes::pairs], const At& at) const {
#pragma unroll
        for (int c = 0; c < groups; ++c) {
            if (at.of.x[c] == nullptr) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int k = at.chunk * Order::k + Order::word(parts, t, i) * Codes::codes;
                if (whole || k < k_total) Codes::activations(at.of.x[c] + k, x[c][i]);
            }
        }
    }

    /// part[c] += a word of the two rows · its activations.
    static __device__ __forceinline__ void multiply(float (&part)[groups][4], unsigned low, unsigned high,
                                                    const unsigned (&x)[groups][4][Codes::pairs], int i) {
        unsigned a[2][Codes::pairs];
        Codes::weights(low, a[0]);
        Codes::weights(high, a[1]);
#pragma unroll
        for (int c = 0; c < groups; ++c)
#pragma unroll
            for (int m = 0; m < Codes::pairs; m += 2)
                ptx::mma<Number<T>::bfloat>(part[c], {a[0][m], a[1][m], a[0][m + 1], a[1][m + 1]},
                                            {x[c][i][m], x[c][i][m + 1]});
    }

    /// sum += scale · part, and part starts anew.
    static __device__ __forceinline__ void finish(float (&sum)[groups][4], float (&part)[groups][4], float low_scale,
                                                  float high_scale) {
#pragma unroll
        for (int c = 0; c < groups; ++c) {
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                sum[c][v] = fmaf(part[c][v], v < 2 ? low_scale : high_scale, sum[c][v]);
                part[c][v] = 0;
            }
        }
    }

    /// sum[c] += the 16 rows · tokens of a chunk.
    __device__ __forceinline__ void add_chunk(float (&sum)[groups][4], const unsigned (&lows)[4],
                                              const unsigned (&highs)[4], float low_scale, float high_scale,
                                              const At& at) const {
        float part[groups][4] = {};
        unsigned x[groups][4][Codes::pairs] = {};
        read_x(x, at);
        if constexpr (whole) {
#pragma unroll
            for (int i = 0; i < 4; ++i) multiply(part, lows[i], highs[i], x, i);
            finish(sum, part, low_scale, high_scale);
        } else {
            const int words = 4 / parts;  // of a block
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                multiply(part, lows[i], highs[i], x, i);
                if ((i + 1) % words != 0) continue;
                finish(sum, part, __shfl_sync(all_lanes, low_scale, i / words, 4),
                       __shfl_sync(all_lanes, high_scale, i / words, 4));
            }
        }
    }

    /// sum[c] += rows · tokens, over all items.
    __device__ __forceinline__ void run(float (&sum)[groups][4]) const {
        if (begin == end) return;
        At at{operands(begin / chunks), begin / chunks, begin % chunks}, ahead = at;
        for (int i = 0; i < Ring::depth; ++i) load(ahead, begin + i);
#pragma unroll 1
        for (int item = begin; item < end; ++item) {
            ptx::copy_wait<Ring::depth - 1>();
            uint4 low = stage(item).words[0][lane], high = stage(item).words[1][lane];
            const float low_scale = scale(item, at, 0), high_scale = scale(item, at, 1);
            load(ahead, item + Ring::depth);
            Order::exchange(low, parts, t);
            Order::exchange(high, parts, t);
            add_chunk(sum, {low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}, low_scale, high_scale, at);
            advance(at, item);
        }
        ptx::copy_wait<0>();
    }
};

/// sum[c] += rows · tokens over this warp's share of the chunks of `matrices`.
template <class T, int bits, bool whole, int groups, int warps, class Source>
__device__ __forceinline__ void accumulate(float (&sum)[groups][4], Ring (&rings)[warps], int matrices, int k_total,
                                           int block_size, const Source& operands) {
    const int warp = threadIdx.x / 32, chunks = (k_total + Chunk<bits>::k - 1) / Chunk<bits>::k;
    const int items = matrices * chunks;
    RowTile<T, bits, groups, whole, Source>{
        rings[warp], operands, chunks, items * warp / warps, items * (warp + 1) / warps, k_total, block_size}
        .run(sum);
}

/// f with true where a chunk lies in one block of scales.
template <int bits, class F>
auto with_whole(const Format& format, F&& f) {
    return format.block_size >= Chunk<bits>::k ? f(std::true_type{}) : f(std::false_type{});
}

/// The sums of all warps of a block, in shared memory.
template <int warps, int groups>
struct WarpSums {
    float of[warps][groups][4][32];
};

/// Adds up what the warps of a block have summed, in the order of the warps; warp c < groups is left
/// with the totals of the tokens 8c … 8c + 7 in total, the others with nothing.
template <int warps, int groups>
__device__ __forceinline__ bool add_warps(WarpSums<warps, groups>& sums, const float (&sum)[groups][4],
                                          float (&total)[4]) {
    static_assert(groups <= warps);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < groups; ++c)
#pragma unroll
        for (int v = 0; v < 4; ++v) sums.of[warp][c][v][lane] = sum[c][v];
    __syncthreads();
    if (warp >= groups) return false;
#pragma unroll
    for (int v = 0; v < 4; ++v) {
        total[v] = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) total[v] += sums.of[w][warp][v][lane];
    }
    return true;
}

}  // namespace ernie
