// Compiled without sanitizers, like the scheduler.
#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>

#if defined(ERNIE_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulation {

#if defined(ERNIE_TSAN)
// From mmap: freeing heap memory would count as a write that races with the block's own.
unsigned char* allocate_shared(std::size_t size) {
    void* memory = mmap(nullptr, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    volatile unsigned char* bytes = static_cast<unsigned char*>(memory);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = 0xff;
    return static_cast<unsigned char*>(memory);
}

void free_shared(unsigned char* memory, std::size_t size) { munmap(memory, size + 1); }

void acquire(void* at) { __tsan_acquire(at); }
void release(void* at) { __tsan_release(at); }
#else
// From the heap: an access past its end is one that AddressSanitizer knows.
unsigned char* allocate_shared(std::size_t size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, size ? size : 1)) std::abort();
    auto* bytes = static_cast<unsigned char*>(memory);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = 0xff;
    return bytes;
}

void free_shared(unsigned char* memory, std::size_t) { std::free(memory); }

void acquire(void*) {}
void release(void*) {}
#endif

}  // namespace emulation
