// Packed matrices times 8-bit activations with AVX-512 VNNI, straight from the bytes of the weight files.
//
// Stored rows of K weights: see ernie_export/quantize/formats.py.  A run of 128 weights of a row and the 128
// activations that meet it are the unit of work (a "chunk"); K is a whole number of chunks.  Activations are
// rounded to 8 bits with one scale a chunk, as ONNX Runtime's own kernels do at accuracy level 4.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace ernie {

constexpr int64_t CHUNK = 128;
constexpr int64_t NEAR = 64;    // activations that stay in the second-level cache while the rows pass
constexpr int64_t AHEAD = 4096;  // bytes of weights asked for before they are needed

// One chunk of activations, and what the zero point of the weights adds to each of the 16 sums of a vector:
// weight − zero point, times activation, is summed as weight · activation + correction, in whole numbers.
struct alignas(64) Chunk {
  int8_t values[CHUNK];  // INT4: the even ones, then the odd ones, as low and high nibbles hold them
  int32_t correction[2][16];  // INT4 uses the first
  float scale;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Rows of activations, rounded.
class Activations {
 public:
  Activations(int64_t rows, int64_t K) : chunks_(K / CHUNK) {
    data_.reset(static_cast<Chunk*>(std::aligned_alloc(64, std::max<size_t>(rows * chunks_ * sizeof(Chunk), 64))));
    if (!data_) throw std::bad_alloc();
  }
  Chunk* row(int64_t index) const { return data_.get() + index * chunks_; }

  void set(int64_t index, const float* x, int64_t bits) const {
    for (int64_t c = 0; c < chunks_; ++c) round(row(index)[c], x + c * CHUNK, bits);
  }

 private:
  static void round(Chunk& chunk, const float* x, int64_t bits) {
    __m512 values[8], largest = _mm512_setzero_ps();
    for (int i = 0; i < 8; ++i) {
      values[i] = _mm512_loadu_ps(x + 16 * i);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(values[i]));
    }
    const float most = _mm512_reduce_max_ps(largest);
    chunk.scale = most / 127;
    const __m512 factor = _mm512_set1_ps(most > 0 ? 127 / most : 0);
    for (int i = 0; i < 8; ++i) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], factor));
      _mm_store_si128(reinterpret_cast<__m128i*>(chunk.values + 16 * i), _mm512_cvtsepi32_epi8(rounded));
    }
    __m512i halves[2] = {_mm512_load_si512(chunk.values), _mm512_load_si512(chunk.values + 64)};
    if (bits == 4) {
      const auto join = [](__m512i a, __m512i b) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
      };
      const __m512i even = join(halves[0], halves[1]);
      const __m512i odd = join(_mm512_srli_epi16(halves[0], 8), _mm512_srli_epi16(halves[1], 8));
      _mm512_store_si512(chunk.values, halves[0] = even);
      _mm512_store_si512(chunk.values + 64, halves[1] = odd);
    }
    const __m512i ones = _mm512_set1_epi8(1), zero = _mm512_set1_epi32(-(1 << (bits - 1)));
    __m512i first = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, halves[0]);
    const __m512i second = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, halves[1]);
    if (bits == 4) first = _mm512_add_epi32(first, second);
    _mm512_store_si512(chunk.correction[0], _mm512_mullo_epi32(first, zero));
    _mm512_store_si512(chunk.correction[1], _mm512_mullo_epi32(second, zero));
  }

  int64_t chunks_;
  std::unique_ptr<Chunk, Free> data_;
};

// [N, K] weights of 4 or 8 bits with an fp16 scale for each `block` of a row.
struct Matrix {
  const uint8_t* data;
  const uint16_t* scales;
  int64_t K;
  int bits, block;

  Matrix from(int64_t row) const {
    return {data + row * K * bits / 8, scales + row * (K / block), K, bits, block};
  }
};

// The scales of 64 bytes of weights from byte `at` of a row, one for each of the 16 sums of a vector.
template <int BITS>
inline __m512 scales_of(const uint16_t* scales, int64_t weight, int block) {
  constexpr int COVERED = 64 * 8 / BITS;  // weights in 64 bytes
  const uint16_t* first = scales + weight / block;
  if (block >= COVERED) return _mm512_set1_ps(_cvtsh_ss(*first));
  const int count = COVERED / block;  // 2 or 4
  int64_t packed = 0;
  std::copy(first, first + count, reinterpret_cast<uint16_t*>(&packed));
  const __m128 few = _mm_cvtph_ps(_mm_cvtsi64_si128(packed));
  const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i quarters = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  return _mm512_permutexvar_ps(count == 2 ? halves : quarters, _mm512_castps128_ps512(few));
}

