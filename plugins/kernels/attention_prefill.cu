// Attention of many rows of queries, which share the reading of keys and values.
//
// A block has one key-value head and 64 rows of queries, 16 a warp.  Keys and values come through shared memory
// 32 at a time, the next ones while these are used; their 16-byte units are placed so that eight lanes do not
// meet in a bank (rows of 64 bytes and less meet in twos).
#include "attention_rows.h"

namespace ernie {
namespace {

constexpr int warps = attention_warps;
constexpr int keys_a_tile = 32;
constexpr int depth = 2;  // tiles in shared memory

template <int head_dim, int bits>
struct Shared {
    static constexpr int units = head_dim * bits / 128;  // of 16 bytes, of a row
    struct Stage {
        uint4 key[keys_a_tile][units];
        uint4 value[keys_a_tile][units];
        float key_scales[keys_a_tile];
        float value_scales[keys_a_tile];
    } stages[depth];
};

/// Where a unit of a row lies: eight lanes read keys of two neighbouring rows, and values of four rows two apart.
template <int units, bool keys>
__device__ __forceinline__ int placed(int row, int unit) {
    return unit ^ ((keys ? (row & 1) << 2 : (row >> 1 & 3) << 1) & (units - 1));
}

template <int units, bool keys>
struct SharedRows {
    const uint4 (*data)[units];
    const float* scales;

    template <int bytes>
    __device__ __forceinline__ typename Load<bytes>::Type read(int row, int at) const {
        const uint4* unit = &data[row][placed<units, keys>(row, at / 16)];
        return *reinterpret_cast<const typename Load<bytes>::Type*>(reinterpret_cast<const unsigned char*>(unit) +
                                                                    at % 16);
    }
    __device__ __forceinline__ float scale(int row) const { return scales[row]; }
};

/// Starts to copy the rows from `first` on, zeros for those past the last.
template <int head_dim, int bits, bool keys>
__device__ __forceinline__ void load(uint4 (*data)[Shared<head_dim, bits>::units], float* scales,
                                     const GlobalRows<head_dim, bits>& from, int first) {
    constexpr int units = Shared<head_dim, bits>::units;
    for (int i = threadIdx.x; i < keys_a_tile * units; i += 32 * warps) {
        const int row = i / units, unit = i % units;
        const bool there = first + row < from.count;
        const std::int64_t at = there ? first + row : 0;
        ptx::copy_async(&data[row][placed<units, keys>(row, unit)], from.data + at * from.row_bytes + 16 * unit,
                        there);
    }
    if constexpr (bits == 8) {
        const int row = threadIdx.x;
        const bool there = first + row < from.count;
        if (row < keys_a_tile) ptx::copy_async_4(&scales[row], from.scales + (there ? first + row : 0), there ? 4 : 0);
    }
}

template <class T, int bits, int head_dim>
__global__ void __launch_bounds__(32 * warps, 2)
    attention_tile(Context context, Cache cache, const T* __restrict__ query, Parts parts, T* __restrict__ output,
                   float scale) {
    using Memory = Shared<head_dim, bits>;
    ERNIE_SHARED(Memory, shared);
    // The last tiles see the most keys, so they start first.
    const int tile = gridDim.y / context.kv_heads - 1 - blockIdx.y / context.kv_heads;
    const int part = blockIdx.x, head = blockIdx.y % context.kv_heads, b = blockIdx.z;
    const int first_row = prefill_rows * tile;
    const int own_row = first_row + 16 * (threadIdx.x / 32);
    Attending<T, bits, head_dim> mine;
    mine.read_queries(context, query, b, head, own_row);

    const int keys = context.keys(b, first_row, prefill_rows);
    const int steps = (keys + keys_a_tile - 1) / keys_a_tile;
    const int begin = static_cast<int>(std::int64_t{steps} * part / parts.count);
    const int end = static_cast<int>(std::int64_t{steps} * (part + 1) / parts.count);
    const std::int64_t of_all = std::int64_t{b} * context.kv_heads + head;
    const auto key = rows_of_head<head_dim, bits>(cache.key, cache.key_scales, of_all, context.rows, keys);
    const auto value = rows_of_head<head_dim, bits>(cache.value, cache.value_scales, of_all, context.rows, keys);
    const auto load_tile = [&](int step) {
        typename Memory::Stage& stage = shared.stages[step % depth];
        if (step < end) load<head_dim, bits, true>(stage.key, stage.key_scales, key, step * keys_a_tile);
        if (step < end) load<head_dim, bits, false>(stage.value, stage.value_scales, value, step * keys_a_tile);
        ptx::copy_commit();
    };
    load_tile(begin);
#pragma unroll 1
    for (int step = begin; step < end; ++step) {
        ptx::copy_wait<0>();
        __syncthreads();  // the tile is there for all, and all are done with the one before it
        load_tile(step + 1);
        const typename Memory::Stage& stage = shared.stages[step % depth];
        const SharedRows<Memory::units, true> some_keys{stage.key, stage.key_scales};
        const SharedRows<Memory::units, false> some_values{stage.value, stage.value_scales};
        float scores[keys_a_tile / 8][4] = {};
#pragma unroll
        for (int i = 0; i < keys_a_tile / 8; ++i) mine.score(scores[i], some_keys, 8 * i);
        mine.soften(scores, step * keys_a_tile, scale);
#pragma unroll
        for (int i = 0; i < keys_a_tile / 8; i += 2) mine.weigh(&scores[i], some_values, 8 * i);
    }
    ptx::copy_wait<0>();
    mine.finish();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const Destination<T, head_dim> to(context, parts, output, part, b, head, own_row + mine.g + 8 * r);
#pragma unroll
        for (int j = 0; j < mine.tiles; ++j)
#pragma unroll
            for (int column = 0; column < 2; ++column)
                to.put(mine.d_of_value(j, column), mine.largest[r], mine.sum[r], mine.of_values[j][2 * r + column]);
    }
}

}  // namespace

cudaError_t attention_prefill(const Attention& c, const Parts& parts, cudaStream_t stream) {
    const dim3 grid(parts.count, c.kv_heads * query_tiles(c, prefill_rows), c.batch);
    return with_kinds(c, [&](auto number, auto bits, auto head_dim) {
        using T = decltype(number);
        return ERNIE_LAUNCH((attention_tile<T, bits(), head_dim()>), grid, 32 * warps,
                            sizeof(Shared<head_dim(), bits()>), stream, Context(c), Cache(c),
                            static_cast<const T*>(c.query), parts, static_cast<T*>(c.output), c.scale);
    });
}

}  // namespace ernie
