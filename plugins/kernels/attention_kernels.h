// What attention.cpp launches, its arguments checked, and what the kernels share.
#pragma once

#include <type_traits>

#include "attention.h"
#include "number.h"

namespace ernie {

constexpr int attention_warps = 4;
constexpr int decode_rows = 16;  // of queries, of a block
constexpr int prefill_rows = 64;

/// Rows of queries of a key-value head, in tiles.
inline int query_tiles(const Attention& c, int rows) { return ceil_div(c.tokens * (c.heads / c.kv_heads), rows); }

/// What each part of the context gives a row of queries, to be joined; rows are [B, S, kv_heads, group].
struct Parts {
    float* largest;    // [rows, count]
    float* sum;        // [rows, count]
    float* of_values;  // [rows, count, D]
    int count;         // 1: there is nothing to join, and a row's only part writes the output itself
};

/// f with T, the bits of the cache and D as types: a number of T, and two std::integral_constant.
template <class F>
auto with_kinds(const Attention& c, F&& f) {
    return with_type(c.type, [&](auto number) {
        const auto with_bits = [&](auto bits) {
            if (c.head_dim == 32) return f(number, bits, std::integral_constant<int, 32>{});
            if (c.head_dim == 64) return f(number, bits, std::integral_constant<int, 64>{});
            return f(number, bits, std::integral_constant<int, 128>{});
        };
        if (c.cache_bits == 8) return with_bits(std::integral_constant<int, 8>{});
        return with_bits(std::integral_constant<int, 16>{});
    });
}

cudaError_t attention_append(const Attention& call, cudaStream_t stream);
cudaError_t attention_decode(const Attention& call, const Parts& parts, cudaStream_t stream);
cudaError_t attention_prefill(const Attention& call, const Parts& parts, cudaStream_t stream);
cudaError_t attention_join(const Attention& call, const Parts& parts, cudaStream_t stream);

}  // namespace ernie
