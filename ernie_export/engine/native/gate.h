// silu(gate) · up, sixteen at a time.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ernie {

// e^x within 2 ulp: 2^n · e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2, e^r by its series to the seventh power.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504089f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts: the first is exact times n
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (const float part : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(part));
  return _mm512_scalef_ps(sum, n);
}

inline __m512 gate(__m512 gate, __m512 up) {
  const __m512 one = _mm512_set1_ps(1);
  const __m512 divisor = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
  return _mm512_mul_ps(_mm512_div_ps(gate, divisor), up);
}

// out [count] of pairs gate, up
inline void gate(const float* pairs, int64_t count, float* out) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const __mmask16 there = left >= 16 ? 0xffff : (1u << left) - 1;
    const __mmask16 low = left >= 8 ? 0xffff : (1u << 2 * left) - 1;
    const __mmask16 high = left >= 16 ? 0xffff : left > 8 ? (1u << 2 * (left - 8)) - 1 : 0;
    const __m512 a = _mm512_maskz_loadu_ps(low, pairs + 2 * i), b = _mm512_maskz_loadu_ps(high, pairs + 2 * i + 16);
    _mm512_mask_storeu_ps(out + i, there,
                          gate(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)));
  }
}

}  // namespace ernie