// out[t][r] = row r of the matrix times activations t, for ROWS rows and TOKENS activations.
template <int BITS, int ROWS, int TOKENS>
inline void tile(const Matrix& m, const Chunk* const* tokens, float (*out)[ROWS]) {
  __m512 sums[ROWS][TOKENS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < TOKENS; ++t) sums[r][t] = _mm512_setzero_ps();
  const int64_t bytes = m.K * BITS / 8, blocks = m.K / m.block;
  const __m512i low = _mm512_set1_epi8(15);
  for (int64_t c = 0; c < m.K / CHUNK; ++c) {
    constexpr int PARTS = BITS == 8 ? 2 : 1;
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; ++part) {
      __m512i first[ROWS], second[ROWS];
      __m512 scale[ROWS];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const uint8_t* at = m.data + r * bytes + (c * PARTS + part) * 64;
        if (TOKENS == 1) _mm_prefetch(at + AHEAD, _MM_HINT_T0);
        const __m512i packed = _mm512_loadu_si512(at);
        first[r] = BITS == 8 ? packed : _mm512_and_si512(packed, low);
        if (BITS == 4) second[r] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
        scale[r] = scales_of<BITS>(m.scales + r * blocks, c * CHUNK + part * 64, m.block);
      }
#pragma GCC unroll 16
      for (int t = 0; t < TOKENS; ++t) {
        const Chunk& chunk = tokens[t][c];
        const __m512i a = _mm512_load_si512(chunk.values + part * 64);
        const __m512i b = _mm512_load_si512(chunk.values + 64);
        const __m512i correction = _mm512_load_si512(chunk.correction[part]);
        const __m512 factor = _mm512_set1_ps(chunk.scale);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
          __m512i sum = _mm512_dpbusd_epi32(correction, first[r], a);
          if (BITS == 4) sum = _mm512_dpbusd_epi32(sum, second[r], b);
          sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale[r], factor), sums[r][t]);
        }
      }
    }
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r) out[t][r] = _mm512_reduce_add_ps(sums[r][t]);
}

// One row times one activation, a scale for each whole chunk: as few instructions as there can be for every
// byte of weights, because decode is to wait for memory alone.
template <int BITS>
inline float row_times(const Matrix& m, const Chunk* token, const float* token_scales) {
  const int64_t chunks = m.K / CHUNK;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 sums = _mm512_setzero_ps();
  for (int64_t from = 0; from < chunks; from += 16) {
    const int64_t to = std::min<int64_t>(from + 16, chunks);
    alignas(64) float factors[16];
    const __m256i halves = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << (to - from)) - 1), m.scales + from);
    _mm512_store_ps(factors, _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_loadu_ps(token_scales + from)));
    for (int64_t c = from; c < to; ++c) {
      const uint8_t* at = m.data + c * CHUNK * BITS / 8;
      _mm_prefetch(at + AHEAD, _MM_HINT_T0);
      const __m512i first = _mm512_loadu_si512(at);
      const Chunk& chunk = token[c];
      const __m512i a = _mm512_load_si512(chunk.values), b = _mm512_load_si512(chunk.values + 64);
      __m512i sum = _mm512_load_si512(chunk.correction[0]);
      if (BITS == 4) {
        sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(first, low), a);
        sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(_mm512_srli_epi16(first, 4), low), b);
      } else {
        _mm_prefetch(at + AHEAD + 64, _MM_HINT_T0);
        sum = _mm512_add_epi32(sum, _mm512_load_si512(chunk.correction[1]));
        sum = _mm512_dpbusd_epi32(sum, first, a);
        sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(at + 64), b);
      }
      sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(factors[c - from]), sums);
    }
  }
  return _mm512_reduce_add_ps(sums);
}

// Calls put(row, token, value) for rows [begin, end) of the matrix and all `count` activations.
template <int BITS, class Put>
void multiply(const Matrix& m, int64_t begin, int64_t end, const Chunk* const* tokens, int64_t count, Put&& put) {
  constexpr int ROWS = 4, TOKENS = 4;
  const auto run = [&](auto rows, auto many, int64_t row, int64_t token) {
    constexpr int R = decltype(rows)::value, T = decltype(many)::value;
    float out[T][R];
    tile<BITS, R, T>(m.from(row), tokens + token, out);
    for (int t = 0; t < T; ++t)
      for (int r = 0; r < R; ++r) put(row + r, token + t, out[t][r]);
  };
  constexpr std::integral_constant<int, 1> one;
  if (count == 1 && m.block == CHUNK) {
    // Row follows row, so that the hardware fetches ahead along one line of memory.
    const int64_t chunks = m.K / CHUNK;
    std::vector<float> scales((chunks + 15) / 16 * 16);
    for (int64_t c = 0; c < chunks; ++c) scales[c] = tokens[0][c].scale;
    for (int64_t row = begin; row < end; ++row) put(row, 0, row_times<BITS>(m.from(row), tokens[0], scales.data()));
    return;
  }
  const auto over = [&](auto rows, int64_t row, int64_t from, int64_t to) {
    for (; from + TOKENS <= to; from += TOKENS) run(rows, std::integral_constant<int, TOKENS>(), row, from);
    for (; from < to; ++from) run(rows, one, row, from);
  };
  for (int64_t from = 0; from < count; from += NEAR) {
    const int64_t to = std::min(from + NEAR, count);
    int64_t row = begin;
    if (to - from > 1)
      for (; row + ROWS <= end; row += ROWS) over(std::integral_constant<int, ROWS>(), row, from, to);
    for (; row < end; ++row) over(one, row, from, to);
  }
}

}  // namespace ernie
