// What all launch functions share: how they name a dtype, and how they answer.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

namespace ernie {

/// The dtype of activations.
enum class Type : std::int32_t { fp16 = 0, bf16 = 1 };

/// Empty when the work was launched; else one line that says what is wrong with the arguments, and
/// nothing was launched.
using Problem = std::string;

/// A problem in printf's words.
[[gnu::format(printf, 1, 2)]] inline Problem problem(const char* format, ...) {
    char text[256];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    return text;
}

inline Problem answer(cudaError_t error, const char* kernel) {
    if (error == cudaSuccess) return {};
    return problem("%s was not launched: %s", kernel, cudaGetErrorString(error));
}

inline bool aligned(const void* pointer, std::uintptr_t bytes = 16) {
    return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace ernie
