// Memory as the sanitizers have to see it.
#pragma once

#include <cstddef>

namespace emulation {

/// A block's dynamic shared memory, new for each block and filled with NaNs, so that neither what an
/// earlier block left nor zeros are read by luck.
unsigned char* allocate_shared(std::size_t size);
void free_shared(unsigned char* memory, std::size_t size);

/// `there` bytes and zeros up to `size`, as accesses of the running fibre.  Compiled with sanitizers.
void copy_now(void* to, const void* from, unsigned size, unsigned there);

/// What came before release(at) in one fibre is ordered before what comes after acquire(at) in another.
void acquire(void* at);
void release(void* at);

}  // namespace emulation
