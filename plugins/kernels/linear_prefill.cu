// A linear layer for many tokens: tiles of 64 rows and 64 tokens, of which four warps take 32 by 32 each.
//
// As in row_tile.h the weights are mma's left operand and K follows their bytes; here they and the tokens go
// through shared memory, where the tokens' 16-byte units are placed so that eight lanes never meet in a bank.
#include "linear_kernels.h"
#include "row_tile.h"

namespace ernie {
namespace {

constexpr int warps = 4;
constexpr int tile = 64;  // rows, and tokens
constexpr int depth = 3;  // chunks of K in shared memory

template <int bits>
struct Shared {
    struct Stage {
        uint4 words[tile][4];
        uint4 x[tile][Chunk<bits>::k / 8];
        unsigned scales[tile][4];  // of each part of the chunk: two fp16, of which one is meant
    } stages[depth];
};

/// Where unit u of a token's chunk lies.
template <int bits>
__device__ __forceinline__ int placed(int u, int token) {
    if constexpr (bits == 4) return ((u & 3) << 2 | u >> 2) ^ (token & 1) << 2;
    return u ^ (token & 7);
}

template <class T, int bits>
struct PrefillTile {
    using Order = Chunk<bits>;
    using Codes = Word<T, bits>;

    const T* x;
    const std::uint8_t* weight;
    const __half* scales;
    int tokens, n, k, block_size, first_row, first_token;

    __device__ __forceinline__ int blocks() const { return k / block_size; }
    __device__ __forceinline__ const __half* scale(int row, int chunk, int part) const {
        const int block = min(chunk * Order::k / block_size + part, blocks() - 1);
        return scales + std::int64_t{min(first_row + row, n - 1)} * blocks() + block;
    }

    /// Rows past the last are read as the last, and not written; tokens and K past the end are zeros.
    __device__ __forceinline__ void load(typename Shared<bits>::Stage& stage, int chunk) const {
        constexpr int units = Order::k / 8;
        for (int i = threadIdx.x; i < tile * 4; i += 32 * warps) {
            const int row = i / 4, t = i % 4, at = chunk * Order::k + t * (Order::k / 4);
            const std::int64_t there = min(first_row + row, n - 1);
            const bool inside = at < k;
            ptx::copy_weights(&stage.words[row][t], weight + (there * k + (inside ? at : 0)) * bits / 8, inside);
            if (t < Order::parts(block_size)) {
                const __half* from = scale(row, chunk, t);
                const bool second = second_of_word(from);
                const bool more = (from - scales + 1) % blocks() != 0;
                ptx::copy_async_4(&stage.scales[row][t], from - second, second || more ? 4 : 2);
            }
        }
        for (int i = threadIdx.x; i < tile * units; i += 32 * warps) {
            const int token = i / units, u = i % units, at = chunk * Order::k + 8 * u;
            const bool inside = first_token + token < tokens && at < k;
            const std::int64_t from = inside ? std::int64_t{first_token + token} * k + at : 0;
            ptx::copy_async(&stage.x[token][placed<bits>(u, token)], x + from, inside);
        }
    }

    /// The activations of a token at one word of the chunk.
    static __device__ __forceinline__ void read_x(const typename Shared<bits>::Stage& stage, int token, int word,
                                                  unsigned (&pair)[Codes::pairs]) {
        if constexpr (bits == 4)
            Codes::activations(reinterpret_cast<const T*>(&stage.x[token][placed<4>(word, token)]), pair);
        else
            Codes::activations(reinterpret_cast<const T*>(&stage.x[token][placed<8>(word / 2, token)]) + word % 2 * 4,
                               pair);
    }

