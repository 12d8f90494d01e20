// Quantized weights as operands of mma: offset-binary codes to exact 16-bit integers.
//
// A number with the right exponent bits is 2^m + code as it stands, so a mask and a subtraction make
// the integer; there is no conversion instruction.  The scales are applied to the fp32 sums, so no
// weight is rounded.  An INT4 word gives its eight codes as the pairs (0,4) (1,5) (2,6) (3,7), which
// is the order of K that the activations then follow.
#pragma once

#include "number.h"
#include "ptx.h"

namespace ernie {

template <class T, int bits>
struct Word {
    static constexpr int codes = 32 / bits;
    static constexpr int pairs = codes / 2;
    using Pair = typename Number<T>::Pair;

    static __device__ __forceinline__ unsigned minus(unsigned bits_of_pair, float offset) {
        const T value = narrow<T>(offset);
        return as_bits(__hsub2(as_pair<Pair>(bits_of_pair), Pair(value, value)));
    }

    /// code − 2^(bits−1), exactly.
    static __device__ __forceinline__ void weights(unsigned word, unsigned (&pair)[pairs]) {
        if constexpr (bits == 4 && Number<T>::bfloat) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                pair[i] = minus(ptx::and_or(word >> (4 * i), 0x000f000fu, 0x43004300u), 128 + 8);
        } else if constexpr (bits == 4) {
            const unsigned high = word >> 8;
            pair[0] = minus(ptx::and_or(word, 0x000f000fu, 0x64006400u), 1024 + 8);
            pair[1] = sixteenth(ptx::and_or(word, 0x00f000f0u, 0x64006400u));
            pair[2] = minus(ptx::and_or(high, 0x000f000fu, 0x64006400u), 1024 + 8);
            pair[3] = sixteenth(ptx::and_or(high, 0x00f000f0u, 0x64006400u));
        } else if constexpr (Number<T>::bfloat) {
            // bf16 has too few bits for 2^7 + code: through fp32, whose upper half is the bf16.
            pair[0] = __byte_perm(integer(word, 0x7440), integer(word, 0x7441), 0x7632);
            pair[1] = __byte_perm(integer(word, 0x7442), integer(word, 0x7443), 0x7632);
        } else {
            pair[0] = minus(__byte_perm(word, 0x64646464u, 0x4140), 1024 + 128);
            pair[1] = minus(__byte_perm(word, 0x64646464u, 0x4342), 1024 + 128);
        }
    }

    /// The activations at the same K, in the same pairs; `at` is aligned to a word's worth.
    static __device__ __forceinline__ void activations(const T* at, unsigned (&pair)[pairs]) {
        if constexpr (bits == 4) {
            const uint4 x = *reinterpret_cast<const uint4*>(at);
            pair[0] = __byte_perm(x.x, x.z, 0x5410);
            pair[1] = __byte_perm(x.x, x.z, 0x7632);
            pair[2] = __byte_perm(x.y, x.w, 0x5410);
            pair[3] = __byte_perm(x.y, x.w, 0x7632);
        } else {
            const uint2 x = *reinterpret_cast<const uint2*>(at);
            pair[0] = x.x;
            pair[1] = x.y;
        }
    }

private:
    /// (1024 + 16 code) / 16 − 72: a nibble four bits up, without shifting it down first.
    static __device__ __forceinline__ unsigned sixteenth(unsigned bits_of_pair) {
        const T factor = narrow<T>(1.0f / 16), offset = narrow<T>(-(64.0f + 8));
        return as_bits(__hfma2(as_pair<Pair>(bits_of_pair), Pair(factor, factor), Pair(offset, offset)));
    }

    /// A byte as the bits of the fp32 number byte − 128.
    static __device__ __forceinline__ unsigned integer(unsigned word, unsigned selector) {
        return __float_as_uint(__uint_as_float(__byte_perm(word, 0x4b000000u, selector)) - (8388608.0f + 128));
    }
};

}  // namespace ernie
