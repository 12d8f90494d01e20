#include "routing.h"

#include "number.h"

namespace ernie {
namespace {

constexpr int warps = 8;  // of a block
constexpr int few_tokens = 16;
constexpr int group = 8;  // tokens that share one reading of the router's rows
constexpr int most_experts = 256;
constexpr int most_chosen = 16;
constexpr unsigned all_lanes = 0xffffffffu;

template <class T>
__device__ __forceinline__ float4 load_four(const T* at) {
    const uint2 bits = *reinterpret_cast<const uint2*>(at);
    const float2 low = widen(as_pair<typename Number<T>::Pair>(bits.x));
    const float2 high = widen(as_pair<typename Number<T>::Pair>(bits.y));
    return make_float4(low.x, low.y, high.x, high.y);
}

/// What each warp has summed of its part of H.
struct LogitsShared {
    float of[warps][group];
};

/// logits [T,E] = x · weightᵀ: `split` warps take one expert and `group` tokens; their lanes share H.  Of few tokens
/// the time is that of reads which wait for one another, so all warps of a block share one expert.
template <class T, int split>
__global__ void __launch_bounds__(32 * warps)
    router_logits(const T* __restrict__ x, const float* __restrict__ weight, float* __restrict__ logits, int tokens,
                  int hidden, int experts) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % split;
    const int expert = blockIdx.x * (warps / split) + warp / split;
    const int first = blockIdx.y * group;
    if (expert >= experts) return;  // with one expert a block: never
    const float* row = weight + std::int64_t{expert} * hidden;
    float sum[group] = {};
    for (int h = 128 * part + 4 * lane; h < hidden; h += 128 * split) {
        const float4 w = *reinterpret_cast<const float4*>(row + h);
#pragma unroll
        for (int i = 0; i < group; ++i) {
            if (first + i >= tokens) continue;
            const float4 v = load_four(x + std::int64_t{first + i} * hidden + h);
            sum[i] = fmaf(w.w, v.w, fmaf(w.z, v.z, fmaf(w.y, v.y, fmaf(w.x, v.x, sum[i]))));
        }
    }
#pragma unroll
    for (int i = 0; i < group; ++i) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum[i] += __shfl_xor_sync(all_lanes, sum[i], step);
        if constexpr (split == 1) {
            if (lane == 0 && first + i < tokens) logits[std::int64_t{first + i} * experts + expert] = sum[i];
        }
    }
    if constexpr (split > 1) {
        static_assert(split == warps);
        ERNIE_SHARED(LogitsShared, shared);
#pragma unroll
        for (int i = 0; i < group; ++i)
            if (lane == 0) shared.of[warp][i] = sum[i];
        __syncthreads();
        const int token = first + static_cast<int>(threadIdx.x);
        if (threadIdx.x >= group || token >= tokens) return;
        float total = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) total += shared.of[w][threadIdx.x];
        logits[std::int64_t{token} * experts + expert] = total;
    }
}

/// A candidate for the next place; the better of two has the larger key or, of equals, the lower index.
struct Candidate {
    float key;
    int expert;
    float probability;
};

__device__ __forceinline__ Candidate better(Candidate a, Candidate b) {
    return a.key > b.key || (a.key == b.key && a.expert < b.expert) ? a : b;
}

