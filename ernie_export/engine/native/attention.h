// Attention over a KV cache in fp16, read where it lies.
//
// A "query" is one head of one token, D wide, turned by RoPE and times the scale.  The heads of a group, and the tokens
// of a tile, share the keys and values of one head of the cache, which so are read once for all of them.  Scores exist
// for 64 keys at a time alone, so what attention needs beside the cache does not grow with it: the softmax is carried
// on from keys to keys (Milakov and Gimelshein, arXiv 1805.02867).

#pragma once

#include <cmath>

#include "gate.h"
#include "panel.h"

namespace ernie {

constexpr int64_t KEYS = 64;      // whose scores are there at once
constexpr int ROWS = 6;           // queries whose sums lie in registers at once
constexpr int64_t FEW_QUERIES = 2 * ROWS;  // up to so many meet keys as they lie; for more, keys are turned first
constexpr float NOTHING = -1e30f;          // less than any score, and still a number

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void store(float* to, __m512 x) { _mm512_storeu_ps(to, x); }
inline void store(uint16_t* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// to [D] = x [D] with each pair (0, 1), (2, 3), … turned by its angle, times `factor`; cos and sin [D/2].
template <class To>
inline void rotate(const float* x, const float* cos, const float* sin, float factor, int64_t D, To* to) {
  const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const auto spread = [&](const float* angles) {
    const __m512 each = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(angles)));
    return _mm512_mul_ps(each, _mm512_set1_ps(factor));
  };
  for (int64_t i = 0; i < D; i += 16) {
    const __m512 values = load(x + i), others = _mm512_permute_ps(values, 0xb1);
    store(to + i, _mm512_fmaddsub_ps(values, spread(cos + i / 2), _mm512_mul_ps(others, spread(sin + i / 2))));
  }
}

// The sums of four vectors.
inline __m128 sums_of(const __m512 (&v)[4]) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// scores [M, 64] of M queries with `count` keys as they lie: four keys at a time.
template <int M>
inline void meet_keys(const float* queries, const uint16_t* keys, int64_t count, int64_t D, float* scores) {
  for (int64_t key = 0; key < count; key += 4) {
    const uint16_t* each[4];
    for (int r = 0; r < 4; ++r) each[r] = keys + std::min(key + r, count - 1) * D;
    __m512 sums[M][4];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) sums[m][r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < D; i += 16) {
      __m512 four[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) four[r] = load(each[r] + i);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const __m512 query = load(queries + m * D + i);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) sums[m][r] = _mm512_fmadd_ps(query, four[r], sums[m][r]);
      }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) _mm_storeu_ps(scores + m * KEYS + key, sums_of(sums[m]));
  }
}

