// Attention of few rows of queries, over parts of the context.
//
// A block has one key-value head and 16 rows of queries: the heads that share it, times new tokens, so that
// decode reads the cache once for the whole group.  Its warps take 16 keys in turn, straight from the cache.
#include "attention_rows.h"

namespace ernie {
namespace {

constexpr int warps = attention_warps;
constexpr int keys_a_step = 16;

/// Of 16 rows of queries: the largest score, the sum of exp(score − largest), and that times the values.
template <int head_dim>
struct Joint {
    float largest[warps][decode_rows];
    float sum[warps][decode_rows];
    float of_values[warps][decode_rows][head_dim];
};

template <int head_dim, class Mine>
__device__ __forceinline__ void hand_over(Joint<head_dim>& joint, const Mine& mine) {
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = mine.g + 8 * r;
        if (mine.t == 0) joint.largest[warp][row] = mine.largest[r], joint.sum[warp][row] = mine.sum[r];
#pragma unroll
        for (int j = 0; j < Mine::tiles; ++j)
#pragma unroll
            for (int column = 0; column < 2; ++column)
                joint.of_values[warp][row][mine.d_of_value(j, column)] = mine.of_values[j][2 * r + column];
    }
}

template <class T, int bits, int head_dim>
__global__ void __launch_bounds__(32 * warps, 2)
    attention_part(Context context, Cache cache, const T* __restrict__ query, Parts parts, T* __restrict__ output,
                   float scale) {
    ERNIE_SHARED(Joint<head_dim>, joint);
    const int part = blockIdx.x, head = blockIdx.y % context.kv_heads, b = blockIdx.z;
    const int first_row = decode_rows * (blockIdx.y / context.kv_heads);
    const int warp = threadIdx.x / 32;
    Attending<T, bits, head_dim> mine;
    mine.read_queries(context, query, b, head, first_row);

    const int keys = context.keys(b, first_row, decode_rows);
    const int steps = (keys + keys_a_step - 1) / keys_a_step;
    const int begin = static_cast<int>(std::int64_t{steps} * part / parts.count);
    const int end = static_cast<int>(std::int64_t{steps} * (part + 1) / parts.count);
    const std::int64_t of_all = std::int64_t{b} * context.kv_heads + head;
    const auto key = rows_of_head<head_dim, bits>(cache.key, cache.key_scales, of_all, context.rows, keys);
    const auto value = rows_of_head<head_dim, bits>(cache.value, cache.value_scales, of_all, context.rows, keys);
#pragma unroll 1
    for (int step = begin + warp; step < end; step += warps) {
        const int first = step * keys_a_step;
        float scores[2][4] = {};
        mine.score(scores[0], key, first);
        mine.score(scores[1], key, first + 8);
        mine.soften(scores, first, scale);
        mine.weigh(scores, value, first);
    }
    mine.finish();
    hand_over(joint, mine);
    __syncthreads();
    for (int i = threadIdx.x; i < decode_rows * head_dim; i += 32 * warps) {
        const int r = i / head_dim, d = i % head_dim;
        float largest = -INFINITY, sum = 0, of_values = 0;
        for (int w = 0; w < warps; ++w) largest = fmaxf(largest, joint.largest[w][r]);
        for (int w = 0; w < warps; ++w) {
            const float factor = share(joint.largest[w][r], largest);
            sum += factor * joint.sum[w][r];
            of_values += factor * joint.of_values[w][r][d];
        }
        const Destination<T, head_dim> to(context, parts, output, part, b, head, first_row + r);
        to.put(d, largest, sum, of_values);
    }
}

}  // namespace

cudaError_t attention_decode(const Attention& c, const Parts& parts, cudaStream_t stream) {
    const dim3 grid(parts.count, c.kv_heads * query_tiles(c, decode_rows), c.batch);
    return with_kinds(c, [&](auto number, auto bits, auto head_dim) {
        using T = decltype(number);
        return ERNIE_LAUNCH((attention_part<T, bits(), head_dim()>), grid, 32 * warps, sizeof(Joint<head_dim()>),
                            stream, Context(c), Cache(c), static_cast<const T*>(c.query), parts,
                            static_cast<T*>(c.output), c.scale);
    });
}

}  // namespace ernie
