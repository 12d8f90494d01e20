#include "linear_kernels.h"
#include "row_tile.h"

namespace ernie {
namespace {

constexpr int warps = 8;

template <int groups>
struct Shared {
    Ring rings[warps];
    WarpSums<warps, groups> sums;
};

/// A block takes 16 rows, its warps share K; there are at most 8·groups tokens.
template <class T, int bits, int groups, bool whole>
__global__ void __launch_bounds__(32 * warps, 2)
    linear_decode_tile(const T* __restrict__ x, const std::uint8_t* __restrict__ weight, const __half* __restrict__ scales,
                  T* __restrict__ y, int tokens, int n, int k, int block_size) {
    ERNIE_SHARED(Shared<groups>, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_row = 16 * blockIdx.x;
    const int blocks = k / block_size;

    Operands<T, groups> mine;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        // Rows past the last are read as the last, and not written.
        const int row = first_row + lane / 4 + 8 * r;
        const std::int64_t there = row < n ? row : n - 1;
        mine.weights[r] = weight + there * (k * bits / 8);
        mine.scales[r] = scales + there * blocks;
    }
#pragma unroll
    for (int c = 0; c < groups; ++c) {
        const int token = 8 * c + lane / 4;
        mine.x[c] = token < tokens ? x + std::int64_t{token} * k : nullptr;
    }
    float sum[groups][4] = {};
    accumulate<T, bits, whole>(sum, shared.rings, 1, k, block_size, [&](int) { return mine; });
    float total[4];
    if (!add_warps(shared.sums, sum, total)) return;
#pragma unroll
    for (int v = 0; v < 4; ++v) {
        const int row = first_row + lane / 4 + 8 * (v / 2);
        const int token = 8 * warp + 2 * (lane % 4) + v % 2;
        if (row < n && token < tokens) y[std::int64_t{token} * n + row] = narrow<T>(total[v]);
    }
}

template <class T, int bits, int groups>
Problem launch_tile(const Linear& c, cudaStream_t stream) {
    const cudaError_t error = with_whole<bits>(c.format, [&](auto whole) {
        return ERNIE_LAUNCH((linear_decode_tile<T, bits, groups, whole()>), ceil_div(c.n, 16), 32 * warps,
                            sizeof(Shared<groups>), stream, static_cast<const T*>(c.x), c.weight,
                            static_cast<const __half*>(c.scales), static_cast<T*>(c.y), c.tokens, c.n, c.k,
                            c.format.block_size);
    });
    return answer(error, "linear_decode_tile");
}

}  // namespace

Problem linear_decode(const Linear& c, cudaStream_t stream) {
    return with_type(c.type, [&](auto type) {
        using T = decltype(type);
        const bool few = c.tokens <= 8;
        if (c.format.bits == 4) return few ? launch_tile<T, 4, 1>(c, stream) : launch_tile<T, 4, 2>(c, stream);
        return few ? launch_tile<T, 8, 1>(c, stream) : launch_tile<T, 8, 2>(c, stream);
    });
}

}  // namespace ernie
