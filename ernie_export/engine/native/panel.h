// A packed matrix times many activations: prefill.
//
// 32 rows of weights are a "panel".  A chunk of it is unpacked to bytes and turned, so that a vector holds four
// weights of each of 16 rows, and then meets every activation while it lies in the first-level cache: one
// instruction multiplies 64 weights with four values of one activation, and scales cost three in 32.

#pragma once

#include "matrix.h"

namespace ernie {

constexpr int64_t PANEL = 32;
constexpr int LANES = 16;   // rows in a vector
constexpr int TOGETHER = 8;   // activations whose sums lie in registers at once; with more, less is done in a second

// Turns 16 vectors of 16 numbers.
inline void turn(__m512i (&v)[16]) {
  __m512i w[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 8)
#pragma GCC unroll 16
    for (int j = 0; j < 4; ++j) {
      w[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
      w[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
    }
#pragma GCC unroll 16
  for (int j = 0; j < 8; ++j) {
    v[j] = _mm512_shuffle_i32x4(w[j], w[j + 8], 0x88);
    v[j + 8] = _mm512_shuffle_i32x4(w[j], w[j + 8], 0xdd);
  }
}

// Bytes [32 vectors of K][16 rows][4 of K] of a chunk of 16 rows; INT4: first the even weights, then the odd ones.
template <int BITS>
inline void unpack(const uint8_t* const* rows, int64_t offset, uint8_t* out) {
  constexpr int PARTS = BITS == 8 ? 2 : 1;
  const __m512i low = _mm512_set1_epi8(15);
  for (int part = 0; part < PARTS; ++part) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      const uint8_t* at = rows[r] + offset + part * 64;
      v[r] = _mm512_loadu_si512(at);
      _mm_prefetch(at + PARTS * 64, _MM_HINT_T0);
    }
    turn(v);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      if (BITS == 8) {
        _mm512_store_si512(out + (part * 16 + j) * 64, v[j]);
      } else {
        _mm512_store_si512(out + j * 64, _mm512_and_si512(v[j], low));
        _mm512_store_si512(out + (16 + j) * 64, _mm512_and_si512(_mm512_srli_epi16(v[j], 4), low));
      }
    }
  }
}

// sums [T, 32] += a chunk of a panel times T activations.  `scales` [blocks of the chunk, 32].
template <int BITS, int BLOCK, int T>
inline void meet(const uint8_t* panel, const float* scales, const int8_t* values, const float* factors,
                 const int32_t* corrections, float* sums) {
  constexpr int BLOCKS = CHUNK / BLOCK, STEPS = BLOCK / 8;  // pairs of vectors of K in a block
  const uint8_t* other = panel + LANES * CHUNK;                                     // of the other 16 rows
#pragma GCC unroll 4
  for (int block = 0; block < BLOCKS; ++block) {
    __m512i first[T], second[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) first[t] = second[t] = _mm512_set1_epi32(corrections[t * BLOCKS + block]);
    const auto step = [&](int at) __attribute__((always_inline)) {
      const __m512i a = _mm512_load_si512(panel + at * 64), b = _mm512_load_si512(other + at * 64);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const __m512i four = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(values + t * CHUNK + at * 4));
        first[t] = _mm512_dpbusd_epi32(first[t], a, four);
        second[t] = _mm512_dpbusd_epi32(second[t], b, four);
      }
    };
    for (int pair = block * STEPS; pair < (block + 1) * STEPS; ++pair) {
      step(BITS == 4 ? pair : 2 * pair);
      step(BITS == 4 ? pair + 16 : 2 * pair + 1);
    }
    const __m512 a = _mm512_load_ps(scales + block * PANEL), b = _mm512_load_ps(scales + block * PANEL + LANES);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const __m512 factor = _mm512_set1_ps(factors[t * BLOCKS + block]);
      float* sum = sums + t * PANEL;
      _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(first[t]), _mm512_mul_ps(a, factor), _mm512_load_ps(sum)));
      sum += LANES;
      _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(second[t]), _mm512_mul_ps(b, factor), _mm512_load_ps(sum)));
    }
  }
}

template <int BITS, int BLOCK, int T = TOGETHER>
inline void meet(int count, const uint8_t* panel, const float* scales, const int8_t* values, const float* factors,
                 const int32_t* corrections, float* sums) {
  if (count == T) return meet<BITS, BLOCK, T>(panel, scales, values, factors, corrections, sums);
  if constexpr (T > 1) meet<BITS, BLOCK, T - 1>(count, panel, scales, values, factors, corrections, sums);
}

// put(row, width, sums [M, 32]) for every panel of rows [begin, end): `width` of its 32 rows are there.
template <int BITS, int BLOCK, class Put>
void many(const Matrix& m, int64_t begin, int64_t end, const Activations& x, Put&& put) {
  constexpr int64_t BLOCKS = CHUNK / BLOCK;
  const int64_t chunks = m.K / CHUNK, tiles = (x.M + TOGETHER - 1) / TOGETHER;
  thread_local Buffer<float> held, scales;
  held.grow(x.M * PANEL);
  scales.grow(m.row_blocks() * PANEL);
  float* sums = held.data();
  alignas(64) uint8_t panel[PANEL * CHUNK];
  for (int64_t row = begin; row < end; row += PANEL) {
    const int64_t width = std::min(PANEL, end - row);
    const uint8_t* rows[PANEL];
    for (int64_t r = 0; r < PANEL; ++r) {
      const Matrix one = m.from(row + std::min(r, width - 1));
      rows[r] = one.data;
      for (int64_t b = 0; b < m.row_blocks(); ++b) scales.data()[b * PANEL + r] = _cvtsh_ss(one.scales[b]);
    }
    std::fill(sums, sums + x.M * PANEL, 0.0f);
    for (int64_t c = 0; c < chunks; ++c) {
      unpack<BITS>(rows, c * CHUNK * BITS / 8, panel);
      unpack<BITS>(rows + LANES, c * CHUNK * BITS / 8, panel + LANES * CHUNK);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t from = tile * x.M / tiles, to = (tile + 1) * x.M / tiles;
        meet<BITS, BLOCK>(static_cast<int>(to - from), panel, scales.data() + c * BLOCKS * PANEL,
                          x.values(c) + from * CHUNK, x.scales(c) + from * BLOCKS, x.corrections(c) + from * BLOCKS,
                          sums + from * PANEL);
      }
    }
    put(row, width, sums);
  }
}

}  // namespace ernie
