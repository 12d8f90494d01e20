// The two ways to do a linear layer; their arguments have been checked.
#pragma once

#include "linear.h"

namespace ernie {

/// For 1 to 16 tokens.
Problem linear_decode(const Linear& call, cudaStream_t stream);

/// For many tokens: 64 share a reading.
Problem linear_prefill(const Linear& call, cudaStream_t stream);

}  // namespace ernie
