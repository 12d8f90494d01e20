// The launch functions for callers that are not C++: ctypes in the tests, PyTorch in Python.  Each
// returns NULL, or one line that says what is wrong; it stays valid until the thread's next call.
#include "attention.h"
#include "experts.h"
#include "linear.h"
#include "routing.h"

namespace {

const char* told(ernie::Problem problem) {
    thread_local ernie::Problem last;
    last = std::move(problem);
    return last.empty() ? nullptr : last.c_str();
}

}  // namespace

#define ERNIE_EXPORT(name, Call)                                                           \
    extern "C" std::uint64_t name##_workspace(const Call* call) { return workspace(*call); } \
    extern "C" const char* name(const Call* call, cudaStream_t stream) { return told(launch(*call, stream)); }

ERNIE_EXPORT(ernie_moe_routing, ernie::Routing)
ERNIE_EXPORT(ernie_quantized_linear, ernie::Linear)
ERNIE_EXPORT(ernie_moe_experts, ernie::Experts)
ERNIE_EXPORT(ernie_cached_attention, ernie::Attention)
