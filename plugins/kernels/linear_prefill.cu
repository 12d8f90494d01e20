// A linear layer for many tokens: a tile of 64 rows and 64 tokens a block.
#include "linear_kernels.h"
#include "prefill_tile.h"

namespace ernie {
namespace {

constexpr int tile = 64;  // tokens

/// Rows past the last are read as the last, and not written.
template <class T>
struct Source {
    const std::uint8_t* weights;
    const __half* scales;
    const T* any;  // the first token
    int tokens, n, k, first_row, first_token;

    __device__ __forceinline__ std::int64_t row(int slot) const { return min(first_row + slot, n - 1); }
    __device__ __forceinline__ const T* x(int slot) const {
        const int token = first_token + slot;
        return token < tokens ? any + std::int64_t{token} * k : nullptr;
    }
};

template <class T, int bits>
__global__ void __launch_bounds__(32 * prefill_warps, 2)
    linear_prefill_tile(const T* __restrict__ x, const std::uint8_t* __restrict__ weight,
                        const __half* __restrict__ scales, T* __restrict__ y, int tokens, int n, int k,
                        int block_size) {
    using Shared = PrefillShared<bits, tile>;
    ERNIE_SHARED(Shared, shared);
    const int first_row = prefill_rows * blockIdx.y, first_token = tile * blockIdx.x;
    const Source<T> source{weight, scales, x, tokens, n, k, first_row, first_token};
    const PrefillTile<T, bits, tile, Source<T>> at{shared, source, k, block_size};
    using Share = Shares<tile>;
    float sum[Share::m][Share::c][4] = {};
    at.run(sum);
#pragma unroll
    for (int m = 0; m < Share::m; ++m)
#pragma unroll
        for (int c = 0; c < Share::c; ++c)
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const int row = first_row + at.row_slot(m, v), token = first_token + at.token_slot(c, v);
                if (row < n && token < tokens) y[std::int64_t{token} * n + row] = narrow<T>(sum[m][c][v]);
            }
}

template <class T, int bits>
Problem launch_tile(const Linear& c, cudaStream_t stream) {
    const dim3 grid(ceil_div(c.tokens, tile), ceil_div(c.n, prefill_rows));
    const cudaError_t error =
        ERNIE_LAUNCH((linear_prefill_tile<T, bits>), grid, 32 * prefill_warps, sizeof(PrefillShared<bits, tile>),
                     stream, static_cast<const T*>(c.x), c.weight, static_cast<const __half*>(c.scales),
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
