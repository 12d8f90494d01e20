// Cached attention: the new rows into the cache; attention over parts of the context; the parts joined.
//
// A block has one key-value head and 16 rows of queries: the heads that share it, times new tokens, so that
// decode reads the cache once for the whole group.  Its warps take 16 keys in turn.  As in row_tile.h,
// fragments follow the loads: the order of d within a head and of the columns of the output is free, so a
// lane takes whole 16 bytes of keys and of values from the cache and nothing goes through shared memory.
#include "attention.h"

#include "number.h"
#include "ptx.h"

namespace ernie {
namespace {

constexpr int warps = 4;
constexpr int keys_a_step = 16;
constexpr int most_parts = 64;
constexpr unsigned all_lanes = 0xffffffffu;

/// Sizes and pointers as the kernels need them.
template <class T>
struct Cache {
    T* key;
    T* value;
    const float* cos;
    const float* sin;
    const std::int64_t* position_ids;
    const std::int32_t* seqlens_k;
    std::uint32_t* faults;
    int tokens, kv_heads, group, rows, positions;

    /// The cache row of a new token; it is outside if the caller's lengths are wrong.
    __device__ __forceinline__ std::int64_t row(int b, int token) const {
        const std::int64_t start = std::int64_t{seqlens_k[b]} + 1 - tokens;
        return (start > 0 ? start : 0) + token;
    }
    __device__ __forceinline__ bool sound(int b, int token) const {
        const std::int64_t position = position_ids[std::int64_t{b} * tokens + token];
        return position >= 0 && position < positions && row(b, token) < rows;
    }
};

/// Turns the pair of d, d + 1 by the angle of its position; NaN where there is none.
template <class T>
__device__ __forceinline__ unsigned turn(const Cache<T>& cache, unsigned pair, int b, int token, int d, int head_dim) {
    using Pair = typename Number<T>::Pair;
    const std::int64_t position = cache.position_ids[std::int64_t{b} * cache.tokens + token];
    if (position < 0 || position >= cache.positions) return as_bits(Pair(narrow<T>(NAN), narrow<T>(NAN)));
    const float2 x = widen(as_pair<Pair>(pair));
    const std::int64_t at = position * (head_dim / 2) + d / 2;
    const float c = cache.cos[at], s = cache.sin[at];
    return as_bits(Pair(narrow<T>(x.x * c - x.y * s), narrow<T>(x.x * s + x.y * c)));
}

/// One block a new row of a key-value head, one thread a pair of it.
template <class T>
__global__ void attention_append(Cache<T> cache, const T* __restrict__ key, const T* __restrict__ value) {
    const int token = blockIdx.x, head = blockIdx.y, b = blockIdx.z, d = 2 * threadIdx.x, head_dim = 2 * blockDim.x;
    const std::int64_t row = cache.row(b, token);
    if (!cache.sound(b, token) && d == 0 && head == 0 && cache.faults != nullptr) atomicOr(cache.faults, 1u);
    if (row >= cache.rows) return;
    const std::int64_t from = ((std::int64_t{b} * cache.tokens + token) * cache.kv_heads + head) * head_dim + d;
    const std::int64_t to = ((std::int64_t{b} * cache.kv_heads + head) * cache.rows + row) * head_dim + d;
    const unsigned k = *reinterpret_cast<const unsigned*>(key + from);
    *reinterpret_cast<unsigned*>(cache.key + to) = turn(cache, k, b, token, d, head_dim);
    *reinterpret_cast<unsigned*>(cache.value + to) = *reinterpret_cast<const unsigned*>(value + from);
}

/// Of 16 rows of queries: the largest score, the sum of exp(score − largest), and that times the values.
template <int head_dim>
struct Joint {
    float largest[warps][16];
    float sum[warps][16];
    float of_values[warps][16][head_dim];
};

/// What a warp knows of its 16 rows; a lane has the rows g and g + 8, [0] and [1].
template <class T, int head_dim>
struct Attending {
    using Pair = typename Number<T>::Pair;
    static constexpr int units = head_dim / 32;  // 16-byte loads of a lane that make a row of d
    static constexpr int halves = head_dim / 64;

    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned query[units][2][4];     // the pairs of d at 32u + 8t
    std::int64_t last[2];            // the last key that the row sees; −1: there is no such row
    float largest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};               // this lane's share
    float of_values[halves][8][4] = {};

