// Runs the threads of a CUDA block as fibres of one thread of this machine.
//
// A fibre runs until it waits: at a barrier of its block, or for other lanes of its warp.  Which one
// runs next is the order under test; what has to hold in every order is CUDA's own contract, and what
// breaks that contract (a barrier that some threads never reach, a shuffle with lanes that are not
// there) ends the process with one line that names the kernel, the block and the source line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulation {

struct Index {
    unsigned x, y, z;
};

/// What the lanes of a warp bring to a collective operation; the last lane to arrive completes it for all.
struct Arrival {
    const void* in = nullptr;
    void* out = nullptr;
    unsigned parameter = 0;
    unsigned mask = 0;
    unsigned size = 0;
    const char* file = nullptr;
    int line = 0;
};
using Completion = void (*)(Arrival* lanes, unsigned mask);

/// The place of the running fibre; threadIdx and its like are macros that read it.
struct Place {
    Index thread, block, block_size, grid_size;
    unsigned lane, warp;
    unsigned char* shared;
    std::size_t shared_size;
};
extern Place* here;

void barrier(const char* file, int line);
void warp_barrier(unsigned mask, const char* file, int line);
void collective(const Arrival& arrival, Completion complete);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// An asynchronous copy of `size` bytes, zeros behind the first `there`; it lands at the wait, or at once,
/// as configured.
void copy_async(void* shared, const void* global, unsigned size, unsigned there);
void copy_commit();
void copy_wait(int groups_left);

struct Launch {
    const char* kernel;
    Index grid, block;
    std::size_t shared;
};
void run(const Launch& launch, const std::function<void()>& body);

/// A kernel's bytes of weights read.
void count_weight_bytes(std::size_t bytes);

}  // namespace emulation

extern "C" {
/// order: 0 threads in random order, 1 one warp as far ahead as it gets, 2 one warp as far behind.
/// copies: 0 an asynchronous copy lands when it is waited for, 1 at once.
void ernie_emulation_configure(int order, int copies, std::uint64_t seed);
/// Since the last call: the bytes of weights read, and a line `kernel threads shared` for each launch.
const char* ernie_emulation_counters(std::uint64_t* weight_bytes);
}
