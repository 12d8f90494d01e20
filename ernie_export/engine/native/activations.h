// Rows of activations rounded to 8 bits, with a scale for each block of the weights that they meet, as ONNX
// Runtime's own kernels do at accuracy level 4, in the order in which the products read them.
//
// M activations (tokens) of K values; K is a whole number of runs of 128, "chunks".

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace ernie {

constexpr int64_t CHUNK = 128;

// Memory that begins at a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0) { grow(count); }
  void grow(int64_t count) {
    if (count <= count_) return;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
    if (!memory_) throw std::bad_alloc();
    count_ = count;
  }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t count_ = 0;
};

// What meets a matrix of `bits` whose scales are for `block` weights.
class Activations {
 public:
  Activations(int64_t M, int64_t K, int64_t bits, int64_t block)
      : M(M), K(K), bits(bits), blocks(CHUNK / block), values_(M * K), scales_(M * K / block),
        corrections_(M * K / block) {}

  const int64_t M, K, bits, blocks;  // blocks of weights in a chunk: 1, 2 or 4

  // [M, 128] of a chunk.  INT4: the even values, then the odd ones, as low and high nibbles hold them.
  int8_t* values(int64_t chunk) const { return values_.data() + chunk * M * CHUNK; }
  // [M, blocks] of a chunk
  float* scales(int64_t chunk) const { return scales_.data() + chunk * M * blocks; }
  // [M, blocks] of a chunk: what the zero point of the weights adds to the sum of a block.  (weight − zero point) ·
  // activation is summed as weight · activation + correction, in whole numbers.
  int32_t* corrections(int64_t chunk) const { return corrections_.data() + chunk * M * blocks; }

  void set(int64_t token, const float* x) const {
    for (int64_t chunk = 0; chunk < K / CHUNK; ++chunk)
      round(x + chunk * CHUNK, values(chunk) + token * CHUNK, scales(chunk) + token * blocks,
            corrections(chunk) + token * blocks);
  }

 private:
  void round(const float* x, int8_t* to, float* scales, int32_t* corrections) const {
    const int64_t vectors = 8 / blocks;  // of 16 values, in a block
    for (int64_t block = 0; block < blocks; ++block, x += 16 * vectors) {
      __m512 largest = _mm512_setzero_ps();
      for (int64_t i = 0; i < vectors; ++i) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(x + 16 * i)));
      const float most = _mm512_reduce_max_ps(largest);
      const __m512 factor = _mm512_set1_ps(most > 0 ? 127 / most : 0);
      __m512i sum = _mm512_setzero_si512();
      for (int64_t i = 0; i < vectors; ++i) {
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), factor));
        _mm_store_si128(reinterpret_cast<__m128i*>(to + 16 * (block * vectors + i)), _mm512_cvtsepi32_epi8(rounded));
        sum = _mm512_add_epi32(sum, rounded);
      }
      scales[block] = most / 127;
      corrections[block] = -_mm512_reduce_add_epi32(sum) * (1 << (bits - 1));
    }
    if (bits == 4) {
      const auto join = [](__m512i a, __m512i b) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
      };
      const __m512i a = _mm512_load_si512(to), b = _mm512_load_si512(to + 64);
      _mm512_store_si512(to, join(a, b));
      _mm512_store_si512(to + 64, join(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8)));
    }
  }

  Buffer<int8_t> values_;
  Buffer<float> scales_;
  Buffer<int32_t> corrections_;
};

}  // namespace ernie
