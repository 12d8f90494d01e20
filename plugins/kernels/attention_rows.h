// A warp's 16 rows of queries over keys and values: scores, softmax as it goes, weighted values.
//
// As in row_tile.h, fragments follow the loads: the order of d within a head and of the columns of the output is
// free, so a lane takes what wide loads of stored keys and values bring it.
#pragma once

#include "attention_cache.h"

namespace ernie {

/// A lane has the rows g and g + 8, [0] and [1].
template <class T, int bits, int head_dim>
struct Attending {
    using Pair = typename Number<T>::Pair;
    static constexpr int pairs = head_dim / 8;  // of d, a lane's share of a key
    static constexpr int key_bytes = bits == 8 && head_dim == 32 ? 8 : 16;  // of a load
    static constexpr int key_pairs = key_bytes * 4 / bits;
    static constexpr int key_loads = pairs / key_pairs;
    static constexpr int tiles = head_dim / 8;  // of eight columns of the output
    static constexpr int value_bytes = head_dim * bits / 64 < 16 ? head_dim * bits / 64 : 16;
    static constexpr int value_tiles = value_bytes * 8 / bits;  // that one load of values serves
    static constexpr int value_loads = tiles / value_tiles;
    // Probabilities are multiplied by the values' scales before they are rounded to T; this keeps fp16 in its range.
    static constexpr float lift = bits == 8 ? 64 : 1;

    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned query[2][pairs];
    int last[2];  // the last key that the row sees; −1: there is no such row
    float largest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};  // this lane's share
    float of_values[tiles][4] = {};

    /// The first of the d of a lane's pair of keys.
    __device__ __forceinline__ int d_of_pair(int pair) const {
        return (pair / key_pairs * 4 + t) * 2 * key_pairs + pair % key_pairs * 2;
    }
    /// The d of of_values[tile][2r + column % 2] of the column 2t + column.
    __device__ __forceinline__ int d_of_value(int tile, int column) const {
        return (tile / value_tiles * 8 + 2 * t + column) * value_tiles + tile % value_tiles;
    }

    __device__ __forceinline__ void read_queries(const Context& context, const T* queries, int b, int head,
                                                 int first_row) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = first_row + g + 8 * r, token = row / context.group;
            const bool there = token < context.tokens;
            last[r] = there ? context.row(b, token) : -1;
            const T* from = queries + context.query_row(b, head, row) * head_dim;
#pragma unroll
            for (int p = 0; p < pairs; p += 4) {
                const int d = d_of_pair(p);
                uint4 x = make_uint4(0, 0, 0, 0);
                if (there) x = *reinterpret_cast<const uint4*>(from + d);
                const unsigned four[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    query[r][p + i] = there ? context.turn<T>(four[i], b, token, d + 2 * i, head_dim) : 0;
            }
        }
    }

    /// scores[v]: of the rows g, g, g + 8, g + 8 with the keys 2t, 2t + 1 of the eight from `first`.
    template <class Rows>
    __device__ __forceinline__ void score(float (&scores)[4], const Rows& keys, int first) const {
#pragma unroll
        for (int load = 0; load < key_loads; ++load) {
            const auto stored = keys.template read<key_bytes>(first + g, (4 * load + t) * key_bytes);
            unsigned words[key_bytes / 4], k[key_pairs];
            memcpy(words, &stored, key_bytes);
            expand<T, bits>(words, k);
#pragma unroll
            for (int p = 0; p < key_pairs; p += 2) {
                const int at = load * key_pairs + p;
                ptx::mma<Number<T>::bfloat>(scores, {query[0][at], query[1][at], query[0][at + 1], query[1][at + 1]},
                                            {k[p], k[p + 1]});
            }
        }
        if constexpr (bits == 8) {
#pragma unroll
            for (int v = 0; v < 4; ++v) scores[v] *= keys.scale(first + 2 * t + v % 2);
        }
    }

    /// Scores become exp(score − largest), and all sums so far follow a new largest.
    template <int eights>
    __device__ __forceinline__ void soften(float (&scores)[eights][4], int first, float scale) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float now = largest[r];
