// Experts for many tokens: their choices sorted by expert, then each expert's matrices times its own tokens.
//
// sort: a block an expert; all places are known from counting, so the order is always the same.  gate_up and
// down: a block takes 64 rows and up to 16 or 64 choices of one expert, and finds which from the counts alone,
// so the host need not know them.  sum: the results of a token's choices, in their order; so that they stay few
// bytes, down and sum do a slice of H at a time.
#include "experts_kernels.h"
#include "prefill_tile.h"

namespace ernie {
namespace {

constexpr int sort_warps = 16;
constexpr int sum_threads = 256;
/// Bytes of results wanted, unless 64 rows need more: they stay in the L2 of a large GPU.
constexpr std::int64_t handed_over = std::int64_t{32} << 20;

struct SortShared {
    int below[sort_warps];
    int equal[sort_warps];
};

/// sorted: the choices token·k + place that name an expert, in order of expert, then of choice; those of expert e
/// start at first[e], and first[experts] is their number.
__global__ void __launch_bounds__(32 * sort_warps)
    experts_sort(const std::int64_t* __restrict__ indices, int* __restrict__ sorted, int* __restrict__ first,
                 int choices, int experts) {
    ERNIE_SHARED(SortShared, shared);
    const int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int begin = static_cast<int>(std::int64_t{choices} * warp / sort_warps);
    const int end = static_cast<int>(std::int64_t{choices} * (warp + 1) / sort_warps);
    int below = 0, equal = 0;
    for (int i = begin + lane; i < end; i += 32) {
        const std::int64_t index = indices[i];
        below += index >= 0 && index < expert;
        equal += index == expert;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        below += __shfl_xor_sync(all_lanes, below, step);
        equal += __shfl_xor_sync(all_lanes, equal, step);
    }
    if (lane == 0) shared.below[warp] = below, shared.equal[warp] = equal;
    __syncthreads();
    int start = 0, at = 0, total = 0;
    for (int w = 0; w < sort_warps; ++w) {
        start += shared.below[w];
        if (w == warp) at = total;
        total += shared.equal[w];
    }
    if (threadIdx.x == 0) first[expert] = start;
    if (threadIdx.x == 0 && expert == experts - 1) first[experts] = start + total;
    at += start;
    for (int base = begin; base < end; base += 32) {
        const bool mine = base + lane < end && indices[base + lane] == expert;
        const unsigned votes = __ballot_sync(all_lanes, mine);
        if (mine) sorted[at + __popc(votes & ((1u << lane) - 1))] = base + lane;
        at += __popc(votes);
    }
}

/// The choices of a tile: `count` of one expert, from `sorted` on.
struct Portion {
    int expert, begin, count;
};

/// The tile-th portion when each expert's choices are cut into pieces of `most`; past the last: count is 0.
/// All lanes of a warp ask together.
__device__ __forceinline__ Portion find_portion(const int* first, int experts, int most, int tile) {
    const int lane = threadIdx.x % 32;
    for (int base = 0; base < experts; base += 32) {
        const int expert = base + lane;
        const int begin = expert < experts ? first[expert] : 0, end = expert < experts ? first[expert + 1] : 0;
        const int tiles = (end - begin + most - 1) / most;
        int up_to = tiles;  // this lane's expert, of all lanes'
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int before = __shfl_up_sync(all_lanes, up_to, step);
            if (lane >= step) up_to += before;
        }
        const unsigned beyond = __ballot_sync(all_lanes, tile < up_to);
        if (beyond != 0) {
            const int source = __ffs(static_cast<int>(beyond)) - 1;
            const int start = begin + (tile - (up_to - tiles)) * most;
            const int count = min(end - start, most);
            return {base + source, __shfl_sync(all_lanes, start, source), __shfl_sync(all_lanes, count, source)};
        }
        tile -= __shfl_sync(all_lanes, up_to, 31);
    }
    return {0, 0, 0};
}

template <int bits, int tokens>
struct TileShared {
    PrefillShared<bits, tokens> chunks;
    int choices[tokens];  // −1: none
};

template <int bits, int tokens>
__device__ __forceinline__ void list_choices(TileShared<bits, tokens>& shared, const int* sorted, Portion portion) {
    const int slot = threadIdx.x;
    if (slot < tokens) shared.choices[slot] = slot < portion.count ? sorted[portion.begin + slot] : -1;
    __syncthreads();
}

/// The tokens that chose an expert, and its gate and up rows: of 16 slots 8 gates and then the 8 ups beside them.
template <class T>
struct GateUpSource {
    const std::uint8_t* weights;  // of the expert
    const __half* scales;
    const T* any;  // x
    const int* choices;
    int k, hidden, width, first_pair;

