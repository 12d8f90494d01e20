#include "memory.h"

namespace emulation {

void copy_now(void* to, const void* from, unsigned size, unsigned there) {
    auto* target = static_cast<unsigned char*>(to);
    const auto* source = static_cast<const unsigned char*>(from);
    for (unsigned i = 0; i < size; ++i) target[i] = i < there ? source[i] : 0;
}

}  // namespace emulation
