// Where the threads of a scan meet, once or a few times per step.
//
// Spinning is right while all threads run: nobody waits long enough for a system call to pay. When other work
// has taken a thread's core, a spinning neighbour only keeps it waiting: after a while it goes to sleep,
// and the core it frees can run the one that is late.
#pragma once

#include <cstdint>

#include "common/cpu/simd.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

namespace adl {
namespace {

struct Barrier {
  alignas(64) int32_t arrived = 0;
  alignas(64) int32_t round = 0;
  alignas(64) int32_t sleepers = 0;
  int32_t threads = 1;

  // Rounds of the spin loop before a thread sleeps: long against a meeting, short against a time slice.
  static constexpr int kSpins = 1 << 10;

  void meet() {
    if (threads == 1) return;
    const int32_t mine = __atomic_load_n(&round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&round, mine + 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&sleepers, __ATOMIC_SEQ_CST)) wake();
      return;
    }
    for (int k = 0; k < kSpins; ++k) {
      if (__atomic_load_n(&round, __ATOMIC_ACQUIRE) != mine) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    __atomic_add_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&round, __ATOMIC_SEQ_CST) == mine) sleep(mine);
    __atomic_sub_fetch(&sleepers, 1, __ATOMIC_SEQ_CST);
  }

 private:
#if defined(__linux__)
  void sleep(int32_t mine) { syscall(SYS_futex, &round, FUTEX_WAIT_PRIVATE, mine, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &round, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(int32_t) { sched_yield(); }
  void wake() {}
#endif
};

}  // namespace
}  // namespace adl
