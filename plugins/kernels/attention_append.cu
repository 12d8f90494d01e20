// Before and after attention itself: the new rows into the cache, and the parts of the context joined.
#include "attention_cache.h"

namespace ernie {
namespace {

/// The scale of 8 bits for a row of which a lane has `count` numbers; NaN if one is not finite.
template <int count>
__device__ __forceinline__ float scale_of_row(const float (&x)[count]) {
    float largest = 0;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        largest = fmaxf(largest, fabsf(x[i]));
        finite = finite && fabsf(x[i]) < INFINITY;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, step));
    return __any_sync(all_lanes, !finite) ? NAN : largest / 127;
}

__device__ __forceinline__ unsigned code(float x, float scale) {
    const float level = scale > 0 ? fminf(fmaxf(rintf(x / scale), -127.0f), 127.0f) : 0;
    return static_cast<unsigned>(static_cast<int>(level) + 128);
}

/// A row of which lane l has the pairs l, l + 32, …, of those there are.
template <class T, int bits, int head_dim>
struct Row {
    static constexpr int pairs = (head_dim / 2 + 31) / 32;
    static constexpr int row_bytes = head_dim * bits / 8;

    static __device__ __forceinline__ bool there(int i) {
        return 32 * i + static_cast<int>(threadIdx.x) < head_dim / 2;
    }

    static __device__ __forceinline__ void write(unsigned char* data, float* scales, std::int64_t row,
                                                 const unsigned (&pair)[pairs]) {
        unsigned char* to = data + row * row_bytes;
        if constexpr (bits == 16) {
#pragma unroll
            for (int i = 0; i < pairs; ++i)
                if (there(i)) reinterpret_cast<unsigned*>(to)[32 * i + threadIdx.x] = pair[i];
        } else {
            float x[2 * pairs];
#pragma unroll
            for (int i = 0; i < pairs; ++i) {
                const float2 two = widen(as_pair<typename Number<T>::Pair>(pair[i]));
                x[2 * i] = two.x, x[2 * i + 1] = two.y;
            }
            const float scale = scale_of_row(x);
            if (threadIdx.x == 0) scales[row] = scale;
#pragma unroll
            for (int i = 0; i < pairs; ++i)
                if (there(i))
                    reinterpret_cast<std::uint16_t*>(to)[32 * i + threadIdx.x] =
                        static_cast<std::uint16_t>(code(x[2 * i], scale) | code(x[2 * i + 1], scale) << 8);
        }
    }
};

/// A warp a new row of a key-value head.
template <class T, int bits, int head_dim>
__global__ void __launch_bounds__(32)
    attention_append_rows(Context context, Cache cache, const T* __restrict__ key, const T* __restrict__ value) {
    using Pairs = Row<T, bits, head_dim>;
    const int token = blockIdx.x, head = blockIdx.y, b = blockIdx.z;
    const int row = context.row(b, token);
    if (!context.sound(b, token) && threadIdx.x == 0 && head == 0 && context.faults != nullptr)
        atomicOr(context.faults, 1u);
    if (row >= context.rows) return;
    const std::int64_t from = ((std::int64_t{b} * context.tokens + token) * context.kv_heads + head) * head_dim;
    const std::int64_t to = (std::int64_t{b} * context.kv_heads + head) * context.rows + row;
    unsigned keys[Pairs::pairs] = {}, values[Pairs::pairs] = {};
#pragma unroll
    for (int i = 0; i < Pairs::pairs; ++i) {
        if (!Pairs::there(i)) continue;
        const int d = 2 * (32 * i + threadIdx.x);
        const unsigned k = *reinterpret_cast<const unsigned*>(key + from + d);
        keys[i] = context.turn<T>(k, b, token, d, head_dim);
        values[i] = *reinterpret_cast<const unsigned*>(value + from + d);
    }
    Pairs::write(cache.key, cache.key_scales, to, keys);
    Pairs::write(cache.value, cache.value_scales, to, values);
}

/// One block a token and head, one thread a d.
template <class T>
__global__ void attention_join_parts(Context context, Parts parts, T* __restrict__ output) {
    const int head = blockIdx.y, b = blockIdx.z, head_dim = blockDim.x, d = threadIdx.x;
    const std::int64_t row = (std::int64_t{b} * context.tokens + blockIdx.x) * gridDim.y + head;
    float largest = -INFINITY, sum = 0, of_values = 0;
    // Unrolled so that the reads of several parts are under way together.
#pragma unroll 8
    for (int p = 0; p < parts.count; ++p) largest = fmaxf(largest, parts.largest[row * parts.count + p]);
#pragma unroll 8
    for (int p = 0; p < parts.count; ++p) {
        const std::int64_t at = row * parts.count + p;
        const float factor = share(parts.largest[at], largest);
        sum += factor * parts.sum[at];
        of_values += factor * parts.of_values[at * head_dim + d];
    }
    output[row * head_dim + d] = narrow<T>(context.sound(b, blockIdx.x) ? of_values / sum : NAN);
}

}  // namespace

cudaError_t attention_append(const Attention& c, cudaStream_t stream) {
    return with_kinds(c, [&](auto number, auto bits, auto head_dim) {
        using T = decltype(number);
        return ERNIE_LAUNCH((attention_append_rows<T, bits(), head_dim()>), dim3(c.tokens, c.kv_heads, c.batch), 32, 0,
                            stream, Context(c), Cache(c), static_cast<const T*>(c.key),
                            static_cast<const T*>(c.value));
    });
}

cudaError_t attention_join(const Attention& c, const Parts& parts, cudaStream_t stream) {
    return with_type(c.type, [&](auto number) {
        using T = decltype(number);
        return ERNIE_LAUNCH(attention_join_parts<T>, dim3(c.tokens, c.heads, c.batch), c.head_dim, 0, stream,
                            Context(c), parts, static_cast<T*>(c.output));
    });
}

}  // namespace ernie