    __device__ __forceinline__ void read_queries(const Cache<T>& cache, const T* query_rows, int b, int head,
                                                 int first_row) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = first_row + g + 8 * r, token = row / cache.group;
            const bool there = token < cache.tokens;
            last[r] = there ? cache.row(b, token) : -1;
            const std::int64_t at =
                ((std::int64_t{b} * cache.tokens + token) * cache.kv_heads + head) * cache.group + row % cache.group;
#pragma unroll
            for (int u = 0; u < units; ++u) {
                const int d = 32 * u + 8 * t;
                uint4 x = make_uint4(0, 0, 0, 0);
                if (there) x = *reinterpret_cast<const uint4*>(query_rows + at * head_dim + d);
                const unsigned pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int p = 0; p < 4; ++p)
                    query[u][r][p] = there ? turn(cache, pairs[p], b, token, d + 2 * p, head_dim) : 0;
            }
        }
    }

    /// scores[v]: of the rows g, g, g + 8, g + 8 with the keys 2t, 2t + 1 of the eight from `first`.
    __device__ __forceinline__ void score(float (&scores)[4], const T* keys, std::int64_t first, std::int64_t end) {
        const bool there = first + g < end;
#pragma unroll
        for (int u = 0; u < units; ++u) {
            uint4 k = make_uint4(0, 0, 0, 0);
            if (there) k = *reinterpret_cast<const uint4*>(keys + (first + g) * head_dim + 32 * u + 8 * t);
            const unsigned(&q)[2][4] = query[u];
            ptx::mma<Number<T>::bfloat>(scores, {q[0][0], q[1][0], q[0][1], q[1][1]}, {k.x, k.y});
            ptx::mma<Number<T>::bfloat>(scores, {q[0][2], q[1][2], q[0][3], q[1][3]}, {k.z, k.w});
        }
    }

    /// Scores become exp(score − largest), and all sums so far follow a new largest.
    __device__ __forceinline__ void soften(float (&scores)[2][4], std::int64_t first, float scale) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float now = largest[r];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& s = scores[i / 2][2 * r + i % 2];
                s = first + 8 * (i / 2) + 2 * t + i % 2 <= last[r] ? s * scale : -INFINITY;
                now = fmaxf(now, s);
            }
            now = fmaxf(now, __shfl_xor_sync(all_lanes, now, 1));
            now = fmaxf(now, __shfl_xor_sync(all_lanes, now, 2));
            const float origin = now == -INFINITY ? 0 : now;  // while a row has seen nothing
            const float shrink = expf(largest[r] - origin);
            largest[r] = now;
            sum[r] *= shrink;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float& s = scores[i / 2][2 * r + i % 2];
                s = expf(s - origin);
                sum[r] += s;
            }
#pragma unroll
            for (int h = 0; h < halves; ++h)
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    of_values[h][j][2 * r] *= shrink;
                    of_values[h][j][2 * r + 1] *= shrink;
                }
        }
    }

    static __device__ __forceinline__ unsigned pair(float low, float high) {
        return as_bits(Pair(narrow<T>(low), narrow<T>(high)));
    }

    /// of_values += probabilities · values.  The column g of tile j is d = 64h + 8g + j.
    __device__ __forceinline__ void weigh(const float (&p)[2][4], const T* values, std::int64_t first,
                                          std::int64_t end) {
        const unsigned a[4] = {pair(p[0][0], p[0][1]), pair(p[0][2], p[0][3]), pair(p[1][0], p[1][1]),
                               pair(p[1][2], p[1][3])};
#pragma unroll
        for (int h = 0; h < halves; ++h) {
            unsigned v[4][4];  // of the keys 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const std::int64_t at = first + 2 * t + i % 2 + 8 * (i / 2);
                uint4 x = make_uint4(0, 0, 0, 0);
                if (at < end) x = *reinterpret_cast<const uint4*>(values + at * head_dim + 64 * h + 8 * g);
                v[i][0] = x.x, v[i][1] = x.y, v[i][2] = x.z, v[i][3] = x.w;
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const unsigned selector = j % 2 ? 0x7632 : 0x5410;
                ptx::mma<Number<T>::bfloat>(of_values[h][j], a,
                                            {__byte_perm(v[0][j / 2], v[1][j / 2], selector),
                                             __byte_perm(v[2][j / 2], v[3][j / 2], selector)});
            }
        }
    }

    __device__ __forceinline__ void hand_over(Joint<head_dim>& joint) {
        const int warp = threadIdx.x / 32;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = g + 8 * r;
            sum[r] += __shfl_xor_sync(all_lanes, sum[r], 1);
            sum[r] += __shfl_xor_sync(all_lanes, sum[r], 2);
            if (t == 0) joint.largest[warp][row] = largest[r];
            if (t == 0) joint.sum[warp][row] = sum[r];
#pragma unroll
            for (int h = 0; h < halves; ++h)
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int c = 0; c < 2; ++c)
                        joint.of_values[warp][row][64 * h + 8 * (2 * t + c) + j] = of_values[h][j][2 * r + c];
        }
    }
};

