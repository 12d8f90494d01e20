// Fibres: a stack each, switched by hand, and made known to the sanitizers.
#pragma once

#include <cstddef>

namespace emulation {

struct Fibre {
    void* stack_pointer = nullptr;
    unsigned char* stack = nullptr;
    void* address_sanitizer = nullptr;  // its fake stack, while the fibre waits
    void* thread_sanitizer = nullptr;   // what it takes for a thread
};

/// A fibre that will call main(), which never returns, when first switched to.
void start(Fibre& fibre, void (*main)());
void switch_to_fibre(Fibre& fibre);
void switch_to_scheduler(Fibre& from);

}  // namespace emulation
