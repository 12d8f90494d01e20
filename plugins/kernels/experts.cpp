#include "experts_kernels.h"

namespace ernie {
namespace {

constexpr int most_decoded = 16;
constexpr int most_chosen = 16;
constexpr int most_choices = 1 << 30;

std::uint64_t least_workspace(const Experts& c) {
    return c.tokens <= most_decoded ? experts_decode_workspace(c) : experts_prefill_least(c);
}

Problem check(const Experts& c) {
    if (Problem wrong = check(c.format); !wrong.empty()) return wrong;
    if (Problem wrong = check_row(c.format, "hidden", c.hidden); !wrong.empty()) return wrong;
    if (Problem wrong = check_row(c.format, "the experts' width", c.width); !wrong.empty()) return wrong;
    if (c.experts <= 0) return problem("experts is %d", c.experts);
    if (c.k <= 0 || c.k > most_chosen) return problem("k is %d; it must be 1 to %d", c.k, most_chosen);
    if (c.tokens < 0 || c.tokens > most_choices / c.k)
        return problem("tokens is %d; it must be 0 to %d", c.tokens, most_choices / c.k);
    if (!aligned(c.x) || !aligned(c.gate_up) || !aligned(c.down) || !aligned(c.workspace))
        return "hidden, weights and workspace must start at a multiple of 16 bytes";
    if (!aligned(c.gate_up_scales, 4) || !aligned(c.down_scales, 4))
        return "scales must start at a multiple of 4 bytes";
    if (c.workspace_bytes < least_workspace(c))
        return problem("the workspace has %llu bytes; the experts need %llu",
                       static_cast<unsigned long long>(c.workspace_bytes),
                       static_cast<unsigned long long>(least_workspace(c)));
    return {};
}

}  // namespace

std::uint64_t workspace(const Experts& call) {
    if (call.tokens <= 0 || call.k <= 0 || call.hidden <= 0 || call.width <= 0 || call.experts <= 0) return 0;
    return call.tokens <= most_decoded ? experts_decode_workspace(call) : experts_prefill_workspace(call);
}

Problem launch(const Experts& c, cudaStream_t stream) {
    if (Problem wrong = check(c); !wrong.empty()) return wrong;
    if (c.tokens == 0) return {};
    return c.tokens <= most_decoded ? experts_decode(c, stream) : experts_prefill(c, stream);
}

}  // namespace ernie