/// What each part of the context gives a row of queries; rows are [B, S, kv_heads, group].
struct Parts {
    float* largest;    // [rows, parts]
    float* sum;        // [rows, parts]
    float* of_values;  // [rows, parts, D]
    int count;
};

/// exp(largest − of all), or nothing of a part that saw no key.
__device__ __forceinline__ float share(float largest, float of_all) {
    return largest == -INFINITY ? 0 : expf(largest - of_all);
}

template <class T, int head_dim>
__global__ void __launch_bounds__(32 * warps, 2)
    attention_part(Cache<T> cache, const T* __restrict__ query, Parts parts, float scale, int kv_heads) {
    ERNIE_SHARED(Joint<head_dim>, joint);
    const int part = blockIdx.x, head = blockIdx.y % kv_heads, b = blockIdx.z;
    const int first_row = 16 * (blockIdx.y / kv_heads);
    const int warp = threadIdx.x / 32;
    Attending<T, head_dim> mine;
    mine.read_queries(cache, query, b, head, first_row);

    // The keys that the last of the 16 rows sees, and this part's share of them, in whole steps.
    const int last_token = min((first_row + 15) / cache.group, cache.tokens - 1);
    const std::int64_t seen = cache.row(b, last_token) + 1;
    const std::int64_t keys = seen < cache.rows ? seen : cache.rows;
    const std::int64_t steps = (keys + keys_a_step - 1) / keys_a_step;
    const std::int64_t begin = steps * part / parts.count, end = steps * (part + 1) / parts.count;
    const std::int64_t base = (std::int64_t{b} * kv_heads + head) * cache.rows * head_dim;
#pragma unroll 1
    for (std::int64_t step = begin + warp; step < end; step += warps) {
        const std::int64_t first = step * keys_a_step;
        float scores[2][4] = {};
        mine.score(scores[0], cache.key + base, first, keys);
        mine.score(scores[1], cache.key + base, first + 8, keys);
        mine.soften(scores, first, scale);
        mine.weigh(scores, cache.value + base, first, keys);
    }
    mine.hand_over(joint);
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * head_dim; i += 32 * warps) {
        const int r = i / head_dim, d = i % head_dim, row = first_row + r, token = row / cache.group;
        if (token >= cache.tokens) continue;
        float largest = -INFINITY, sum = 0, of_values = 0;
        for (int w = 0; w < warps; ++w) largest = fmaxf(largest, joint.largest[w][r]);
        for (int w = 0; w < warps; ++w) {
            const float factor = share(joint.largest[w][r], largest);
            sum += factor * joint.sum[w][r];
            of_values += factor * joint.of_values[w][r][d];
        }
        const std::int64_t at =
            (((std::int64_t{b} * cache.tokens + token) * kv_heads + head) * cache.group + row % cache.group) *
                parts.count + part;
        if (d == 0) parts.largest[at] = largest;
        if (d == 0) parts.sum[at] = sum;
        parts.of_values[at * head_dim + d] = of_values;
    }
}

/// One block a token and head, one thread a d.
template <class T>
__global__ void attention_join(Cache<T> cache, Parts parts, T* __restrict__ output) {
    const int head = blockIdx.y, b = blockIdx.z, head_dim = blockDim.x, d = threadIdx.x;
    const std::int64_t row = (std::int64_t{b} * cache.tokens + blockIdx.x) * gridDim.y + head;
    float largest = -INFINITY, sum = 0, of_values = 0;
    for (int p = 0; p < parts.count; ++p) largest = fmaxf(largest, parts.largest[row * parts.count + p]);
    for (int p = 0; p < parts.count; ++p) {
        const std::int64_t at = row * parts.count + p;
        const float factor = share(parts.largest[at], largest);
        sum += factor * parts.sum[at];
        of_values += factor * parts.of_values[at * head_dim + d];
    }
    output[row * head_dim + d] = narrow<T>(cache.sound(b, blockIdx.x) ? of_values / sum : NAN);
}

int query_tiles(const Attention& c) { return ceil_div(c.tokens * (c.heads / c.kv_heads), 16); }

/// Enough blocks for the largest GPU, each with 64 keys at least.
int part_count(const Attention& c) {
    const std::int64_t blocks = std::int64_t{c.batch} * c.kv_heads * query_tiles(c);
    const std::int64_t wanted = 512 / (blocks > 0 ? blocks : 1), possible = ceil_div(c.rows, 4 * keys_a_step);
    const std::int64_t count = wanted < possible ? wanted : possible;
    return static_cast<int>(count < 1 ? 1 : count > most_parts ? most_parts : count);
}

