// The cache as the kernels see it: where new rows lie, how they are turned, and how stored rows are read.
#pragma once

#include "attention_kernels.h"
#include "codes.h"

namespace ernie {

constexpr unsigned all_lanes = 0xffffffffu;

/// Sizes, lengths and angles.
struct Context {
    const float* cos;
    const float* sin;
    const std::int64_t* position_ids;
    const std::int32_t* seqlens_k;
    std::uint32_t* faults;
    int tokens, kv_heads, group, rows, positions;

    explicit Context(const Attention& c)
        : cos(c.cos),
          sin(c.sin),
          position_ids(c.position_ids),
          seqlens_k(c.seqlens_k),
          faults(c.faults),
          tokens(c.tokens),
          kv_heads(c.kv_heads),
          group(c.heads / c.kv_heads),
          rows(c.rows),
          positions(c.positions) {}

    /// The cache row of a new token, or `rows` if the caller's lengths put it outside.
    __device__ __forceinline__ int row(int b, int token) const {
        const std::int64_t start = std::int64_t{seqlens_k[b]} + 1 - tokens;
        const std::int64_t row = (start > 0 ? start : 0) + token;
        return row < rows ? static_cast<int>(row) : rows;
    }
    __device__ __forceinline__ std::int64_t position(int b, int token) const {
        return position_ids[std::int64_t{b} * tokens + token];
    }
    __device__ __forceinline__ bool sound(int b, int token) const {
        const std::int64_t at = position(b, token);
        return at >= 0 && at < positions && row(b, token) < rows;
    }
    /// The place of a row of queries of a key-value head among all.
    __device__ __forceinline__ std::int64_t query_row(int b, int head, int row) const {
        return ((std::int64_t{b} * tokens + row / group) * kv_heads + head) * group + row % group;
    }
    /// How many keys the last of `count` rows of queries sees.
    __device__ __forceinline__ int keys(int b, int first_row, int count) const {
        return min(row(b, min((first_row + count - 1) / group, tokens - 1)) + 1, rows);
    }

    /// Turns the pair of d, d + 1 by the angle of its position; NaN where there is none.
    template <class T>
    __device__ __forceinline__ unsigned turn(unsigned pair, int b, int token, int d, int head_dim) const {
        using Pair = typename Number<T>::Pair;
        const std::int64_t turned = position(b, token);
        if (turned < 0 || turned >= positions) return as_bits(Pair(narrow<T>(NAN), narrow<T>(NAN)));
        const float2 x = widen(as_pair<Pair>(pair));
        const std::int64_t at = turned * (head_dim / 2) + d / 2;
        const float c = cos[at], s = sin[at];
        return as_bits(Pair(narrow<T>(x.x * c - x.y * s), narrow<T>(x.x * s + x.y * c)));
    }
};

/// exp(largest − of all), or nothing of a part that saw no key.
__device__ __forceinline__ float share(float largest, float of_all) {
    return largest == -INFINITY ? 0 : expf(largest - of_all);
}

/// Keys and values of the present, of 8 bits with scales.
struct Cache {
    unsigned char* key;
    unsigned char* value;
    float* key_scales;
    float* value_scales;

    explicit Cache(const Attention& c)
        : key(static_cast<unsigned char*>(c.present_key)),
          value(static_cast<unsigned char*>(c.present_value)),
          key_scales(c.present_key_scales),
          value_scales(c.present_value_scales) {}
};

/// `bytes` of a stored row as one load.
template <int bytes>
struct Load;
template <>
struct Load<4> {
    using Type = unsigned;
};
template <>
struct Load<8> {
    using Type = uint2;
};
template <>
struct Load<16> {
    using Type = uint4;
};

/// Stored numbers as pairs of T, without their scale.
template <class T, int bits, int words>
__device__ __forceinline__ void expand(const unsigned (&stored)[words], unsigned (&pairs)[words * 16 / bits]) {
#pragma unroll
    for (int i = 0; i < words; ++i) {
        if constexpr (bits == 16) {
            pairs[i] = stored[i];
        } else {
            unsigned two[2];
            Word<T, 8>::weights(stored[i], two);
            pairs[2 * i] = two[0], pairs[2 * i + 1] = two[1];
        }
    }
}

/// Rows of keys or of values: of those not there zeros are read.
template <int head_dim, int bits>
struct GlobalRows {
    static constexpr int row_bytes = head_dim * bits / 8;
    const unsigned char* data;
    const float* scales;
    int count;

    template <int bytes>
    __device__ __forceinline__ typename Load<bytes>::Type read(int row, int at) const {
        using Type = typename Load<bytes>::Type;
        return row < count ? *reinterpret_cast<const Type*>(data + std::int64_t{row} * row_bytes + at) : Type{};
    }
    __device__ __forceinline__ float scale(int row) const { return row < count ? scales[row] : 0; }
};

/// The first `count` rows of a head.
template <int head_dim, int bits>
__device__ __forceinline__ GlobalRows<head_dim, bits> rows_of_head(const unsigned char* data, const float* scales,
                                                                   std::int64_t head, int rows, int count) {
    return {data + head * rows * GlobalRows<head_dim, bits>::row_bytes,
            bits == 8 ? scales + head * rows : nullptr, count};
}

}  // namespace ernie
