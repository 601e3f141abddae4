// Runs CUDA kernels on the CPU, for tests only: one fiber per CUDA thread, all of them in one operating system thread.
//
// A run is the same every time for the same environment:
//   ADL_EMULATOR_SCHEDULE=fifo|lifo|random   which of the threads that can run goes next
//   ADL_EMULATOR_SEED=n                      of `random`
//   ADL_EMULATOR_RESIDENT=n                  blocks under way at once; by default 1, for `random` 2
//   ADL_EMULATOR_PREEMPT=n                   `random` also stops a thread at about every n-th atomic; 16
//   ADL_EMULATOR_SMS=n                       multiprocessors of the pretended GPU; 132
//   ADL_EMULATOR_REFUSE=cooperative|all      launches that fail
//   ADL_EMULATOR_SLEEPER=n                   the block of rank n of a cluster stops where it first stores into another,
//                                            until nobody else can go on: bounded waits for it are in vain
//   ADL_EMULATOR_LOG=file                    a line per kernel is appended at exit: launches, threads, name
// What a GPU would do wrong silently is an error here: std::runtime_error from the launch, with who waits where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>

#if __has_include(<cuda_bf16.h>) && !defined(ADL_NO_CUDA_HEADERS)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>
#else
#include "types_on_cpu.h"
#endif

// The thread that runs; plain variables, so that a kernel reads them as usual.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedBytes = 227 << 10;       // of a block, and of a multiprocessor but for 1 KiB per block
constexpr size_t kStaticSharedBytes = 48 << 10;  // of these, in arrays of fixed size, and in all that nobody asked for

struct ThreadView {
  uint3 thread, block;
  unsigned lane, in_block, block_threads, block_index, cluster_rank;
  unsigned char *shared, *stack;
};
extern ThreadView* self;  // null on the host

// Where a kernel called something.
struct Site {
  const char *what, *file;
  int line;
};

// ---- launches

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;
  unsigned cluster;
};
// Returns CUDA's number of the error.
int run(const void* kernel, const LaunchShape& shape, const std::function<void()>& body);
int& last_error();  // until someone asks for it; a launch before that fails, as torch's checks would

// What a kernel was allowed by cudaFuncSetAttribute, for all its launches.
struct Allowed {
  size_t dynamic_bytes = 0;  // 0: what arrays of fixed size leave of kStaticSharedBytes
  bool large_clusters = false;
};
Allowed& allowed(const void* kernel);

unsigned multiprocessors();
unsigned blocks_per_multiprocessor(unsigned threads, size_t shared_bytes);
unsigned active_clusters(unsigned size, unsigned threads, size_t shared_bytes);
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

// ---- waiting

void block_barrier(Site site);
void cluster_barrier(Site site);
void grid_barrier(Site site);
void spin(Site site);  // the body of every loop that waits for another thread

// ---- what orders memory between blocks, for the race detector

void release(const void* flag);
void acquire(const void* flag);
void maybe_preempt();

// ---- shared memory

// An array of the running block, the same for all its threads.
void* block_array(const void* key, size_t bytes);
template <class T, class Key>
T& block_array(Key) {
  static char key;
  return *static_cast<T*>(block_array(&key, sizeof(T)));
}
void* shared_of(void* p, unsigned rank);

// ---- warps

void warp_barrier(Site site, unsigned mask);
void shuffle(Site site, unsigned mask, const void* value, size_t bytes, int source, void* result);
unsigned ballot(Site site, unsigned mask, bool predicate);

// All lanes hand in `in`; the last one turns it into what each gets.
struct Lanes {
  alignas(16) unsigned char in[32][64], out[32][32];
};
void warp_collective(Site site, const void* in, size_t in_bytes, void* out, size_t out_bytes, void (*combine)(Lanes&));

// ---- asynchronous copies: until the wait, the target is NaN

void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid);
void copy_async_commit();
void copy_async_wait(unsigned pending);

// ---- stores that land later: at some scheduling point, in any order
//
// A relaxed one does at the latest when its thread comes to a barrier, releases a flag or loads words by load_relaxed;
// a plain load may miss it. `caller` is the place in the kernel, for the race detector.

void arrivals_init(uint64_t* barrier, const void* caller);
void arrivals_expect(uint64_t* barrier, unsigned bytes, const void* caller);
// No time passes while a thread can run or a store can land. Only then does a wait end in vain, and one of kForEver
// not even then: that is a deadlock.
constexpr unsigned kForEver = 1000000;  // microseconds
bool arrivals_wait(Site site, uint64_t* barrier, unsigned parity, unsigned microseconds, const void* caller);
void store_async(Site site, void* p, const void* value, uint64_t* barrier, unsigned rank, const void* caller);
void load_relaxed(const void* p, uint32_t (&words)[4], const void* caller);
void store_relaxed(uint32_t* p, uint32_t v, const void* caller);

// ---- tensor cores

enum class Factor { kBf16, kF16, kTf32 };
void mma(Site site, Factor factor, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_matrices(Site site, uint32_t* d, int count, bool transpose, const void* row);

}  // namespace emulator
