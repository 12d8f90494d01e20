#include "fibre.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#if defined(ERNIE_ASAN)
#include <sanitizer/common_interface_defs.h>
#elif defined(ERNIE_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {
namespace {

constexpr std::size_t stack_size = 256 << 10;
Fibre scheduler;
void (*main_of_fibres)() = nullptr;
#if defined(ERNIE_ASAN)
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_size = 0;
#endif

#if defined(__x86_64__)
// Saves what a call must preserve, changes stacks, and returns on the other one.  ucontext would do,
// at a system call a switch.
extern "C" void ernie_emulation_switch(void** from, void* to);
asm(R"(
.text
.globl ernie_emulation_switch
.hidden ernie_emulation_switch
.type ernie_emulation_switch, @function
ernie_emulation_switch:
    endbr64
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ernie_emulation_switch, . - ernie_emulation_switch
)");

void change(Fibre& from, Fibre& to) { ernie_emulation_switch(&from.stack_pointer, to.stack_pointer); }

void prepare(Fibre& fibre, void (*entry)()) {
    void** top = reinterpret_cast<void**>(fibre.stack + stack_size);
    *--top = nullptr;  // where entry would return to: it does not; and it keeps the stack aligned
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fibre.stack_pointer = top;
}
#else
ucontext_t* context(Fibre& fibre) {
    if (!fibre.stack_pointer) fibre.stack_pointer = new ucontext_t;
    return static_cast<ucontext_t*>(fibre.stack_pointer);
}

void change(Fibre& from, Fibre& to) { swapcontext(context(from), context(to)); }

void prepare(Fibre& fibre, void (*entry)()) {
    ucontext_t* c = context(fibre);
    getcontext(c);
    c->uc_stack.ss_sp = fibre.stack;
    c->uc_stack.ss_size = stack_size;
    c->uc_link = nullptr;
    makecontext(c, entry, 0);
}
#endif

void entry() {
#if defined(ERNIE_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    main_of_fibres();
    std::abort();
}

}  // namespace

void switch_to_fibre(Fibre& fibre) {
#if defined(ERNIE_ASAN)
    __sanitizer_start_switch_fiber(&scheduler.address_sanitizer, fibre.stack, stack_size);
#elif defined(ERNIE_TSAN)
    scheduler.thread_sanitizer = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fibre.thread_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    change(scheduler, fibre);
#if defined(ERNIE_ASAN)
    __sanitizer_finish_switch_fiber(scheduler.address_sanitizer, nullptr, nullptr);
#endif
}

void switch_to_scheduler(Fibre& from) {
#if defined(ERNIE_ASAN)
    __sanitizer_start_switch_fiber(&from.address_sanitizer, scheduler_stack, scheduler_stack_size);
#elif defined(ERNIE_TSAN)
    __tsan_switch_to_fiber(scheduler.thread_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
    change(from, scheduler);
#if defined(ERNIE_ASAN)
    __sanitizer_finish_switch_fiber(from.address_sanitizer, &scheduler_stack, &scheduler_stack_size);
#endif
}

void start(Fibre& fibre, void (*main)()) {
    void* stack = mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) {
        std::perror("emulation: no memory for a fibre's stack");
        std::abort();
    }
    fibre.stack = static_cast<unsigned char*>(stack);
#if defined(ERNIE_TSAN)
    fibre.thread_sanitizer = __tsan_create_fiber(0);
#endif
    main_of_fibres = main;
    prepare(fibre, entry);
}

}  // namespace emulation
