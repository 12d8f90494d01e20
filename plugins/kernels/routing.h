// Which experts a token goes to, and with which weights.
#pragma once

#include "launch.h"

namespace ernie {

/// p = softmax(x · weightᵀ) in fp32; chosen are the k experts of the largest p + bias, in falling order,
/// of equals the lower index first (ONNX TopK; torch.topk says nothing); their weights are
/// p / max(Σ p of the chosen, norm_min).  A NaN counts as larger than any number, so indices are in
/// range whatever comes in.
struct Routing {
    Type type;
    std::int32_t tokens;   // T; 0 is allowed
    std::int32_t hidden;   // H, a multiple of 8
    std::int32_t experts;  // E, to 256
    std::int32_t k;        // to 16
    float norm_min;
    const void* x;           // [T,H] of the type
    const float* weight;     // [E,H]
    const float* bias;       // [E]
    std::int64_t* indices;   // → [T,k]
    void* scores;            // → [T,k] of the type
    void* workspace;         // the logits
    std::uint64_t workspace_bytes;
};

std::uint64_t workspace(const Routing& call);
Problem launch(const Routing& call, cudaStream_t stream);

}  // namespace ernie