/// One warp a token; a lane holds the experts lane, lane + 32, ….
template <class T>
__global__ void __launch_bounds__(32 * warps)
    choose_experts(const float* __restrict__ logits, const float* __restrict__ bias, std::int64_t* __restrict__ indices,
                   T* __restrict__ scores, int tokens, int experts, int k, float norm_min) {
    constexpr int share = most_experts / 32;
    const int lane = threadIdx.x % 32;
    const int token = blockIdx.x * warps + threadIdx.x / 32;
    if (token >= tokens) return;
    float p[share];
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < share; ++i) {
        const int expert = 32 * i + lane;
        p[i] = expert < experts ? logits[std::int64_t{token} * experts + expert] : -INFINITY;
        largest = fmaxf(largest, p[i]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, step));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < share; ++i) {
        if (32 * i + lane >= experts) continue;
        p[i] = expf(p[i] - largest);
        sum += p[i];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(all_lanes, sum, step);

    unsigned taken = 0;  // a bit for each of this lane's experts
    Candidate mine{};    // lane j keeps the j-th place
    float chosen = 0;
    for (int place = 0; place < k; ++place) {
        Candidate best{-INFINITY, most_experts, 0};
#pragma unroll
        for (int i = 0; i < share; ++i) {
            const int expert = 32 * i + lane;
            if (expert >= experts || (taken >> i & 1)) continue;
            const float probability = p[i] / sum;
            const float key = probability + bias[expert];
            best = better(best, Candidate{key != key ? INFINITY : key, expert, probability});
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            Candidate other;
            other.key = __shfl_xor_sync(all_lanes, best.key, step);
            other.expert = __shfl_xor_sync(all_lanes, best.expert, step);
            other.probability = __shfl_xor_sync(all_lanes, best.probability, step);
            best = better(best, other);
        }
        if (best.expert % 32 == lane) taken |= 1u << (best.expert / 32);
        if (place == lane) mine = best;
        chosen += best.probability;
    }
    if (lane < k) {
        // Written so that a NaN in the sum stays one: fmaxf would drop it.
        const float divisor = chosen < norm_min ? norm_min : chosen;
        indices[std::int64_t{token} * k + lane] = mine.expert;
        scores[std::int64_t{token} * k + lane] = narrow<T>(mine.probability / divisor);
    }
}

template <class T, int split>
cudaError_t launch_logits(const Routing& c, cudaStream_t stream) {
    return ERNIE_LAUNCH((router_logits<T, split>), dim3(ceil_div(c.experts, warps / split), ceil_div(c.tokens, group)),
                        32 * warps, split > 1 ? sizeof(LogitsShared) : 0, stream, static_cast<const T*>(c.x),
                        c.weight, static_cast<float*>(c.workspace), c.tokens, c.hidden, c.experts);
}

Problem check(const Routing& c) {
    if (c.tokens < 0) return problem("tokens is %d", c.tokens);
    if (c.hidden <= 0 || c.hidden % 8) return problem("hidden is %d; it must be a multiple of 8", c.hidden);
    if (c.experts <= 0 || c.experts > most_experts)
        return problem("experts is %d; it must be 1 to %d", c.experts, most_experts);
    if (c.k <= 0 || c.k > most_chosen || c.k > c.experts)
        return problem("k is %d; it must be 1 to %d, and at most the %d experts", c.k, most_chosen, c.experts);
    if (!aligned(c.x) || !aligned(c.weight)) return "hidden and weight must start at a multiple of 16 bytes";
    if (!aligned(c.bias, 4) || !aligned(c.workspace, 4)) return "bias and workspace must start at a multiple of 4 bytes";
    if (c.workspace_bytes < workspace(c))
        return problem("the workspace has %llu bytes; routing needs %llu",
                       static_cast<unsigned long long>(c.workspace_bytes),
                       static_cast<unsigned long long>(workspace(c)));
    return {};
}

}  // namespace

std::uint64_t workspace(const Routing& call) {
    return sizeof(float) * static_cast<std::uint64_t>(call.tokens) * static_cast<std::uint64_t>(call.experts);
}

Problem launch(const Routing& c, cudaStream_t stream) {
    if (Problem wrong = check(c); !wrong.empty()) return wrong;
    if (c.tokens == 0) return {};
    return with_type(c.type, [&](auto type) -> Problem {
        using T = decltype(type);
        cudaError_t error =
            c.tokens <= few_tokens ? launch_logits<T, warps>(c, stream) : launch_logits<T, 1>(c, stream);
        if (error != cudaSuccess) return answer(error, "router_logits");
        error = ERNIE_LAUNCH(choose_experts<T>, ceil_div(c.tokens, warps), 32 * warps, 0, stream,
                             static_cast<const float*>(c.workspace), c.bias, c.indices, static_cast<T*>(c.scores),
                             c.tokens, c.experts, c.k, c.norm_min);
        return answer(error, "choose_experts");
    });
}

}  // namespace ernie
