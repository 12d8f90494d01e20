// 16 rows of quantized weights times up to 16 tokens: what every decode kernel does.
//
// The weights are the operand A of mma.m16n8k16 and the tokens its columns, so that one token costs no
// more reading than eight.  K may be summed in any order, so a lane takes for its fragments the 16
// bytes that it loads: lane 4g + t reads of the rows g and g + 8 the t-th 16 bytes of each 64 (a
// chunk), straight from the layout on disk.  With blocks smaller than a chunk the four lanes of a row
// first exchange words, so that the same few mma belong to one block and its sum takes one scale.
#pragma once

#include "codes.h"

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

/// A scale is copied with the four bytes it lies in: is it the second of them?
__device__ __forceinline__ bool second_of_word(const __half* scale) {
    return reinterpret_cast<std::uintptr_t>(scale) & 2;
}

/// The two rows of a lane and, for each group of 8 tokens, the activations of its own (null: none).
template <class T, int groups>
struct Operands {
    const std::uint8_t* weights[2];
    const __half* scales[2];
    const T* x[groups];
    int chunk;
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

/// The walk of a warp over items, each a chunk of 16 rows and its activations.  Source is a function
/// item → Operands.
template <class T, int bits, int groups, class Source>
struct RowTile {
    using Order = Chunk<bits>;
    using Codes = Word<T, bits>;

    Ring& ring;
    const Source& operands;
    const int begin, end, k_total, block_size;
    const int lane = threadIdx.x % 32, t = threadIdx.x % 4;
    const int parts = Order::parts(block_size);

    __device__ __forceinline__ Ring::Stage& stage(int item) const { return ring.stages[(item - begin) % Ring::depth]; }

    /// The block whose scale this lane holds for the four lanes of its rows.
    __device__ __forceinline__ int block(int chunk) const {
        return min(chunk * Order::k / block_size + min(t, parts - 1), k_total / block_size - 1);
    }

    __device__ __forceinline__ void load(int item) const {
        if (item < end) {
            const Operands<T, groups> from = operands(item);
            const int k = from.chunk * Order::k + t * (Order::k / 4);
            const int at = block(from.chunk);
            const bool there = k < k_total;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                ptx::copy_weights(&stage(item).words[r][lane], from.weights[r] + (there ? k * bits / 8 : 0), there);
                const __half* scale = from.scales[r] + at;
                const bool second = second_of_word(scale);
                // Never past the row's last scale: it may be the last of all.
                ptx::copy_async_4(&stage(item).scales[r][lane], scale - second,
                                  second || at + 1 < k_total / block_size ? 4 : 2);
            }
        }
        ptx::copy_commit();
    }

    __device__ __forceinline__ float scale(int item, const Operands<T, groups>& from, int r) const {
        const unsigned both = stage(item).scales[r][lane];
        const float2 pair = widen(as_pair<__half2>(both));
        return second_of_word(from.scales[r] + block(from.chunk)) ? pair.y : pair.x;
    }

    __device__ __forceinline__ void multiply(float (&part)[groups][4], unsigned low, unsigned high,
                                             const Operands<T, groups>& from, int i) const {
        unsigned a[2][Codes::pairs];
        Codes::weights(low, a[0]);
        Codes::weights(high, a[1]);
        const int k = from.chunk * Order::k + Order::word(parts, t, i) * Codes::codes;
#pragma unroll
        for (int c = 0; c < groups; ++c) {
            unsigned b[Codes::pairs] = {};
            if (from.x[c] != nullptr && k < k_total) Codes::activations(from.x[c] + k, b);
#pragma unroll
            for (int m = 0; m < Codes::pairs; m += 2)
                ptx::mma<Number<T>::bfloat>(part[c], {a[0][m], a[1][m], a[0][m + 1], a[1][m + 1]}, {b[m], b[m + 1]});
        }
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

    /// sum[c] += rows · tokens, over all items.
    __device__ __forceinline__ void run(float (&sum)[groups][4]) const {
        for (int i = 0; i < Ring::depth; ++i) load(begin + i);
#pragma unroll 1
        for (int item = begin; item < end; ++item) {
            const Operands<T, groups> from = operands(item);
            ptx::copy_wait<Ring::depth - 1>();
            uint4 low = stage(item).words[0][lane], high = stage(item).words[1][lane];
            const float low_scale = scale(item, from, 0), high_scale = scale(item, from, 1);
            load(item + Ring::depth);
            Order::exchange(low, parts, t);
            Order::exchange(high, parts, t);
            const unsigned lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
            float part[groups][4] = {};
            const int words = 4 / parts;  // of a block
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                multiply(part, lows[i], highs[i], from, i);
                if ((i + 1) % words != 0) continue;
                finish(sum, part, __shfl_sync(all_lanes, low_scale, i / words, 4),
                       __shfl_sync(all_lanes, high_scale, i / words, 4));
            }
        }
        ptx::copy_wait<0>();
    }
};

/// sum[c] += rows · tokens over this warp's share of `items`.
template <class T, int bits, int groups, int warps, class Source>
__device__ __forceinline__ void accumulate(float (&sum)[groups][4], Ring (&rings)[warps], int items, int k_total,
                                           int block_size, const Source& operands) {
    const int warp = threadIdx.x / 32;
    RowTile<T, bits, groups, Source>{rings[warp], operands,   items * warp / warps, items * (warp + 1) / warps,
                                     k_total,     block_size}
        .run(sum);
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