    __device__ __forceinline__ std::int64_t row(int slot) const {
        return 2 * min(first_pair + 8 * (slot / 16) + slot % 8, width - 1) + slot / 8 % 2;
    }
    __device__ __forceinline__ const T* x(int slot) const {
        return choices[slot] < 0 ? nullptr : any + std::int64_t{choices[slot] / k} * hidden;
    }
};

template <class T, int bits, int tokens>
__global__ void __launch_bounds__(32 * prefill_warps, tokens <= 16 ? 4 : 2)
    experts_gate_up_tile(const T* __restrict__ x, const T* __restrict__ scores, const int* __restrict__ sorted,
                         const int* __restrict__ first, const std::uint8_t* __restrict__ weights,
                         const __half* __restrict__ scales, T* __restrict__ products, int experts, int k, int hidden,
                         int width, int block_size) {
    using Shared = TileShared<bits, tokens>;
    ERNIE_SHARED(Shared, shared);
    const Portion portion = find_portion(first, experts, tokens, blockIdx.x);
    if (portion.count == 0) return;
    list_choices(shared, sorted, portion);
    const std::int64_t first_row = std::int64_t{2} * portion.expert * width;
    const int first_pair = prefill_rows / 2 * blockIdx.y;
    const GateUpSource<T> source{weights + first_row * (hidden * bits / 8),
                                 scales + first_row * (hidden / block_size),
                                 x,
                                 shared.choices,
                                 k,
                                 hidden,
                                 width,
                                 first_pair};
    const PrefillTile<T, bits, tokens, GateUpSource<T>> at{shared.chunks, source, hidden, block_size};
    using Share = Shares<tokens>;
    float sum[Share::m][Share::c][4] = {};
    at.run(sum);
#pragma unroll
    for (int c = 0; c < Share::c; ++c)
#pragma unroll
        for (int v = 0; v < 2; ++v) {
            const int choice = shared.choices[at.token_slot(c, v)];
            if (choice < 0) continue;
            const float score = widen(scores[choice]);
#pragma unroll
            for (int m = 0; m < Share::m; ++m) {
                const int pair = first_pair + at.row_slot(m, 0) / 16 * 8 + at.g;
                const float gate = sum[m][c][v], up = sum[m][c][v + 2];
                const float product = gate / (1 + expf(-gate)) * up;
                if (pair < width) products[std::int64_t{choice} * width + pair] = narrow<T>(score * product);
            }
        }
}

/// The products of the choices of an expert, and its rows from first_row on.
template <class T>
struct DownSource {
    const std::uint8_t* weights;
    const __half* scales;
    const T* any;
    const int* choices;
    int hidden, width, first_row;

    __device__ __forceinline__ std::int64_t row(int slot) const { return min(first_row + slot, hidden - 1); }
    __device__ __forceinline__ const T* x(int slot) const {
        return choices[slot] < 0 ? nullptr : any + std::int64_t{choices[slot]} * width;
    }
};

/// results [choice, slice]: what each choice gives to the rows from slice_begin on.
template <class T, int bits, int tokens>
__global__ void __launch_bounds__(32 * prefill_warps, tokens <= 16 ? 4 : 2)
    experts_down_tile(const T* __restrict__ products, const int* __restrict__ sorted, const int* __restrict__ first,
                      const std::uint8_t* __restrict__ weights, const __half* __restrict__ scales,
                      float* __restrict__ results, int experts, int hidden, int width, int block_size,
                      int slice_begin, int slice) {
    using Shared = TileShared<bits, tokens>;
    ERNIE_SHARED(Shared, shared);
    const Portion portion = find_portion(first, experts, tokens, blockIdx.x);
    if (portion.count == 0) return;
    list_choices(shared, sorted, portion);
    const std::int64_t first_row = std::int64_t{portion.expert} * hidden;
    const int in_slice = prefill_rows * blockIdx.y;
    const DownSource<T> source{weights + first_row * (width * bits / 8),
                               scales + first_row * (width / block_size),
                               products,
                               shared.choices,
                               hidden,
                               width,
                               slice_begin + in_slice};
    const PrefillTile<T, bits, tokens, DownSource<T>> at{shared.chunks, source, width, block_size};
    using Share = Shares<tokens>;
    float sum[Share::m][Share::c][4] = {};
    at.run(sum);
#pragma unroll
    for (int c = 0; c < Share::c; ++c)
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            const int choice = shared.choices[at.token_slot(c, v)];
            if (choice < 0) continue;
#pragma unroll
            for (int m = 0; m < Share::m; ++m) {
                const int row = in_slice + at.row_slot(m, v);
                if (row < slice) results[std::int64_t{choice} * slice + row] = sum[m][c][v];
            }
        }
}

/// A block a token: a slice of y.
template <class T>
__global__ void __launch_bounds__(sum_threads)
    experts_sum(const float* __restrict__ results, const std::int64_t* __restrict__ indices,
                const T* __restrict__ scores, T* __restrict__ y, std::uint32_t* faults, int hidden, int experts, int k,
                int slice_begin, int slice) {
    const std::int64_t token = blockIdx.x;
    bool fault = false;
    for (int s = 0; s < k; ++s) fault = fault || indices[token * k + s] < 0 || indices[token * k + s] >= experts;
    if (threadIdx.x == 0 && faults != nullptr && (fault || any_nan(scores + token * k, k))) atomicOr(faults, 1u);
    for (int row = threadIdx.x; row < slice; row += sum_threads) {
        float sum = 0;
        for (int s = 0; s < k; ++s) sum += results[(token * k + s) * slice + row];
        y[token * hidden + slice_begin + row] = narrow<T>(fault ? NAN : sum);
    }
}

