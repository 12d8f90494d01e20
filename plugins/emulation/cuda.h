// What a .cu file sees of CUDA when it is compiled for this machine: the toolkit's own headers for
// types and 16-bit floats, and the language's built-in names mapped to the scheduler.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "scheduler.h"
#include "warp.h"

// The toolkit's headers leave these to the compiler.
#undef __device__
#undef __global__
#undef __forceinline__
#undef __launch_bounds__
#undef __restrict__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

#define threadIdx (emulation::here->thread)
#define blockIdx (emulation::here->block)
#define blockDim (emulation::here->block_size)
#define gridDim (emulation::here->grid_size)

#define ERNIE_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(ERNIE_SITE) { emulation::barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, ERNIE_SITE) { emulation::warp_barrier(mask, file, line); }

namespace emulation {

/// Each lane of `mask` receives the value of lane `source`, which must be in `mask` too.
template <class T>
T exchange(unsigned mask, T value, unsigned source, const char* file, int line) {
    T result;
    collective({&value, &result, source, mask, sizeof(T), file, line}, complete_exchange);
    return result;
}

/// The kernel's view of its dynamic shared memory.
template <class T>
T& shared(const char* file, int line) {
    if (sizeof(T) > here->shared_size)
        fail("%s:%d: %zu bytes of shared memory, launched with %zu", file, line, sizeof(T), here->shared_size);
    return *reinterpret_cast<T*>(here->shared);
}

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ERNIE_SITE) {
    const unsigned lane = emulation::here->lane;
    return emulation::exchange(mask, value, (lane & ~(width - 1u)) | (source & (width - 1)), file, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, ERNIE_SITE) {
    const unsigned lane = emulation::here->lane, other = lane ^ lanes;
    const bool inside = (other & ~(width - 1u)) == (lane & ~(width - 1u));
    return emulation::exchange(mask, value, inside ? other : lane, file, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, ERNIE_SITE) {
    const unsigned lane = emulation::here->lane;
    return emulation::exchange(mask, value, lane < lanes ? lane : lane - lanes, file, line);
}

inline unsigned __ballot_sync(unsigned mask, bool vote, ERNIE_SITE) {
    unsigned result = 0, bit = vote ? 1u << emulation::here->lane : 0;
    emulation::collective({&bit, &result, 0, mask, sizeof(bit), file, line}, emulation::complete_ballot);
    return result;
}

inline int __any_sync(unsigned mask, bool vote, ERNIE_SITE) { return __ballot_sync(mask, vote, file, line) != 0; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline float __expf(float x) { return std::exp(x); }
inline float __uint_as_float(unsigned x) {
    float f;
    std::memcpy(&f, &x, 4);
    return f;
}
inline unsigned __float_as_uint(float x) {
    unsigned u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const std::uint64_t bytes = std::uint64_t{y} << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}

// The one arithmetic function that the toolkit's headers keep from the host.
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
    return __floats2half2_rn(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y));
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline unsigned atomicAdd(unsigned* at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL); }
inline unsigned atomicOr(unsigned* at, unsigned value) { return __atomic_fetch_or(at, value, __ATOMIC_ACQ_REL); }

namespace emulation {

inline Index index(dim3 d) { return {d.x, d.y, d.z}; }

template <class... Parameters, class... Arguments>
cudaError_t launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
                   Arguments... arguments) {
    if (grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
    run(Launch{name, index(grid), index(block), shared}, [&] { kernel(arguments...); });
    return cudaSuccess;
}

}  // namespace emulation

#define ERNIE_SHARED(type, name) type& name = emulation::shared<type>(__FILE__, __LINE__)
#define ERNIE_LAUNCH(kernel, grid, block, shared, stream, ...) \
    ((void)(stream), emulation::launch(#kernel, kernel, grid, block, shared, __VA_ARGS__))
