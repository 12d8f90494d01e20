// 64 rows of quantized weights times 16 or 64 tokens, by the four warps of a block: what every prefill kernel does.
//
// As in row_tile.h the weights are mma's left operand and K follows their bytes; here they and the tokens go
// through shared memory, where the tokens' 16-byte units are placed so that eight lanes never meet in a bank.
#pragma once

#include "row_tile.h"

namespace ernie {

constexpr int prefill_warps = 4;
constexpr int prefill_rows = 64;

/// How a tile is shared out, and how many chunks of K it has in shared memory: few tokens are a matter of bytes
/// under way, many of instructions for each mma; with two chunks two blocks fit into the 100 KiB of SM 86.
template <int tokens>
struct Shares {
    static constexpr int depth = tokens <= 16 ? 4 : 2;
    static constexpr int of_rows = tokens <= 16 ? 4 : 2;  // warps that share the rows, the others the tokens
    static constexpr int m = prefill_rows / of_rows / 16;  // 16 rows of a warp
    static constexpr int c = tokens * of_rows / prefill_warps / 8;  // 8 tokens of a warp
};

template <int bits, int tokens>
struct PrefillShared {
    struct Stage {
        uint4 words[prefill_rows][4];
        uint4 x[tokens][Chunk<bits>::k / 8];
        unsigned scales[prefill_rows][4];  // of each part of the chunk: two fp16, of which one is meant
    } stages[Shares<tokens>::depth];
};

/// Source has weights and scales of a matrix [rows, k], and says for each slot of the tile: row(slot), a row of
/// that matrix, and x(slot), the K activations of a token or null.
template <class T, int bits, int tokens, class Source>
struct PrefillTile {
    using Order = Chunk<bits>;
    using Codes = Word<T, bits>;
    using Share = Shares<tokens>;
    using Shared = PrefillShared<bits, tokens>;
    using Stage = typename Shared::Stage;
    using Sums = float[Share::m][Share::c][4];

    Shared& shared;
    const Source& from;
    const int k, block_size;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int parts = Order::parts(block_size), blocks = k / block_size;

    /// The slots of sum[m][c][v].
    __device__ __forceinline__ int row_slot(int m, int v) const {
        return 16 * (warp % Share::of_rows * Share::m + m) + 8 * (v / 2) + g;
    }
    __device__ __forceinline__ int token_slot(int c, int v) const {
        return 8 * (warp / Share::of_rows * Share::c + c) + 2 * t + v % 2;
    }

    /// Where unit u of a token's chunk lies.
    static __device__ __forceinline__ int placed(int u, int token) {
        if constexpr (bits == 4) return ((u & 3) << 2 | u >> 2) ^ (token & 1) << 2;
        return u ^ (token & 7);
    }

    __device__ __forceinline__ int block(int chunk, int part) const {
        return min(chunk * Order::k / block_size + part, blocks - 1);
    }

    __device__ __forceinline__ void load_row(Stage& stage, int chunk, int slot) const {
        const std::int64_t row = from.row(slot);
        const int at = chunk * Order::k + t * (Order::k / 4);
        ptx::copy_weights(&stage.words[slot][t], from.weights + (row * k + (at < k ? at : 0)) * bits / 8, at < k);
        if (t >= parts) return;
        const int scale = block(chunk, t);
        const __half* word = from.scales + row * blocks + scale;
        const bool second = second_of_word(word);
        // Never past the row's last scale: it may be the last of all.
        ptx::copy_async_4(&stage.scales[slot][t], word - second, second || scale + 1 < blocks ? 4 : 2);
    }

    __device__ __forceinline__ void load_unit(Stage& stage, int chunk, int i) const {
        constexpr int units = Order::k / 8;
        const int slot = i / units, u = i % units, at = chunk * Order::k + 8 * u;
        const T* x = from.x(slot);
        const bool there = x != nullptr && at < k;
        ptx::copy_async(&stage.x[slot][placed(u, slot)], there ? x + at : from.any, there);
    }