std::int64_t choices_of(const Experts& c) { return std::int64_t{c.tokens} * c.k; }

std::int64_t rounded(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

/// The parts of the workspace; the results take what is left.
struct Places {
    std::int64_t products = 0, sorted, first, results;

    explicit Places(const Experts& c)
        : sorted(rounded(2 * choices_of(c) * c.width)),
          first(sorted + rounded(4 * choices_of(c))),
          results(first + rounded(4 * (std::int64_t{c.experts} + 1))) {}
};

/// A launch of each kernel, with all that does not change.
template <class T, int bits, int tokens>
struct Prefill {
    const Experts& c;
    cudaStream_t stream;
    const Places places{c};
    const int choices = static_cast<int>(choices_of(c));
    const int tiles = choices / tokens + (c.experts < choices ? c.experts : choices);

    template <class Part>
    Part* part(std::int64_t place) const {
        return reinterpret_cast<Part*>(static_cast<unsigned char*>(c.workspace) + place);
    }

    cudaError_t sort() const {
        return ERNIE_LAUNCH(experts_sort, c.experts, 32 * sort_warps, sizeof(SortShared), stream, c.indices,
                            part<int>(places.sorted), part<int>(places.first), choices, c.experts);
    }
    cudaError_t gate_up() const {
        return ERNIE_LAUNCH((experts_gate_up_tile<T, bits, tokens>),
                            dim3(tiles, ceil_div(c.width, prefill_rows / 2)), 32 * prefill_warps,
                            sizeof(TileShared<bits, tokens>), stream, static_cast<const T*>(c.x),
                            static_cast<const T*>(c.scores), part<const int>(places.sorted),
                            part<const int>(places.first), c.gate_up, static_cast<const __half*>(c.gate_up_scales),
                            part<T>(places.products), c.experts, c.k, c.hidden, c.width, c.format.block_size);
    }
    cudaError_t down(int begin, int slice) const {
        return ERNIE_LAUNCH((experts_down_tile<T, bits, tokens>), dim3(tiles, ceil_div(slice, prefill_rows)),
                            32 * prefill_warps, sizeof(TileShared<bits, tokens>), stream,
                            part<const T>(places.products), part<const int>(places.sorted),
                            part<const int>(places.first), c.down, static_cast<const __half*>(c.down_scales),
                            part<float>(places.results), c.experts, c.hidden, c.width, c.format.block_size, begin,
                            slice);
    }
    cudaError_t sum(int begin, int slice) const {
        return ERNIE_LAUNCH(experts_sum<T>, c.tokens, sum_threads, 0, stream, part<const float>(places.results),
                            c.indices, static_cast<const T*>(c.scores), static_cast<T*>(c.y), c.faults, c.hidden,
                            c.experts, c.k, begin, slice);
    }

    Problem launch() const {
        if (cudaError_t error = sort()) return answer(error, "experts_sort");
        if (cudaError_t error = gate_up()) return answer(error, "experts_gate_up_tile");
        const std::int64_t room = static_cast<std::int64_t>(c.workspace_bytes) - places.results;
        const std::int64_t rows = room / 4 / choices;
        const int most = static_cast<int>(rows < c.hidden ? rows / prefill_rows * prefill_rows : c.hidden);
        for (int begin = 0; begin < c.hidden; begin += most) {
            const int slice = c.hidden - begin < most ? c.hidden - begin : most;
            if (cudaError_t error = down(begin, slice)) return answer(error, "experts_down_tile");
            if (cudaError_t error = sum(begin, slice)) return answer(error, "experts_sum");
        }
        return {};
    }
};

template <class T, int bits>
Problem launch_tile(const Experts& c, cudaStream_t stream) {
    // A tile of 64 that is half full costs what two full ones of 16 do.
    const bool few = choices_of(c) <= std::int64_t{32} * c.experts;
    return few ? Prefill<T, bits, 16>{c, stream}.launch() : Prefill<T, bits, 64>{c, stream}.launch();
}

}  // namespace

std::uint64_t experts_prefill_least(const Experts& c) {
    const std::int64_t rows = c.hidden < prefill_rows ? c.hidden : prefill_rows;
    return static_cast<std::uint64_t>(Places(c).results + 4 * choices_of(c) * rows);
}

// It never falls with more tokens, so that room for many is room for few.
std::uint64_t experts_prefill_workspace(const Experts& c) {
    const std::int64_t all = 4 * choices_of(c) * c.hidden, most = all < handed_over ? all : handed_over;
    const std::uint64_t wanted = static_cast<std::uint64_t>(Places(c).results + most), least = experts_prefill_least(c);
    return wanted > least ? wanted : least;
}

Problem experts_prefill(const Experts& c, cudaStream_t stream) {
    return with_type(c.type, [&](auto type) {
        using T = decltype(type);
        return c.format.bits == 4 ? launch_tile<T, 4>(c, stream) : launch_tile<T, 8>(c, stream);
    });
}

}  // namespace ernie
