// The two ways to do the experts; their arguments have been checked.
#pragma once

#include "experts.h"

namespace ernie {

/// For 1 to 16 tokens: 2 launches.
std::uint64_t experts_decode_workspace(const Experts& call);
Problem experts_decode(const Experts& call, cudaStream_t stream);

/// For many tokens, sorted by expert: 4 launches, two of them again for each further slice of H; the slices are
/// as large as the workspace allows, at least 64 rows.
std::uint64_t experts_prefill_workspace(const Experts& call);
std::uint64_t experts_prefill_least(const Experts& call);
Problem experts_prefill(const Experts& call, cudaStream_t stream);

}  // namespace ernie
