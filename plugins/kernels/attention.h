// Attention over a cache of keys and values, with RoPE on interleaved pairs inside.
#pragma once

#include "launch.h"

namespace ernie {

/// The new rows of row b of the batch go into the cache at max(seqlens_k[b] + 1 − S, 0); query s sees the
/// cache up to and with its own row.  Scores, softmax and sums in fp32.
///
/// The past may be the present itself (then nothing is copied) or apart and shorter.  A token whose
/// position is outside cos and sin gets NaN in output and cache, one whose row is outside the cache is
/// not written and gets NaN; both set bit 0 of *faults.
///
/// A cache of 8 bits has the shapes of one of 16, in bytes, and beside it a scale for each row of each head:
/// x = (code − 128) · scale, scale = max|row| / 127.  A row with a number that is not finite has the scale NaN.
struct Attention {
    Type type;
    std::int32_t batch;      // B
    std::int32_t tokens;     // S, new ones; 0 is allowed
    std::int32_t heads;      // a multiple of kv_heads
    std::int32_t kv_heads;
    std::int32_t head_dim;   // D, 32, 64 or 128
    std::int32_t past_rows;  // P, at most L
    std::int32_t rows;       // L
    std::int32_t positions;  // rows of cos and sin
    float scale;
    const void* query;                 // [B, S, heads·D] of the type
    const void* key;                   // [B, S, kv_heads·D]
    const void* value;                 // [B, S, kv_heads·D]
    const void* past_key;              // [B, kv_heads, P, D]
    const void* past_value;            // [B, kv_heads, P, D]
    const float* cos;                  // [positions, D/2]
    const float* sin;                  // [positions, D/2]
    const std::int64_t* position_ids;  // [B,S]
    const std::int32_t* seqlens_k;     // [B]: rows of the cache that are valid with the new ones, − 1
    void* output;                      // → [B, S, heads·D]
    void* present_key;                 // → [B, kv_heads, L, D]
    void* present_value;               // → [B, kv_heads, L, D]
    std::uint32_t* faults;             // → may be null
    void* workspace;                   // what the parts of the context give, before they are joined
    std::uint64_t workspace_bytes;
    std::int32_t cache_bits = 16;              // 16: keys and values in the cache are of the type; or 8
    const float* past_key_scales = nullptr;    // [B, kv_heads, P]; these four with 8 bits alone
    const float* past_value_scales = nullptr;  // [B, kv_heads, P]
    float* present_key_scales = nullptr;       // → [B, kv_heads, L]
    float* present_value_scales = nullptr;     // → [B, kv_heads, L]
};

/// It never falls with more tokens.
std::uint64_t workspace(const Attention& call);
Problem launch(const Attention& call, cudaStream_t stream);

}  // namespace ernie
