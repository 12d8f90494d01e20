// 16-bit activations: T is __half or __nv_bfloat16.
#pragma once

#include "device.h"
#include "launch.h"

namespace ernie {

template <class T>
struct Number;

template <>
struct Number<__half> {
    static constexpr bool bfloat = false;
    using Pair = __half2;
};

template <>
struct Number<__nv_bfloat16> {
    static constexpr bool bfloat = true;
    using Pair = __nv_bfloat162;
};

__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float2 widen(__half2 x) { return __half22float2(x); }
__device__ __forceinline__ float2 widen(__nv_bfloat162 x) { return __bfloat1622float2(x); }

template <class T>
__device__ __forceinline__ T narrow(float x) {
    if constexpr (Number<T>::bfloat)
        return __float2bfloat16_rn(x);
    else
        return __float2half_rn(x);
}

template <class T>
__device__ __forceinline__ bool any_nan(const T* x, int count) {
    bool found = false;
    for (int i = 0; i < count; ++i) found = found || widen(x[i]) != widen(x[i]);
    return found;
}

/// Two numbers in one register, and back.
template <class Pair>
__device__ __forceinline__ Pair as_pair(unsigned bits) {
    Pair pair;
    memcpy(static_cast<void*>(&pair), &bits, sizeof(bits));
    return pair;
}
template <class Pair>
__device__ __forceinline__ unsigned as_bits(Pair pair) {
    unsigned bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

/// Calls f with a value of the dtype's C++ type.
template <class F>
auto with_type(Type type, F&& f) {
    return type == Type::bf16 ? f(__nv_bfloat16{}) : f(__half{});
}

}  // namespace ernie
