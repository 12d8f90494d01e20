// Cached attention: the new rows into the cache; attention, over parts of the context where there are few rows
// of queries; the parts joined.
#include "attention_kernels.h"

namespace ernie {
namespace {

constexpr int most_decoded = 32;  // rows of queries of a key-value head
constexpr int least_keys = 64;    // of a part
constexpr int most_parts = 64;
constexpr int most_query_rows = 1 << 30;  // of a prompt; the kernels count them in 32 bits
constexpr int enough_blocks = 512;  // for the largest GPU

std::int64_t query_rows(const Attention& c) { return std::int64_t{c.tokens} * (c.heads / c.kv_heads); }

int rows_a_block(const Attention& c) { return query_rows(c) <= most_decoded ? decode_rows : prefill_rows; }

std::int64_t possible_parts(const Attention& c) {
    const std::int64_t possible = ceil_div(c.rows, least_keys);
    return possible < most_parts ? possible : most_parts;
}

int part_count(const Attention& c) {
    const std::int64_t blocks = std::int64_t{c.batch} * c.kv_heads * query_tiles(c, rows_a_block(c));
    const std::int64_t wanted = enough_blocks / blocks, possible = possible_parts(c);
    const std::int64_t count = wanted < possible ? wanted : possible;
    return static_cast<int>(count < 1 ? 1 : count);
}

Problem check_shape(const Attention& c) {
    if (c.batch < 0 || c.tokens < 0) return problem("batch is %d, tokens is %d", c.batch, c.tokens);
    if (c.kv_heads <= 0 || c.heads <= 0 || c.heads % c.kv_heads)
        return problem("%d heads do not share %d key-value heads evenly", c.heads, c.kv_heads);
    if (c.head_dim != 32 && c.head_dim != 64 && c.head_dim != 128)
        return problem("head_dim is %d; it must be 32, 64 or 128", c.head_dim);
    if (c.cache_bits != 16 && c.cache_bits != 8) return problem("cache_bits is %d; it must be 16 or 8", c.cache_bits);
    if (c.past_rows < 0 || c.past_rows > c.rows)
        return problem("the past has %d rows; the present has %d", c.past_rows, c.rows);
    if (std::int64_t{c.tokens} * c.heads > most_query_rows)
        return problem("%d tokens of %d heads are more than %d rows of queries", c.tokens, c.heads, most_query_rows);
    if (c.tokens > c.rows) return problem("%d new rows do not fit into a cache of %d", c.tokens, c.rows);
    return {};
}

Problem check(const Attention& c) {
    if (Problem wrong = check_shape(c); !wrong.empty()) return wrong;
    if (c.past_key == c.present_key && c.past_rows != c.rows)
        return problem("past and present are one buffer, so they have the same rows, not %d and %d", c.past_rows,
                       c.rows);
    if (!aligned(c.query) || !aligned(c.present_key) || !aligned(c.present_value))
        return "query and cache must start at a multiple of 16 bytes";
    if (!aligned(c.key, 4) || !aligned(c.value, 4) || !aligned(c.workspace, 4))
        return "key, value and workspace must start at a multiple of 4 bytes";
    const bool copied = c.past_rows > 0 && c.past_key != c.present_key;
    if (c.cache_bits == 8 && (!c.present_key_scales || !c.present_value_scales ||
                              (copied && (!c.past_key_scales || !c.past_value_scales))))
        return "a cache of 8 bits needs the scales of its keys and values";
    if (c.workspace_bytes < workspace(c))
        return problem("the workspace has %llu bytes; attention needs %llu",
                       static_cast<unsigned long long>(c.workspace_bytes),
                       static_cast<unsigned long long>(workspace(c)));
    return {};
}

/// The past's rows into a present that is another buffer.
cudaError_t copy_past(const Attention& c, const void* past, void* present, std::size_t row, cudaStream_t stream) {
    if (past == present || c.past_rows == 0) return cudaSuccess;
    return cudaMemcpy2DAsync(present, c.rows * row, past, c.past_rows * row, c.past_rows * row,
                             static_cast<std::size_t>(c.batch) * c.kv_heads, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t copy_past(const Attention& c, cudaStream_t stream) {
    const std::size_t row = static_cast<std::size_t>(c.head_dim) * c.cache_bits / 8;
    if (cudaError_t error = copy_past(c, c.past_key, c.present_key, row, stream)) return error;
    if (cudaError_t error = copy_past(c, c.past_value, c.present_value, row, stream)) return error;
    if (c.cache_bits == 16) return cudaSuccess;
    if (cudaError_t error = copy_past(c, c.past_key_scales, c.present_key_scales, 4, stream)) return error;
    return copy_past(c, c.past_value_scales, c.present_value_scales, 4, stream);
}

Parts parts_in(const Attention& c) {
    const std::int64_t rows = std::int64_t{c.batch} * c.tokens * c.heads;
    Parts parts{static_cast<float*>(c.workspace), nullptr, nullptr, part_count(c)};
    parts.sum = parts.largest + rows * parts.count;
    parts.of_values = parts.sum + rows * parts.count;
    return parts;
}

}  // namespace

std::uint64_t workspace(const Attention& c) {
    if (!check_shape(c).empty()) return 0;
    // Two parts and more are at most enough_blocks blocks together, whatever the number of tokens: with more of
    // them this never falls.
    const std::int64_t rows = std::int64_t{c.batch} * c.tokens * c.heads * possible_parts(c);
    const std::int64_t most = std::int64_t{enough_blocks} * rows_a_block(c);
    return static_cast<std::uint64_t>((rows < most ? rows : most) * (c.head_dim + 2) * 4);
}

Problem launch(const Attention& c, cudaStream_t stream) {
    if (Problem wrong = check(c); !wrong.empty()) return wrong;
    if (c.batch == 0) return {};
    cudaError_t error = copy_past(c, stream);
    if (c.tokens == 0) return answer(error, "attention");
    const Parts parts = parts_in(c);
    const bool few = rows_a_block(c) == decode_rows;
    if (!error) error = attention_append(c, stream);
    if (!error) error = few ? attention_decode(c, parts, stream) : attention_prefill(c, parts, stream);
    if (!error && parts.count > 1) error = attention_join(c, parts, stream);
    return answer(error, "attention");
}

}  // namespace ernie
