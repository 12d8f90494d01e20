// The experts of a mixture-of-experts layer.
#pragma once

#include "quantized.h"

namespace ernie {

/// y = Σ over the chosen of score · down(silu(gate x) · up x), sums in fp32, the same to the bit each time.
///
/// A token with an index that is no expert's, for which nothing is read, or with a score that is NaN gets NaN, and bit 0
/// of *faults is set.
struct Experts {
    Type type;
    Format format;
    std::int32_t tokens;   // T; 0 is allowed
    std::int32_t hidden;   // H, whole blocks
    std::int32_t width;    // I of one expert, whole blocks
    std::int32_t experts;  // E
    std::int32_t k;        // experts a token, to 16
    const void* x;                       // [T,H] of the type
    const std::int64_t* indices;         // [T,k]
    const void* scores;                  // [T,k] of the type
    const std::uint8_t* gate_up;         // [E, 2I, H·bits/8], rows gate₀ up₀ gate₁ up₁ …
    const void* gate_up_scales;          // [E, 2I, H/block] fp16
    const std::uint8_t* down;            // [E, H, I·bits/8]
    const void* down_scales;             // [E, H, I/block] fp16
    void* y;                             // → [T,H] of the type
    std::uint32_t* faults;               // → may be null
    void* workspace;                     // what the kernels hand to one another
    std::uint64_t workspace_bytes;
};

/// What is best; more than 16 tokens can do with less. It never falls with more tokens.
std::uint64_t workspace(const Experts& call);
Problem launch(const Experts& call, cudaStream_t stream);

}  // namespace ernie
