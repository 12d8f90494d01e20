#include "linear_kernels.h"

namespace ernie {
namespace {

constexpr int most_decoded = 16;

Problem check(const Linear& c) {
    if (Problem wrong = check(c.format); !wrong.empty()) return wrong;
    if (Problem wrong = check_row(c.format, "K", c.k); !wrong.empty()) return wrong;
    if (c.tokens < 0) return problem("tokens is %d", c.tokens);
    if (c.n <= 0) return problem("N is %d", c.n);
    if (!aligned(c.x) || !aligned(c.weight)) return "x and weight must start at a multiple of 16 bytes";
    if (!aligned(c.scales, 4)) return "scales must start at a multiple of 4 bytes";
    return {};
}

}  // namespace

Problem launch(const Linear& c, cudaStream_t stream) {
    if (Problem wrong = check(c); !wrong.empty()) return wrong;
    if (c.tokens == 0) return {};
    return c.tokens <= most_decoded ? linear_decode(c, stream) : linear_prefill(c, stream);
}

}  // namespace ernie