Problem check_shape(const Attention& c) {
    if (c.batch < 0 || c.tokens < 0) return problem("batch is %d, tokens is %d", c.batch, c.tokens);
    if (c.kv_heads <= 0 || c.heads <= 0 || c.heads % c.kv_heads)
        return problem("%d heads do not share %d key-value heads evenly", c.heads, c.kv_heads);
    if (c.head_dim != 64 && c.head_dim != 128) return problem("head_dim is %d; it must be 64 or 128", c.head_dim);
    if (c.cache_bits != 16) return problem("cache_bits is %d; it must be 16", c.cache_bits);
    if (c.past_rows < 0 || c.past_rows > c.rows)
        return problem("the past has %d rows; the present has %d", c.past_rows, c.rows);
    if (c.tokens > c.rows) return problem("%d new rows do not fit into a cache of %d", c.tokens, c.rows);
    return {};
}

Problem check(const Attention& c) {
    if (Problem wrong = check_shape(c); !wrong.empty()) return wrong;
    if (c.past_key == c.present_key && c.past_rows != c.rows)
        return problem("past and present are one buffer, so they have the same rows, not %d and %d", c.past_rows,
                       c.rows);
    if (!aligned(c.query) || !aligned(c.present_key) || !aligned(c.present_value))
        return "query and cache must start at a multiple of 16 bytes";
    if (c.workspace_bytes < workspace(c))
        return problem("the workspace has %llu bytes; attention needs %llu",
                       static_cast<unsigned long long>(c.workspace_bytes),
                       static_cast<unsigned long long>(workspace(c)));
    return {};
}

/// The past's rows into a present that is another buffer.
cudaError_t copy_past(const Attention& c, const void* past, void* present, cudaStream_t stream) {
    if (past == present || c.past_rows == 0) return cudaSuccess;
    const std::size_t row = 2 * static_cast<std::size_t>(c.head_dim);
    return cudaMemcpy2DAsync(present, c.rows * row, past, c.past_rows * row, c.past_rows * row,
                             static_cast<std::size_t>(c.batch) * c.kv_heads, cudaMemcpyDeviceToDevice, stream);
}

template <class T, int head_dim>
Problem launch_typed(const Attention& c, cudaStream_t stream) {
    if (cudaError_t error = copy_past(c, c.past_key, c.present_key, stream)) return answer(error, "the copy of past_key");
    if (cudaError_t error = copy_past(c, c.past_value, c.present_value, stream))
        return answer(error, "the copy of past_value");
    const Cache<T> cache{static_cast<T*>(c.present_key),
                         static_cast<T*>(c.present_value),
                         c.cos,
                         c.sin,
                         c.position_ids,
                         c.seqlens_k,
                         c.faults,
                         c.tokens,
                         c.kv_heads,
                         c.heads / c.kv_heads,
                         c.rows,
                         c.positions};
    const std::int64_t rows = std::int64_t{c.batch} * c.tokens * c.heads;
    Parts parts{static_cast<float*>(c.workspace), nullptr, nullptr, part_count(c)};
    parts.sum = parts.largest + rows * parts.count;
    parts.of_values = parts.sum + rows * parts.count;
    cudaError_t error = ERNIE_LAUNCH(attention_append<T>, dim3(c.tokens, c.kv_heads, c.batch), head_dim / 2, 0, stream,
                                     cache, static_cast<const T*>(c.key), static_cast<const T*>(c.value));
    if (error != cudaSuccess) return answer(error, "attention_append");
    error = ERNIE_LAUNCH((attention_part<T, head_dim>), dim3(parts.count, c.kv_heads * query_tiles(c), c.batch),
                         32 * warps, sizeof(Joint<head_dim>), stream, cache, static_cast<const T*>(c.query), parts,
                         c.scale, c.kv_heads);
    if (error != cudaSuccess) return answer(error, "attention_part");
    error = ERNIE_LAUNCH(attention_join<T>, dim3(c.tokens, c.heads, c.batch), head_dim, 0, stream, cache, parts,
                         static_cast<T*>(c.output));
    return answer(error, "attention_join");
}

}  // namespace

std::uint64_t workspace(const Attention& call) {
    if (!check_shape(call).empty()) return 0;
    const std::uint64_t rows = std::uint64_t(call.batch) * std::uint64_t(call.tokens) * std::uint64_t(call.heads);
    return rows * static_cast<std::uint64_t>(part_count(call)) * (static_cast<std::uint64_t>(call.head_dim) + 2) * 4;
}

Problem launch(const Attention& c, cudaStream_t stream) {
    if (Problem wrong = check(c); !wrong.empty()) return wrong;
    if (c.tokens == 0 || c.batch == 0) return {};
    return with_type(c.type, [&](auto type) {
        using T = decltype(type);
        return c.head_dim == 64 ? launch_typed<T, 64>(c, stream) : launch_typed<T, 128>(c, stream);
    });
}

}  // namespace ernie
