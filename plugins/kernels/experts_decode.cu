// Experts for few tokens: two launches, each weight of the chosen experts read once.
//
// gate_up: a block takes 8 gate rows and the 8 up rows beside them, for one choice of a token; the block
// of the first choice of an expert does it for all tokens that chose the same, the others end at once.
// down: a block takes 16 rows and all experts chosen, whose products it sums in its registers.  The score
// is multiplied into the product between the two, in fp32 before it is rounded.
#include "experts_kernels.h"
#include "row_tile.h"

namespace ernie {
namespace {

constexpr int gate_up_warps = 4;
constexpr int down_warps = 8;
constexpr int most_chosen = 16;
constexpr int most_tokens = 16;
constexpr int most_choices = most_chosen * most_tokens;

/// Whether an index is an expert's.
__device__ __forceinline__ bool valid(std::int64_t index, int experts) { return index >= 0 && index < experts; }

/// [T,k], in global or in shared memory.
template <class Index>
struct Choices {
    const Index* indices;
    int tokens, k;

    /// The first place at which a token chose the expert, or −1.  It looks at all places, so that no read waits for
    /// the one before it.
    __device__ __forceinline__ int place(int token, Index expert) const {
        int first = -1;
        if (token >= tokens) return first;
        for (int s = k - 1; s >= 0; --s) first = indices[token * k + s] == expert ? s : first;
        return first;
    }
};

template <int groups>
struct GateUpShared {
    Ring rings[gate_up_warps];
    WarpSums<gate_up_warps, groups> sums;
};

template <class T, int bits, int groups, bool whole>
__global__ void __launch_bounds__(32 * gate_up_warps, 4)
    experts_gate_up(const T* __restrict__ x, const std::int64_t* __restrict__ indices, const T* __restrict__ scores,
                    const std::uint8_t* __restrict__ weights, const __half* __restrict__ scales,
                    T* __restrict__ products, int tokens, int hidden, int width, int experts, int k, int block_size) {
    ERNIE_SHARED(GateUpShared<groups>, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Choices<std::int64_t> choices{indices, tokens, k};
    const int choice = blockIdx.y;
    const std::int64_t expert = indices[choice];
    if (!valid(expert, experts)) return;
    for (int base = 0; base < choice; base += 32) {
        const int other = base + lane;
        if (__any_sync(all_lanes, other < choice && indices[other] == expert)) return;
    }

    Operands<T, groups> mine;
    const int blocks = hidden / block_size;
    const int pair = min(8 * static_cast<int>(blockIdx.x) + lane / 4, width - 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const std::int64_t row = expert * 2 * width + 2 * pair + r;
        mine.weights[r] = weights + row * (hidden * bits / 8);
        mine.scales[r] = scales + row * blocks;
    }
#pragma unroll
    for (int c = 0; c < groups; ++c) {
        const int token = 8 * c + lane / 4;
        const bool chosen = choices.place(token, expert) >= 0;
        mine.x[c] = chosen ? x + std::int64_t{token} * hidden : nullptr;
    }
    float sum[groups][4] = {};
    accumulate<T, bits, whole>(sum, shared.rings, 1, hidden, block_size, [&](int) { return mine; });
    float total[4];
    if (!add_warps(shared.sums, sum, total)) return;
    const int column = 8 * blockIdx.x + lane / 4;
#pragma unroll
    for (int v = 0; v < 2; ++v) {
        const int token = 8 * warp + 2 * (lane % 4) + v;
        const int place = choices.place(token, expert);
        if (place < 0 || column >= width) continue;
        float score = 0;  // of all places, should a token name an expert twice
        for (int s = place; s < k; ++s)
            if (indices[token * k + s] == expert) score += widen(scores[token * k + s]);
        const float gate = total[v], up = total[v + 2];
        const float product = gate / (1 + expf(-gate)) * up;
        products[std::int64_t{token * k + place} * width + column] = narrow<T>(score * product);
    }
}

template <int groups>
struct DownShared {
    Ring rings[down_warps];
    int index[most_choices];   // of each choice its expert, or −1 where the index is no expert's
    int expert[most_choices];  // the different ones chosen, in the order of their first choice
    bool first[most_choices];
    signed char place[most_choices][most_tokens];  // Choices::place of each
    int count;
    WarpSums<down_warps, groups> sums;
};

/// Fills in all but the sums.  Indices are read from memory once: with 16 tokens a thread looks at hundreds of them.
template <int groups>
__device__ __forceinline__ void list_experts(DownShared<groups>& shared, const std::int64_t* indices, int tokens,
                                             int experts, int k) {
    const int n = tokens * k, choice = threadIdx.x;
    const std::int64_t named = choice < n ? indices[choice] : -1;
    const int own = valid(named, experts) ? static_cast<int>(named) : -1;
    if (choice < n) shared.index[choice] = own;
    if (choice == 0) shared.count = 0;
    __syncthreads();
    bool first = own >= 0;
    for (int i = 0; first && i < choice; ++i) first = shared.index[i] != own;
    if (choice < n) shared.first[choice] = first;
    __syncthreads();
    if (first) {
        int before = 0, behind = 0;
        for (int i = 0; i < choice; ++i) before += shared.first[i];
        for (int i = choice + 1; i < n; ++i) behind += shared.first[i];
        shared.expert[before] = own;
        if (behind == 0) shared.count = before + 1;
    }
    __syncthreads();
    const Choices<int> choices{shared.index, tokens, k};
    for (int i = threadIdx.x; i < shared.count * most_tokens; i += 32 * down_warps)
        shared.place[i / most_tokens][i % most_tokens] =
            static_cast<signed char>(choices.place(i % most_tokens, shared.expert[i / most_tokens]));
    __syncthreads();
}

template <class T, int bits, int groups, bool whole>
__global__ void __launch_bounds__(32 * down_warps, 2)
    experts_down(const T* __restrict__ products, const std::int64_t* __restrict__ indices,
                 const T* __restrict__ scores, const std::uint8_t* __restrict__ weights,
                 const __half* __restrict__ scales, T* __restrict__ y, std::uint32_t* faults, int tokens, int hidden,
                 int width, int experts, int k, int block_size) {
    static_assert(32 * down_warps >= most_choices);
    ERNIE_SHARED(DownShared<groups>, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    list_experts(shared, indices, tokens, experts, k);

    const int blocks = width / block_size;
    auto operands = [&](int e) {
        Operands<T, groups> at;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = min(16 * static_cast<int>(blockIdx.x) + lane / 4 + 8 * r, hidden - 1);
            const std::int64_t there = std::int64_t{shared.expert[e]} * hidden + row;
            at.weights[r] = weights + there * (width * bits / 8);
            at.scales[r] = scales + there * blocks;
        }
#pragma unroll
        for (int c = 0; c < groups; ++c) {
            const int token = 8 * c + lane / 4, place = shared.place[e][token];
            at.x[c] = place < 0 ? nullptr : products + std::int64_t{token * k + place} * width;
        }
        return at;
    };
    float sum[groups][4] = {};
    accumulate<T, bits, whole>(sum, shared.rings, shared.count, width, block_size, operands);
    float total[4];
    if (!add_warps(shared.sums, sum, total)) return;
#pragma unroll
    for (int v = 0; v < 4; ++v) {
        const int row = 16 * blockIdx.x + lane / 4 + 8 * (v / 2);
        const int token = 8 * warp + 2 * (lane % 4) + v % 2;
        if (token >= tokens || row >= hidden) continue;
        bool fault = false;
        for (int s = 0; s < k; ++s) fault = fault || shared.index[token * k + s] < 0;
        if (row == 0 && faults != nullptr && (fault || any_nan(scores + token * k, k))) atomicOr(faults, 1u);
        y[std::int64_t{token} * hidden + row] = narrow<T>(fault ? NAN : total[v]);
    }
}

template <class T, int bits, int groups>
Problem launch_tile(const Experts& c, cudaStream_t stream) {
    T* products = static_cast<T*>(c.workspace);
    return with_whole<bits>(c.format, [&](auto whole) {
        cudaError_t error = ERNIE_LAUNCH(
            (experts_gate_up<T, bits, groups, whole()>), dim3(ceil_div(c.width, 8), c.tokens * c.k),
            32 * gate_up_warps, sizeof(GateUpShared<groups>), stream, static_cast<const T*>(c.x), c.indices,
            static_cast<const T*>(c.scores), c.gate_up, static_cast<const __half*>(c.gate_up_scales), products,
            c.tokens, c.hidden, c.width, c.experts, c.k, c.format.block_size);
        if (error != cudaSuccess) return answer(error, "experts_gate_up");
        error = ERNIE_LAUNCH((experts_down<T, bits, groups, whole()>), ceil_div(c.hidden, 16), 32 * down_warps,
                             sizeof(DownShared<groups>), stream, products, c.indices,
                             static_cast<const T*>(c.scores), c.down, static_cast<const __half*>(c.down_scales),
                             static_cast<T*>(c.y), c.faults, c.tokens, c.hidden, c.width, c.experts, c.k,
                             c.format.block_size);
        return answer(error, "experts_down");
    });
}

}  // namespace

std::uint64_t experts_decode_workspace(const Experts& call) {
    return 2 * static_cast<std::uint64_t>(call.tokens) * static_cast<std::uint64_t>(call.k) *
           static_cast<std::uint64_t>(call.width);
}

Problem experts_decode(const Experts& c, cudaStream_t stream) {
    return with_type(c.type, [&](auto type) {
        using T = decltype(type);
        const bool few = c.tokens <= 8;
        if (c.format.bits == 4) return few ? launch_tile<T, 4, 1>(c, stream) : launch_tile<T, 4, 2>(c, stream);
        return few ? launch_tile<T, 8, 1>(c, stream) : launch_tile<T, 8, 2>(c, stream);
    });
}

}  // namespace ernie
