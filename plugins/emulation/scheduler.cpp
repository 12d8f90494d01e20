// Compiled without sanitizers: what it does on behalf of a fibre must not look like that fibre's own
// access to memory.  It tells the sanitizers which fibre runs, and at barriers what is ordered by what.
#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fibre.h"
#include "memory.h"

namespace emulation {

Place* here = nullptr;

namespace {

enum class State { ready, barrier, warp, done };

struct Copy {
    void* to;
    const void* from;
    unsigned size, there;
};

struct Thread {
    Fibre fibre;
    Place place;
    State state = State::done;
    Arrival arrival;
    unsigned generation = 0;       // of the block's barriers
    unsigned warp_generation = 0;  // of the warp's
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

struct Settings {
    int order = 0;
    int copies = 0;
    std::mt19937_64 random{1};
} settings;

struct Counters {
    std::uint64_t weight_bytes = 0;
    std::string launches;
} counters;

std::vector<std::unique_ptr<Thread>> threads;  // made once; a fibre is used again by every block
Thread* running = nullptr;
const Launch* launch = nullptr;
const std::function<void()>* body = nullptr;
unsigned count = 0;     // threads of the block
unsigned arrived = 0;   // of them, at the barrier
unsigned finished = 0;  // of them, at the kernel's end
unsigned favourite = 0;
std::vector<unsigned> ready;
char stream_order, block_order, barrier_order[2], warp_order[32][2];

void wait(State state) {
    running->state = state;
    switch_to_scheduler(running->fibre);
}

void wake(Thread& thread) {
    thread.state = State::ready;
    ready.push_back(thread.place.thread.x);
}

void main_of_fibre() {
    Thread& self = *running;
    for (;;) {
        acquire(&block_order);
        (*body)();
        if (!self.open.empty() || !self.groups.empty())
            fail("thread %u ended with asynchronous copies that nothing waited for", self.place.thread.x);
        release(&stream_order);
        ++finished;
        wait(State::done);
    }
}

const char* name(State state) {
    switch (state) {
        case State::ready: return "ready";
        case State::barrier: return "at __syncthreads";
        case State::warp: return "waiting for its warp";
        case State::done: return "ended";
    }
    return "";
}

void report_deadlock() {
    for (unsigned i = 0; i < count; ++i) {
        const Thread& t = *threads[i];
        if (i == 0 || t.state != threads[i - 1]->state || t.arrival.line != threads[i - 1]->arrival.line) {
            const bool waits = t.state == State::barrier || t.state == State::warp;
            std::fprintf(stderr, "  from thread %u on: %s", i, name(t.state));
            if (waits) std::fprintf(stderr, ", %s:%d, mask %08x", t.arrival.file, t.arrival.line, t.arrival.mask);
            std::fprintf(stderr, "\n");
        }
    }
    fail("no thread can go on: some wait for others that never come");
}

/// The place in `ready` of the thread that the order under test lets run.
std::size_t choose() {
    if (settings.order != 0) {
        const bool ahead = settings.order == 1;
        for (std::size_t i = ready.size(); i-- > 0;)
            if ((ready[i] / 32 == favourite) == ahead) return i;
    }
    return settings.random() % ready.size();
}

void run_block(Index block) {
    unsigned char* shared = allocate_shared(launch->shared);
    release(&block_order);  // what the host did, and this memory; nothing of other blocks
    count = launch->block.x;
    arrived = finished = 0;
    favourite = static_cast<unsigned>(settings.random() % ((count + 31) / 32));
    ready.clear();
    for (unsigned i = 0; i < count; ++i) {
        Thread& t = *threads[i];
        t.place = {{i, 0, 0}, block, launch->block, launch->grid, i % 32, i / 32, shared, launch->shared};
        t.generation = t.warp_generation = 0;
        wake(t);
    }
    while (!ready.empty()) {
        const std::size_t at = choose();
        running = threads[ready[at]].get();
        ready[at] = ready.back();
        ready.pop_back();
        here = &running->place;
        switch_to_fibre(running->fibre);
        if (ready.empty() && finished != count) report_deadlock();
    }
    running = nullptr;
    here = nullptr;
    free_shared(shared, launch->shared);
}

}  // namespace

void fail(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "emulation: %s", launch ? launch->kernel : "no kernel");
    if (running) {
        const Index& b = running->place.block;
        std::fprintf(stderr, ", block (%u,%u,%u), thread %u", b.x, b.y, b.z, running->place.thread.x);
    }
    std::fprintf(stderr, ": ");
    std::vfprintf(stderr, format, arguments);
    std::fprintf(stderr, "\n");
    std::fflush(stderr);
    std::_Exit(99);
}

void barrier(const char* file, int line) {
    Thread& self = *running;
    char* order = &barrier_order[self.generation++ & 1];
    release(order);
    self.arrival = {};
    self.arrival.file = file;
    self.arrival.line = line;
    if (++arrived < count) {
        wait(State::barrier);
    } else {
        arrived = 0;
        for (unsigned i = 0; i < count; ++i) {
            Thread& t = *threads[i];
            if (t.arrival.line != line || std::strcmp(t.arrival.file, file) != 0)
                fail("threads of a block meet at two barriers: %s:%d and %s:%d", file, line, t.arrival.file,
                     t.arrival.line);
            if (&t != &self) wake(t);
        }
    }
    acquire(order);
}

void collective(const Arrival& arrival, Completion complete) {
    Thread& self = *running;
    const unsigned lane = self.place.lane, first = self.place.thread.x - lane;
    if (!(arrival.mask >> lane & 1))
        fail("%s:%d: lane %u is not in its own mask %08x", arrival.file, arrival.line, lane, arrival.mask);
    self.arrival = arrival;
    Arrival lanes[32];
    for (unsigned i = 0; i < 32; ++i) {
        if (!(arrival.mask >> i & 1)) continue;
        if (first + i >= count) fail("%s:%d: lane %u is outside the block", arrival.file, arrival.line, i);
        Thread& t = *threads[first + i];
        const bool there = &t == &self || (t.state == State::warp && t.arrival.line == arrival.line &&
                                           t.arrival.mask == arrival.mask &&
                                           std::strcmp(t.arrival.file, arrival.file) == 0);
        if (!there) return wait(State::warp);
        lanes[i] = t.arrival;
    }
    complete(lanes, arrival.mask);
    for (unsigned i = 0; i < 32; ++i)
        if ((arrival.mask >> i & 1) && i != lane) wake(*threads[first + i]);
}

void warp_barrier(unsigned mask, const char* file, int line) {
    Thread& self = *running;
    char* order = &warp_order[self.place.warp][self.warp_generation++ & 1];
    release(order);
    Arrival arrival;
    arrival.mask = mask;
    arrival.file = file;
    arrival.line = line;
    collective(arrival, [](Arrival*, unsigned) {});
    acquire(order);
}

void copy_async(void* shared, const void* global, unsigned size, unsigned there) {
    if (reinterpret_cast<std::uintptr_t>(shared) % size || reinterpret_cast<std::uintptr_t>(global) % size)
        fail("an asynchronous copy of %u bytes between addresses that are no multiple of it", size);
    if (settings.copies == 1)
        copy_now(shared, global, size, there);
    else
        running->open.push_back({shared, global, size, there});
}

void copy_commit() {
    running->groups.push_back(std::move(running->open));
    running->open.clear();
}

void copy_wait(int groups_left) {
    auto& groups = running->groups;
    while (groups.size() > static_cast<std::size_t>(groups_left)) {
        for (const Copy& copy : groups.front()) copy_now(copy.to, copy.from, copy.size, copy.there);
        groups.pop_front();
    }
}

void run(const Launch& what, const std::function<void()>& kernel) {
    launch = &what;
    body = &kernel;
    const Index grid = what.grid, block = what.block;
    if (block.x == 0 || block.x > 1024 || block.x % 32 || block.y != 1 || block.z != 1)
        fail("blocks are of whole warps in x, not (%u,%u,%u)", block.x, block.y, block.z);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("a grid of (%u,%u,%u)", grid.x, grid.y, grid.z);
    if (what.shared > 99 * 1024) fail("%zu bytes of shared memory; SM 86 has 101376", what.shared);
    while (threads.size() < block.x) {
        threads.push_back(std::make_unique<Thread>());
        start(threads.back()->fibre, main_of_fibre);
    }
    ready.reserve(1024);  // here: no fibre may free what another allocated
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    std::vector<std::uint32_t> order(blocks);
    for (std::uint64_t i = 0; i < blocks; ++i) order[i] = static_cast<std::uint32_t>(i);
    std::shuffle(order.begin(), order.end(), settings.random);
    for (const std::uint32_t i : order) run_block({i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y});
    acquire(&stream_order);
    counters.launches += std::string(what.kernel) + ' ' + std::to_string(what.block.x) + ' ' +
                         std::to_string(what.shared) + '\n';
    launch = nullptr;
    body = nullptr;
}

void count_weight_bytes(std::size_t bytes) { counters.weight_bytes += bytes; }

}  // namespace emulation

void ernie_emulation_configure(int order, int copies, std::uint64_t seed) {
    emulation::settings.order = order;
    emulation::settings.copies = copies;
    emulation::settings.random.seed(seed);
}

const char* ernie_emulation_counters(std::uint64_t* weight_bytes) {
    static std::string launches;
    *weight_bytes = emulation::counters.weight_bytes;
    launches = std::move(emulation::counters.launches);
    emulation::counters = {};
    return launches.c_str();
}
