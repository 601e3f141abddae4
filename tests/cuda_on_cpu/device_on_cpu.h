// The emulator's side of cuda/device.cuh: the same names, on the CPU.
#pragma once

#include <bit>

#include "cuda_on_cpu.h"

#define ADL_SHARED(T, name, n) auto& name = emulator::block_array<T[n]>([] {})
#define ADL_DYNAMIC_SHARED(name) unsigned char* name = emulator::self->shared
#define ADL_SPIN_WHILE(condition) \
  while (condition) emulator::spin({"spin-wait", __FILE__, __LINE__})

#define ADL_EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
// Of functions that tell the race detector where the kernel called them.
#define ADL_EMULATOR_CALLER __attribute__((noinline))
#define ADL_EMULATOR_FROM __builtin_return_address(0)

namespace adl {

// ---- flags between blocks

inline unsigned load_acquire(const unsigned* p) {
  emulator::maybe_preempt();
  const unsigned v = __atomic_load_n(p, __ATOMIC_RELAXED);
  emulator::acquire(p);
  return v;
}
inline unsigned add_release(unsigned* p, unsigned v) {
  emulator::release(p);
  return atomicAdd(p, v);
}
inline void grid_barrier(ADL_EMULATOR_HERE) { emulator::grid_barrier({"grid barrier", file, line}); }

// ---- clusters

inline void cluster_barrier(ADL_EMULATOR_HERE) { emulator::cluster_barrier({"cluster barrier", file, line}); }
inline unsigned cluster_rank() { return emulator::self->cluster_rank; }
template <class T>
T* shared_of(T* p, unsigned rank) {
  return static_cast<T*>(emulator::shared_of(p, rank));
}

// ---- stores into the shared memory of other blocks of a cluster, counted by a barrier there

ADL_EMULATOR_CALLER inline void arrivals_init(uint64_t* barrier) {
  emulator::arrivals_init(barrier, ADL_EMULATOR_FROM);
}
ADL_EMULATOR_CALLER inline void arrivals_expect(uint64_t* barrier, unsigned bytes) {
  emulator::arrivals_expect(barrier, bytes, ADL_EMULATOR_FROM);
}
ADL_EMULATOR_CALLER inline bool arrivals_wait(uint64_t* barrier, unsigned parity, unsigned microseconds,
                                              ADL_EMULATOR_HERE) {
  return emulator::arrivals_wait({"arrivals_wait", file, line}, barrier, parity, microseconds, ADL_EMULATOR_FROM);
}
ADL_EMULATOR_CALLER inline void store_async(void* p, uint4 value, uint64_t* barrier, unsigned rank, ADL_EMULATOR_HERE) {
  emulator::store_async({"store_async", file, line}, p, &value, barrier, rank, ADL_EMULATOR_FROM);
}

// ---- words of global memory that are their own flags

ADL_EMULATOR_CALLER inline uint4 load_relaxed(const uint4* p) {
  uint32_t v[4];
  emulator::load_relaxed(p, v, ADL_EMULATOR_FROM);
  return {v[0], v[1], v[2], v[3]};
}
ADL_EMULATOR_CALLER inline void store_relaxed(uint32_t* p, uint32_t v) {
  emulator::store_relaxed(p, v, ADL_EMULATOR_FROM);
}
inline void prefetch_l2(const void*) {}
inline void spin(ADL_EMULATOR_HERE) { emulator::spin({"spin", file, line}); }

// ---- asynchronous copies from global to shared memory

inline void copy_async(void* shared, const void* global, bool valid = true) {
  emulator::copy_async(shared, global, 16, valid ? 16 : 0);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int pending>
void copy_async_wait() {
  emulator::copy_async_wait(pending);
}

// ---- tensor cores

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ADL_EMULATOR_HERE) {
  emulator::mma({"mma_bf16", file, line}, emulator::Factor::kBf16, c, a, b);
}
inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ADL_EMULATOR_HERE) {
  emulator::mma({"mma_f16", file, line}, emulator::Factor::kF16, c, a, b);
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ADL_EMULATOR_HERE) {
  emulator::mma({"mma_tf32", file, line}, emulator::Factor::kTf32, c, a, b);
}

template <int N, bool transpose>
void load_matrices(uint32_t (&d)[N], const void* row, ADL_EMULATOR_HERE) {
  static_assert(N == 2 || N == 4, "");
  emulator::load_matrices({"load_matrices", file, line}, d, N, transpose, row);
}

// Ties away from zero; the 13 bits that a tf32 does not have are zero.
inline uint32_t to_tf32(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fffffff;
  return (u + 0x1000) & ~0x1fffu;
}

}  // namespace adl

#undef ADL_EMULATOR_HERE
#undef ADL_EMULATOR_CALLER
#undef ADL_EMULATOR_FROM