    /// Starts to copy a chunk; tokens and K that are not there are zeros.
    __device__ __forceinline__ void load(int chunk, int chunks) const {
        constexpr int threads = 32 * prefill_warps, units = tokens * Order::k / 8;
        if (chunk < chunks) {
            Stage& stage = shared.stages[chunk % Share::depth];
#pragma unroll
            for (int i = 0; i < prefill_rows * 4; i += threads) load_row(stage, chunk, (i + threadIdx.x) / 4);
#pragma unroll
            for (int i = 0; i < units; i += threads) load_unit(stage, chunk, i + threadIdx.x);
        }
        ptx::copy_commit();
    }

    /// The activations of a token at one word of the chunk.
    static __device__ __forceinline__ void read_x(const Stage& stage, int slot, int word,
                                                  unsigned (&pair)[Codes::pairs]) {
        if constexpr (bits == 4)
            Codes::activations(reinterpret_cast<const T*>(&stage.x[slot][placed(word, slot)]), pair);
        else
            Codes::activations(reinterpret_cast<const T*>(&stage.x[slot][placed(word / 2, slot)]) + word % 2 * 4,
                               pair);
    }

    __device__ __forceinline__ void multiply(Sums& sum, const Stage& stage, int chunk) const {
        const int words_of_part = 4 / parts;
        unsigned words[Share::m][2][4];
#pragma unroll
        for (int m = 0; m < Share::m; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                uint4 w = stage.words[row_slot(m, 2 * r)][t];
                Order::exchange(w, parts, t);
                words[m][r][0] = w.x, words[m][r][1] = w.y, words[m][r][2] = w.z, words[m][r][3] = w.w;
            }
        Sums part = {};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned a[Share::m][2][Codes::pairs];
#pragma unroll
            for (int m = 0; m < Share::m; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) Codes::weights(words[m][r][i], a[m][r]);
#pragma unroll
            for (int c = 0; c < Share::c; ++c) {
                unsigned b[Codes::pairs];
                read_x(stage, 8 * (warp / Share::of_rows * Share::c + c) + g, Order::word(parts, t, i), b);
#pragma unroll
                for (int m = 0; m < Share::m; ++m)
#pragma unroll
                    for (int p = 0; p < Codes::pairs; p += 2)
                        ptx::mma<Number<T>::bfloat>(
                            part[m][c], {a[m][0][p], a[m][1][p], a[m][0][p + 1], a[m][1][p + 1]}, {b[p], b[p + 1]});
            }
            if ((i + 1) % words_of_part == 0) add_scaled(sum, part, stage, chunk, i / words_of_part);
        }
    }

    __device__ __forceinline__ void add_scaled(Sums& sum, Sums& part, const Stage& stage, int chunk, int p) const {
#pragma unroll
        for (int m = 0; m < Share::m; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int slot = row_slot(m, 2 * r);
                const float2 both = widen(as_pair<__half2>(stage.scales[slot][p]));
                const bool second = second_of_word(from.scales + from.row(slot) * blocks + block(chunk, p));
                const float factor = second ? both.y : both.x;
#pragma unroll
                for (int c = 0; c < Share::c; ++c)
#pragma unroll
                    for (int v = 2 * r; v < 2 * r + 2; ++v) {
                        sum[m][c][v] = fmaf(part[m][c][v], factor, sum[m][c][v]);
                        part[m][c][v] = 0;
                    }
            }
    }

    /// sum += rows · tokens.
    __device__ __forceinline__ void run(Sums& sum) const {
        const int chunks = (k + Order::k - 1) / Order::k;
        for (int chunk = 0; chunk < Share::depth - 1; ++chunk) load(chunk, chunks);
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
            ptx::copy_wait<Share::depth - 2>();
            __syncthreads();  // the chunk is there for all, and all are done with the one before it
            load(chunk + Share::depth - 1, chunks);
            multiply(sum, shared.stages[chunk % Share::depth], chunk);
        }
        ptx::copy_wait<0>();
    }
};

}  // namespace ernie
