// Weights in the layout on disk (ernie_export/quantize/formats.py): rows of K contiguous, codes offset
// binary, INT4 two a byte with the low nibble first, one fp16 scale for each block of a row.
#pragma once

#include "launch.h"

namespace ernie {

struct Format {
    std::int32_t bits;        // 4 or 8
    std::int32_t block_size;  // 32, 64 or 128
};

inline Problem check(const Format& format) {
    if (format.bits != 4 && format.bits != 8) return problem("bits is %d; it must be 4 or 8", format.bits);
    if (format.block_size != 32 && format.block_size != 64 && format.block_size != 128)
        return problem("block_size is %d; it must be 32, 64 or 128", format.block_size);
    return {};
}

/// That a row of k codes is whole blocks.
inline Problem check_row(const Format& format, const char* name, std::int32_t k) {
    if (k > 0 && k % format.block_size == 0) return {};
    return problem("%s is %d; it must be a multiple of the block, %d", name, k, format.block_size);
}

}  // namespace ernie
