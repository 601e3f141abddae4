// Stacks for the emulated threads, and how to go from one to another.
#include <stdlib.h>
#include <sys/mman.h>

#include <stdexcept>

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
// A launch that failed leaves its fibers behind.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

Fiber host_fiber;

namespace {

#if defined(__x86_64__)

__attribute__((naked, noinline)) void switch_stack(void** /*save*/, void* /*to*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

void enter_at_switch(Fiber* fiber, void (*function)()) {
  void** p = reinterpret_cast<void**>(fiber->stack + kStackBytes - 64);
  *--p = nullptr;  // no return address; also aligns as the ABI wants it
  *--p = reinterpret_cast<void*>(function);
  for (int i = 0; i < 6; ++i) *--p = nullptr;  // the registers above
  fiber->stack_pointer = p;
}

#else  // three to ten times slower

void switch_stack(void** save, void* to) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

void enter_at_switch(Fiber* fiber, void (*function)()) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = fiber->stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, function, 0);
  fiber->stack_pointer = context;
}

#endif

#if defined(__SANITIZE_ADDRESS__)
const void* host_stack;
size_t host_stack_bytes;
#endif

void arrived() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  Fiber* fiber = self ? me()->fiber : &host_fiber;
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &stack, &bytes);
  if (!host_stack) host_stack = stack, host_stack_bytes = bytes;  // the first switch leaves the host's
#endif
}

void start() {
  arrived();
  run_threads();
}

// Never destroyed: fibers outlive the launches that made them.
std::vector<Fiber*>& idle = *new std::vector<Fiber*>;

}  // namespace

void begin_host() {
#if defined(__SANITIZE_ADDRESS__)
  host_stack = nullptr;
#endif
}

void switch_fiber(Fiber* from, Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->fake_stack, to->stack ? to->stack : host_stack,
                                 to->stack ? kStackBytes : host_stack_bytes);
#endif
  switch_stack(&from->stack_pointer, to->stack_pointer);
  arrived();
}

Fiber* get_fiber() {
  if (!idle.empty()) {
    Fiber* fiber = idle.back();
    idle.pop_back();
    return fiber;
  }
  // A page that may not be touched lies under each of the first stacks; the system limits the number of
  // mappings, so the others come in slabs.
  static size_t made = 0;
  static unsigned char* slab = nullptr;
  const bool guard = made < 4096;
  const size_t stacks = guard ? 1 : 64;
  if (made++ % stacks == 0) {
    void* p =
        mmap(nullptr, stacks * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("cuda_on_cpu: no memory for stacks");
    slab = static_cast<unsigned char*>(p);
    if (guard) mprotect(slab, 4096, PROT_NONE);
  } else {
    slab += kStackBytes;
  }
  Fiber* fiber = new Fiber;
  fiber->stack = slab;
  enter_at_switch(fiber, start);
  return fiber;
}

void put_fiber(Fiber* fiber) { idle.push_back(fiber); }

}  // namespace emulator