#pragma unroll
            for (int i = 0; i < 2 * eights; ++i) {
                float& s = scores[i / 2][2 * r + i % 2];
                s = first + 8 * (i / 2) + 2 * t + i % 2 <= last[r] ? s * scale : -INFINITY;
                now = fmaxf(now, s);
            }
            now = fmaxf(now, __shfl_xor_sync(all_lanes, now, 1));
            now = fmaxf(now, __shfl_xor_sync(all_lanes, now, 2));
            const float origin = now == -INFINITY ? 0 : now;  // while a row has seen nothing
            const float shrink = expf(largest[r] - origin);
            largest[r] = now;
            sum[r] *= shrink;
#pragma unroll
            for (int i = 0; i < 2 * eights; ++i) {
                float& s = scores[i / 2][2 * r + i % 2];
                s = expf(s - origin);
                sum[r] += s;
            }
#pragma unroll
            for (int j = 0; j < tiles; ++j) of_values[j][2 * r] *= shrink, of_values[j][2 * r + 1] *= shrink;
        }
    }

    static __device__ __forceinline__ unsigned pair(float low, float high) {
        return as_bits(Pair(narrow<T>(low), narrow<T>(high)));
    }

    /// of_values += probabilities p [2][4] · the 16 values from `first`.
    template <class Rows>
    __device__ __forceinline__ void weigh(const float (*p)[4], const Rows& values, int first) {
        float scales[4] = {1, 1, 1, 1};  // of the keys 2t, 2t + 1, 2t + 8, 2t + 9
        if constexpr (bits == 8) {
#pragma unroll
            for (int i = 0; i < 4; ++i) scales[i] = lift * values.scale(first + 2 * t + i % 2 + 8 * (i / 2));
        }
        unsigned a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float(&two)[4] = p[i / 2];
            a[i] = pair(two[i % 2 * 2] * scales[i / 2 * 2], two[i % 2 * 2 + 1] * scales[i / 2 * 2 + 1]);
        }
#pragma unroll
        for (int load = 0; load < value_loads; ++load) {
            unsigned v[4][value_tiles / 2];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const auto stored = values.template read<value_bytes>(first + 2 * t + i % 2 + 8 * (i / 2),
                                                                      (8 * load + g) * value_bytes);
                unsigned words[value_bytes / 4];
                memcpy(words, &stored, value_bytes);
                expand<T, bits>(words, v[i]);
            }
#pragma unroll
            for (int j = 0; j < value_tiles; ++j) {
                const unsigned selector = j % 2 ? 0x7632 : 0x5410;
                ptx::mma<Number<T>::bfloat>(of_values[load * value_tiles + j], a,
                                            {__byte_perm(v[0][j / 2], v[1][j / 2], selector),
                                             __byte_perm(v[2][j / 2], v[3][j / 2], selector)});
            }
        }
    }

    /// The sums of the four lanes of a row.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            sum[r] += __shfl_xor_sync(all_lanes, sum[r], 1);
            sum[r] += __shfl_xor_sync(all_lanes, sum[r], 2);
#pragma unroll
            for (int j = 0; j < tiles; ++j) of_values[j][2 * r] /= lift, of_values[j][2 * r + 1] /= lift;
        }
    }
};

/// Where the result of a row of queries goes: into the output, or, of a part of the context, to where parts are
/// joined.
template <class T, int head_dim>
struct Destination {
    T* output;
    const Parts& parts;
    int part;
    bool there, sound;
    std::int64_t row;

    __device__ __forceinline__ Destination(const Context& context, const Parts& parts, T* output, int part, int b,
                                           int head, int query)
        : output(output), parts(parts), part(part) {
        const int token = query / context.group;
        there = token < context.tokens;
        sound = there && context.sound(b, token);
        row = context.query_row(b, head, query);
    }

    __device__ __forceinline__ void put(int d, float largest, float sum, float of_values) const {
        if (!there) return;
        if (parts.count == 1) {
            output[row * head_dim + d] = narrow<T>(sound ? of_values / sum : NAN);
            return;
        }
        const std::int64_t at = row * parts.count + part;
        if (d == 0) parts.largest[at] = largest, parts.sum[at] = sum;
        parts.of_values[at * head_dim + d] = of_values;
    }
};

}  // namespace ernie
