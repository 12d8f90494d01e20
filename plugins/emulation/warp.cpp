// Compiled without sanitizers, like the scheduler: a lane's registers are not memory.
#include "warp.h"

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace emulation {
namespace {

std::vector<float> all_halves() {
    std::vector<float> values(1 << 16);
    for (unsigned i = 0; i < values.size(); ++i) {
        __half_raw raw;
        raw.x = static_cast<unsigned short>(i);
        values[i] = __half2float(__half(raw));
    }
    return values;
}

float widen(unsigned bits, unsigned bfloat) {
    static const std::vector<float> halves = all_halves();
    if (!bfloat) return halves[bits];
    const std::uint32_t word = bits << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

}  // namespace

void complete_exchange(Arrival* lanes, unsigned mask) {
    for (unsigned i = 0; i < 32; ++i) {
        if (!(mask >> i & 1)) continue;
        const Arrival& lane = lanes[i];
        if (!(mask >> lane.parameter & 1))
            fail("%s:%d: lane %u reads lane %u, which is not in the mask %08x", lane.file, lane.line, i,
                 lane.parameter, mask);
        // Not memcpy: the sanitizers would intercept it.
        auto* out = static_cast<unsigned char*>(lane.out);
        for (unsigned b = 0; b < lane.size; ++b) out[b] = static_cast<const unsigned char*>(lanes[lane.parameter].in)[b];
    }
}

void complete_ballot(Arrival* lanes, unsigned mask) {
    unsigned all = 0;
    for (unsigned i = 0; i < 32; ++i)
        if (mask >> i & 1) all |= *static_cast<const unsigned*>(lanes[i].in);
    for (unsigned i = 0; i < 32; ++i)
        if (mask >> i & 1) *static_cast<unsigned*>(lanes[i].out) = all;
}

// The fragments of mma.m16n8k16 with 16-bit operands, from the PTX ISA: lane 4g + t holds of A the rows
// g and g + 8 at the columns 2t, 2t + 1 and 8 more; of B the column g at the same k; of C and D the
// rows g and g + 8 at the columns 2t and 2t + 1.
void complete_mma(Arrival* lanes, unsigned mask) {
    if (mask != 0xffffffffu) fail("%s:%d: mma needs all lanes", lanes[0].file, lanes[0].line);
    float a[16][16], b[8][16];
    for (unsigned i = 0; i < 32; ++i) {
        const auto& in = *static_cast<const MmaIn*>(lanes[i].in);
        const unsigned g = i / 4, t = i % 4, bfloat = lanes[i].parameter;
        for (unsigned r = 0; r < 4; ++r)
            for (unsigned h = 0; h < 2; ++h)
                a[g + 8 * (r & 1)][2 * t + 8 * (r >> 1) + h] = widen(in.a[r] >> (16 * h) & 0xffff, bfloat);
        for (unsigned r = 0; r < 2; ++r)
            for (unsigned h = 0; h < 2; ++h)
                b[g][2 * t + 8 * r + h] = widen(in.b[r] >> (16 * h) & 0xffff, bfloat);
    }
    for (unsigned i = 0; i < 32; ++i) {
        const auto& in = *static_cast<const MmaIn*>(lanes[i].in);
        auto* out = static_cast<float*>(lanes[i].out);
        for (unsigned r = 0; r < 4; ++r) {
            const float* row = a[i / 4 + 8 * (r >> 1)];
            const float* column = b[2 * (i % 4) + (r & 1)];
            float sum = in.c[r];
            for (unsigned k = 0; k < 16; ++k) sum += row[k] * column[k];
            out[r] = sum;
        }
    }
}

}  // namespace emulation
