// A linear layer with quantized weights.
#pragma once

#include "quantized.h"

namespace ernie {

/// y = x · weightᵀ, sums in fp32.
struct Linear {
    Type type;
    Format format;
    std::int32_t tokens;  // T; 0 is allowed
    std::int32_t n, k;    // rows and columns of the weight; K is whole blocks
    const void* x;                // [T,K] of the type
    const std::uint8_t* weight;   // [N, K·bits/8]
    const void* scales;           // [N, K/block] fp16
    void* y;                      // → [T,N] of the type
};

inline std::uint64_t workspace(const Linear&) { return 0; }
Problem launch(const Linear& call, cudaStream_t stream);

}  // namespace ernie