// out [M, 16·N] = its own values, where ADD, and a [M, depth] · b [depth, 16·N].
template <int M, int N, bool ADD, class B>
inline void multiply(const float* a, int64_t a_stride, const B* b, int64_t b_stride, int64_t depth, float* out,
                     int64_t out_stride) {
  __m512 sums[M][N];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sums[m][n] = ADD ? load(out + m * out_stride + 16 * n) : _mm512_setzero_ps();
  for (int64_t i = 0; i < depth; ++i, b += b_stride) {
    __m512 line[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) line[n] = load(b + 16 * n);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const __m512 one = _mm512_set1_ps(a[m * a_stride + i]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] = _mm512_fmadd_ps(one, line[n], sums[m][n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(out + m * out_stride + 16 * n, sums[m][n]);
}

// task(a whole number that the compiler knows, the first query) for all M queries, as even parts of at most ROWS.
template <class Task>
inline void in_parts(int64_t M, Task&& task) {
  const int64_t parts = (M + ROWS - 1) / ROWS;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = part * M / parts;
    switch ((part + 1) * M / parts - from) {
      case 1: task(std::integral_constant<int, 1>(), from); break;
      case 2: task(std::integral_constant<int, 2>(), from); break;
      case 3: task(std::integral_constant<int, 3>(), from); break;
      case 4: task(std::integral_constant<int, 4>(), from); break;
      case 5: task(std::integral_constant<int, 5>(), from); break;
      default: task(std::integral_constant<int, ROWS>(), from);
    }
  }
}

// M queries, and what they have found so far: sums of values, times e^(score − most).
class Queries {
 public:
  void begin(int64_t M, int64_t D) {
    this->M = M;
    this->D = D;
    for (Buffer<float>* buffer : {&queries_, &out_}) buffer->grow(M * D);
    for (Buffer<float>* buffer : {&most_, &sums_}) buffer->grow(M);
    scores_.grow(M * KEYS);
    turned_.grow(D * KEYS);
    std::fill_n(out(), M * D, 0.0f);
    std::fill_n(sums(), M, 0.0f);
    std::fill_n(most(), M, NOTHING);
  }

  float* query(int64_t m) const { return queries_.data() + m * D; }
  float* out() const { return out_.data(); }    // [M, D]
  float* most() const { return most_.data(); }  // [M]
  float* sums() const { return sums_.data(); }  // [M]

  // Over keys and values [·, D] from `begin` to `end`; query m sees those before limit(m).
  template <class Limit>
  void attend(const uint16_t* keys, const uint16_t* values, int64_t begin, int64_t end, Limit&& limit) const {
    for (int64_t from = begin; from < end; from += KEYS) {
      const int64_t count = std::min(KEYS, end - from);
      score(keys + from * D, count);
      for (int64_t m = 0; m < M; ++m) weigh(m, std::clamp<int64_t>(limit(m) - from, 0, count));
      in_parts(M, [&](auto rows, int64_t m) {
        constexpr int R = decltype(rows)::value;
        const float* weights = scores_.data() + m * KEYS;
        const uint16_t* at = values + from * D;
        float* to = out() + m * D;
        int64_t d = 0;
        for (; d + 64 <= D; d += 64) multiply<R, 4, true>(weights, KEYS, at + d, D, count, to + d, D);
        for (; d < D; d += 16) multiply<R, 1, true>(weights, KEYS, at + d, D, count, to + d, D);
      });
    }
  }

 private:
  void score(const uint16_t* keys, int64_t count) const {
    float* scores = scores_.data();
    if (M <= FEW_QUERIES)
      return in_parts(M, [&](auto rows, int64_t m) {
        meet_keys<decltype(rows)::value>(query(m), keys, count, D, scores + m * KEYS);
      });
    turn_keys(keys, count);
    in_parts(M, [&](auto rows, int64_t m) {
      multiply<decltype(rows)::value, 4, false>(query(m), D, turned_.data(), KEYS, D, scores + m * KEYS, KEYS);
    });
  }

  // turned [D, 64] of keys [count, D]; zeros for those that are not there
  void turn_keys(const uint16_t* keys, int64_t count) const {
    for (int64_t first = 0; first < KEYS; first += 16)
      for (int64_t d = 0; d < D; d += 16) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r)
          v[r] = first + r < count ? _mm512_castps_si512(load(keys + (first + r) * D + d)) : _mm512_setzero_si512();
        turn(v);
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) _mm512_store_si512(turned_.data() + (d + r) * KEYS + first, v[r]);
      }
  }

  // The scores of query m become weights: those of the keys that it sees, e^(score − most), and nothing.
  void weigh(int64_t m, int64_t seen) const {
    float* scores = scores_.data() + m * KEYS;
    __m512 v[4], largest = _mm512_set1_ps(most()[m]);
    __mmask16 there[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      there[i] = static_cast<__mmask16>((1u << std::clamp<int64_t>(seen - 16 * i, 0, 16)) - 1);
      v[i] = load(scores + 16 * i);
      largest = _mm512_mask_max_ps(largest, there[i], largest, v[i]);
    }
    const float before = most()[m], now = most()[m] = _mm512_reduce_max_ps(largest);
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm512_maskz_mov_ps(there[i], exponential(_mm512_sub_ps(v[i], _mm512_set1_ps(now))));
      sum = _mm512_add_ps(sum, v[i]);
      store(scores + 16 * i, v[i]);
    }
    const float factor = now > before ? std::exp(before - now) : 1.0f;
    sums()[m] = sums()[m] * factor + _mm512_reduce_add_ps(sum);
    if (factor != 1.0f) scale(out() + m * D, factor, D);
  }

  static void scale(float* values, float factor, int64_t D) {
    for (int64_t d = 0; d < D; d += 16) store(values + d, _mm512_mul_ps(load(values + d), _mm512_set1_ps(factor)));
  }

  int64_t M = 0, D = 0;
  Buffer<float> queries_, out_, most_, sums_, scores_, turned_;
};

// out [D] of query m from what was found in each span of the keys: sums of values [M, D], of weights [M], most [M].
inline void join(const float* found, int64_t spans, int64_t M, int64_t m, int64_t D, float* out) {
  const auto span = [&](int64_t i) { return found + i * M * (D + 2); };
  const auto most_of = [&](int64_t i) { return span(i)[M * (D + 1) + m]; };
  float most = NOTHING, sum = 0;
  for (int64_t i = 0; i < spans; ++i) most = std::max(most, most_of(i));
  for (int64_t i = 0; i < spans; ++i) sum += std::exp(most_of(i) - most) * span(i)[M * D + m];
  for (int64_t d = 0; d < D; d += 16) {
    __m512 values = _mm512_setzero_ps();
    for (int64_t i = 0; i < spans; ++i)
      values = _mm512_fmadd_ps(load(span(i) + m * D + d), _mm512_set1_ps(std::exp(most_of(i) - most) / sum), values);
    store(out + d, values);
  }
}

}  // namespace ernie