    /// sum[m][c] += the rows 16m … of this warp's 32, times the tokens 8c … of its 32.
    __device__ __forceinline__ void multiply(float (&sum)[2][4][4], const typename Shared<bits>::Stage& stage,
                                             int chunk) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const int parts = Order::parts(block_size), words_of_part = 4 / parts;
        unsigned words[2][2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                uint4 w = stage.words[32 * (warp / 2) + 16 * m + 8 * r + g][t];
                Order::exchange(w, parts, t);
                words[m][r][0] = w.x, words[m][r][1] = w.y, words[m][r][2] = w.z, words[m][r][3] = w.w;
            }
        float part[2][4][4] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned a[2][2][Codes::pairs];
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) Codes::weights(words[m][r][i], a[m][r]);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                unsigned b[Codes::pairs];
                read_x(stage, 32 * (warp % 2) + 8 * c + g, Order::word(parts, t, i), b);
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int p = 0; p < Codes::pairs; p += 2)
                        ptx::mma<Number<T>::bfloat>(
                            part[m][c], {a[m][0][p], a[m][1][p], a[m][0][p + 1], a[m][1][p + 1]}, {b[p], b[p + 1]});
            }
            if ((i + 1) % words_of_part != 0) continue;
            add_scaled(sum, part, stage, chunk, i / words_of_part);
        }
    }

    __device__ __forceinline__ void add_scaled(float (&sum)[2][4][4], float (&part)[2][4][4],
                                               const typename Shared<bits>::Stage& stage, int chunk, int p) const {
        const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = 32 * (warp / 2) + 16 * m + 8 * r + g;
                const float2 both = widen(as_pair<__half2>(stage.scales[row][p]));
                const float factor = second_of_word(scale(row, chunk, p)) ? both.y : both.x;
#pragma unroll
                for (int c = 0; c < 4; ++c)
#pragma unroll
                    for (int v = 2 * r; v < 2 * r + 2; ++v) {
                        sum[m][c][v] = fmaf(part[m][c][v], factor, sum[m][c][v]);
                        part[m][c][v] = 0;
                    }
            }
    }
};

template <class T, int bits>
__global__ void __launch_bounds__(32 * warps, 2)
    linear_prefill_tile(const T* __restrict__ x, const std::uint8_t* __restrict__ weight,
                        const __half* __restrict__ scales, T* __restrict__ y, int tokens, int n, int k,
                        int block_size) {
    ERNIE_SHARED(Shared<bits>, shared);
    const PrefillTile<T, bits> at{x,
                                  weight,
                                  scales,
                                  tokens,
                                  n,
                                  k,
                                  block_size,
                                  tile * static_cast<int>(blockIdx.y),
                                  tile * static_cast<int>(blockIdx.x)};
    const int chunks = (k + Chunk<bits>::k - 1) / Chunk<bits>::k;
    float sum[2][4][4] = {};
    for (int chunk = 0; chunk < depth - 1; ++chunk) {
        if (chunk < chunks) at.load(shared.stages[chunk], chunk);
        ptx::copy_commit();
    }
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        ptx::copy_wait<depth - 2>();
        __syncthreads();  // the chunk is there for all, and all are done with the one before it
        const int next = chunk + depth - 1;
        if (next < chunks) at.load(shared.stages[next % depth], next);
        ptx::copy_commit();
        at.multiply(sum, shared.stages[chunk % depth], chunk);
    }
    ptx::copy_wait<0>();
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int c = 0; c < 4; ++c)
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const int row = at.first_row + 32 * (warp / 2) + 16 * m + 8 * (v / 2) + g;
                const int token = at.first_token + 32 * (warp % 2) + 8 * c + 2 * t + v % 2;
                if (row < n && token < tokens) y[std::int64_t{token} * n + row] = narrow<T>(sum[m][c][v]);
            }
}

template <class T, int bits>
Problem launch_tile(const Linear& c, cudaStream_t stream) {
    const dim3 grid(ceil_div(c.tokens, tile), ceil_div(c.n, tile));
    const cudaError_t error =
        ERNIE_LAUNCH((linear_prefill_tile<T, bits>), grid, 32 * warps, sizeof(Shared<bits>), stream,
                     static_cast<const T*>(c.x), c.weight, static_cast<const __half*>(c.scales),
                     static_cast<T*>(c.y), c.tokens, c.n, c.k, c.format.block_size);
    return answer(error, "linear_prefill_tile");
}

}  // namespace

Problem linear_prefill(const Linear& c, cudaStream_t stream) {
    return with_type(c.type, [&](auto type) {
        using T = decltype(type);
        return c.format.bits == 4 ? launch_tile<T, 4>(c, stream) : launch_tile<T, 8>(c, stream);
    });
}

}  // namespace ernie
