// kernels/ptx.h for this machine: what each instruction does, in C++.
#pragma once

#include "cuda.h"

namespace ernie::ptx {

inline unsigned and_or(unsigned x, unsigned mask, unsigned bits) { return (x & mask) | bits; }

template <bool bfloat>
void mma(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], ERNIE_SITE) {
    emulation::MmaIn in{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {sum[0], sum[1], sum[2], sum[3]}};
    float out[4];
    emulation::collective({&in, out, bfloat, 0xffffffffu, sizeof(in), file, line}, emulation::complete_mma);
    for (int i = 0; i < 4; ++i) sum[i] = out[i];
}

inline void copy_async(void* shared, const void* global, bool there) {
    emulation::copy_async(shared, global, 16, there ? 16 : 0);
}
inline void copy_weights(void* shared, const void* global, bool there) {
    if (there) emulation::count_weight_bytes(16);
    copy_async(shared, global, there);
}
inline void copy_async_4(void* shared, const void* global, int bytes) {
    emulation::copy_async(shared, global, 4, static_cast<unsigned>(bytes));
}
inline void copy_commit() { emulation::copy_commit(); }
template <int groups_left>
void copy_wait() {
    emulation::copy_wait(groups_left);
}

}  // namespace ernie::ptx
