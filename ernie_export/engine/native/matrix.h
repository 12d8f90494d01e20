// A packed matrix, straight from the bytes of the weight files, times few activations: decode.
//
// Stored rows of K weights: see ernie_export/quantize/formats.py.

#pragma once

#include "activations.h"

namespace ernie {

// [N, K] weights of 4 or 8 bits with an fp16 scale for each `block` of a row.
struct Matrix {
  const uint8_t* data;
  const uint16_t* scales;
  int64_t K;
  int64_t bits, block;

  int64_t row_bytes() const { return K * bits / 8; }
  int64_t row_blocks() const { return K / block; }
  Matrix from(int64_t row) const { return {data + row * row_bytes(), scales + row * row_blocks(), K, bits, block}; }
};

// out = `count` fp16 numbers, `times` other ones; the sum of their products with `corrections`, in 16 parts.
inline __m512 scaled(const uint16_t* halves, const float* times, const float* corrections, int64_t count, float* out) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = static_cast<__mmask16>((1u << std::min<int64_t>(count - i, 16)) - 1);
    const __m512 values = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, halves + i)),
                                        _mm512_maskz_loadu_ps(mask, times + i));
    sum = _mm512_fmadd_ps(values, _mm512_maskz_loadu_ps(mask, corrections + i), sum);
    _mm512_storeu_ps(out + i, values);
  }
  return sum;
}

// What lies over the 16 sums of a vector of 64 bytes that hold COUNT blocks: a number for each block, repeated.
template <int COUNT>
inline __m512 spread(const float* each) {
  if (COUNT == 1) return _mm512_set1_ps(*each);
  const __m512i at = COUNT == 2 ? _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
                                : _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m128 few = _mm_maskz_loadu_ps((1 << COUNT) - 1, each);
  return _mm512_permutevar_ps(_mm512_broadcast_f32x4(few), at);
}

// put(row, token, value) for ROWS rows from `row` on and TOKENS activations from `token` on; `factors` [TOKENS,
// K/block]: the activations' scales, and their corrections; `scales` has room for ROWS · TOKENS · (K/block + 16).
// Four rows share what is read of an activation; each line of memory is asked for into the second-level cache two
// turns before it is needed.
template <int BITS, int BLOCK, int ROWS, int TOKENS, class Put>
inline void dot(const Matrix& whole, int64_t row, const Activations& x, int64_t token, const float* factors,
                const float* corrections, float* scales, Put&& put) {
  constexpr int PARTS = BITS == 8 ? 2 : 1;                                      // vectors of weights in a chunk
  constexpr int BLOCKS = CHUNK / BLOCK, IN_PART = std::max(BLOCKS / PARTS, 1);  // of a chunk, of a vector
  const Matrix m = whole.from(row);
  const int64_t bytes = m.row_bytes(), blocks = m.row_blocks(), room = blocks + 16, step = x.M * CHUNK;
  __m512 sums[ROWS][TOKENS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t)
      sums[r][t] = scaled(m.scales + r * blocks, factors + t * blocks, corrections + t * blocks, blocks,
                          scales + (r * TOKENS + t) * room);
  const __m512i low = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
  const int8_t* values = x.values(0) + token * CHUNK;
  const uint8_t* at = m.data;
  for (int64_t c = 0; c < m.K / CHUNK; ++c, values += step) {
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; ++part, at += 64) {
      __m512i first[ROWS], second[ROWS];
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        _mm_prefetch(at + (r + 2 * ROWS) * bytes, _MM_HINT_T1);
        __m512i packed = _mm512_loadu_si512(at + r * bytes);
        asm("" : "+v"(packed));  // loaded once, not once for each use
        first[r] = BITS == 8 ? packed : _mm512_and_si512(packed, low);
        second[r] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
      }
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; ++t) {
        const __m512i a = _mm512_load_si512(values + t * CHUNK + part * 64);
        const __m512i b = _mm512_load_si512(values + t * CHUNK + 64);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
          __m512i sum = _mm512_dpbusd_epi32(zero, first[r], a);
          if (BITS == 4) sum = _mm512_dpbusd_epi32(sum, second[r], b);
          const float* each = scales + (r * TOKENS + t) * room + c * BLOCKS + part * (BLOCKS / PARTS);
          sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), spread<IN_PART>(each), sums[r][t]);
        }
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) put(row + r, token + t, _mm512_reduce_add_ps(sums[r][t]));
}

// put(row, token, value) for rows [begin, end) and TOKENS activations from `token` on.
template <int BITS, int BLOCK, int TOKENS, class Put>
void few(const Matrix& m, int64_t begin, int64_t end, const Activations& x, int64_t token, Put&& put) {
  constexpr int BLOCKS = CHUNK / BLOCK, ROWS = 4;
  const int64_t blocks = m.row_blocks();
  thread_local Buffer<float> held;
  held.grow(TOKENS * (2 * blocks + ROWS * (blocks + 16)));
  float *factors = held.data(), *corrections = factors + TOKENS * blocks, *scales = corrections + TOKENS * blocks;
  for (int t = 0; t < TOKENS; ++t)
    for (int64_t b = 0; b < blocks; ++b) {
      factors[t * blocks + b] = x.scales(b / BLOCKS)[(token + t) * BLOCKS + b % BLOCKS];
      corrections[t * blocks + b] = x.corrections(b / BLOCKS)[(token + t) * BLOCKS + b % BLOCKS];
    }
  int64_t row = begin;
  for (; row + ROWS <= end; row += ROWS)
    dot<BITS, BLOCK, ROWS, TOKENS>(m, row, x, token, factors, corrections, scales, put);
  for (; row < end; ++row) dot<BITS, BLOCK, 1, TOKENS>(m, row, x, token, factors, corrections, scales, put);
}

// The same for all activations.
template <int BITS, int BLOCK, class Put>
void few(const Matrix& m, int64_t begin, int64_t end, const Activations& x, Put&& put) {
  int64_t token = 0;
  for (; token + 3 <= x.M; token += 3) few<BITS, BLOCK, 3>(m, begin, end, x, token, put);
  if (x.M - token == 2) few<BITS, BLOCK, 2>(m, begin, end, x, token, put);
  if (x.M - token == 1) few<BITS, BLOCK, 1>(m, begin, end, x, token, put);
}

}  // namespace ernie
