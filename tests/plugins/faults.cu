// Kernels with one fault each, that the emulation has to find, and what its instructions do.
#include "../../plugins/kernels/ptx.h"

namespace {

constexpr unsigned all_lanes = 0xffffffffu;

struct Shared {
    float values[64];
    uint4 copied[64];
};

/// Neighbours in other warps exchange a value twice.
__global__ void two_rounds(float* out, bool first, bool second, bool third) {
    ERNIE_SHARED(Shared, shared);
    const int i = threadIdx.x;
    shared.values[i] = static_cast<float>(i);
    if (first) __syncthreads();
    const float other = shared.values[63 - i];
    if (second) __syncthreads();
    shared.values[i] = other + 1;
    if (third) __syncthreads();
    out[i] = shared.values[63 - i];
}

__global__ void reads_past_shared(float* out, int at) {
    ERNIE_SHARED(Shared, shared);
    out[threadIdx.x] = reinterpret_cast<const float*>(&shared)[at];
}

__global__ void writes_past_the_output(float* out, int at) { out[threadIdx.x + at] = 1; }

__global__ void some_leave(float* out, bool leave) {
    if (leave && threadIdx.x == 7) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void two_barriers(float* out, bool apart) {
    if (apart && threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void shuffles(float* out, unsigned mask, int source) {
    const int lane = threadIdx.x % 32;
    out[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (mask >> lane & 1) out[threadIdx.x] = __shfl_sync(mask, static_cast<float>(threadIdx.x), source);
}

/// The lanes of a warp hand a value on through shared memory.
__global__ void warp_exchange(float* out, bool sync) {
    ERNIE_SHARED(Shared, shared);
    shared.values[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (sync) __syncwarp();
    out[threadIdx.x] = shared.values[threadIdx.x ^ 1];
}

/// Two copies, of which the wait is for all but `left`.
template <int left>
__global__ void waits(const float* in, float* out) {
    ERNIE_SHARED(Shared, shared);
    const int i = threadIdx.x;
    ernie::ptx::copy_async(&shared.copied[i], in + 4 * (i % 16), true);
    ernie::ptx::copy_commit();
    ernie::ptx::copy_wait<left>();
    out[i] = __uint_as_float(shared.copied[i].x);
    ernie::ptx::copy_wait<0>();
}

/// Copies into what other threads still read.
__global__ void overwrites(const float* in, float* out, bool barrier) {
    ERNIE_SHARED(Shared, shared);
    const int i = threadIdx.x;
    shared.copied[i] = make_uint4(1, 1, 1, 1);
    __syncthreads();
    const unsigned seen = shared.copied[63 - i].x;
    if (barrier) __syncthreads();
    ernie::ptx::copy_async(&shared.copied[i], in, true);
    ernie::ptx::copy_commit();
    ernie::ptx::copy_wait<0>();
    out[i] = static_cast<float>(seen);
}

__global__ void blocks_share(float* out) { out[(threadIdx.x + blockIdx.x) % 64] = 1; }

/// in: A [16,16], B [16,8], C [16,8] as fp16 or bf16 bits held in floats; out: D.
template <bool bfloat>
__global__ void multiplies(const float* in, float* out) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    auto bits = [&](int at) -> unsigned {
        if (bfloat) return __float_as_uint(in[at]) >> 16;
        const __half half = __float2half_rn(in[at]);
        return __half_raw(half).x;
    };
    auto pair = [&](int low, int high) { return bits(low) | bits(high) << 16; };
    unsigned a[4], b[2];
    float c[4];
    for (int r = 0; r < 4; ++r) {
        const int at = 16 * (g + 8 * (r % 2)) + 2 * t + 8 * (r / 2);
        a[r] = pair(at, at + 1);
    }
    for (int r = 0; r < 2; ++r) {
        const int k = 2 * t + 8 * r;
        b[r] = pair(256 + 8 * k + g, 256 + 8 * (k + 1) + g);
    }
    for (int r = 0; r < 4; ++r) c[r] = in[384 + 8 * (g + 8 * (r / 2)) + 2 * t + r % 2];
    ernie::ptx::mma<bfloat>(c, a, b);
    for (int r = 0; r < 4; ++r) out[8 * (g + 8 * (r / 2)) + 2 * t + r % 2] = c[r];
}

}  // namespace

struct Case {
    std::int32_t number, argument;
    const float* in;
    float* out;
};

#define RUN(kernel, grid, threads, ...) ERNIE_LAUNCH(kernel, grid, threads, sizeof(Shared), nullptr, __VA_ARGS__)

extern "C" const char* ernie_fault(const Case* c, cudaStream_t) {
    const int n = c->argument;
    switch (c->number) {
        case 0: RUN(two_rounds, 1, 64, c->out, n != 1, n != 2, n != 3); break;
        case 1: RUN(reads_past_shared, 1, 32, c->out, n); break;
        case 2: RUN(writes_past_the_output, 1, 64, c->out, n); break;
        case 3: RUN(some_leave, 1, 64, c->out, n != 0); break;
        case 4: RUN(two_barriers, 1, 64, c->out, n != 0); break;
        case 5: RUN(shuffles, 1, 64, c->out, n == 1 ? 0x0000ffffu : all_lanes, n == 1 ? 20 : 3); break;
        case 6: RUN(warp_exchange, 1, 64, c->out, n == 0); break;
        case 7: n == 0 ? RUN(waits<0>, 1, 64, c->in, c->out) : RUN(waits<1>, 1, 64, c->in, c->out); break;
        case 8: RUN(overwrites, 1, 64, c->in, c->out, n == 0); break;
        case 9: RUN(blocks_share, 1 + n, 64, c->out); break;
        case 10: n == 0 ? RUN(multiplies<false>, 1, 32, c->in, c->out) : RUN(multiplies<true>, 1, 32, c->in, c->out); break;
    }
    return nullptr;
}
