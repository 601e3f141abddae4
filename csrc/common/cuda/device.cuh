// Everything a kernel uses that is not plain C++. The only place with PTX.
//
// The tests compile the kernels for the CPU, where device_on_cpu.h defines the same names; what it cannot
// follow must not appear in a kernel: shared memory goes through ADL_SHARED and ADL_DYNAMIC_SHARED, launches
// through launch(), spin-waits through ADL_SPIN_WHILE, and warps take part in a collective as a whole.
//
// No wait is for ever. One with a limit says so: arrivals_wait, words that are their own flags. ADL_SPIN_WHILE traps.
// Barriers of the hardware have none, and need none: all threads that have not exited reach them, a cluster is placed
// as a whole, and so is a cooperative grid.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda/types.h"

#ifdef ADL_CUDA_ON_CPU
#include "device_on_cpu.h"
#else

#include <cooperative_groups.h>

#define ADL_SHARED(T, name, n) __shared__ T name[n]
#define ADL_DYNAMIC_SHARED(name)                                      \
  extern __shared__ __align__(16) unsigned char adl_dynamic_shared[]; \
  unsigned char* name = adl_dynamic_shared
#define ADL_SPIN_WHILE(condition) \
  for (unsigned adl_polls = 0; condition; ++adl_polls) adl_polls < (1u << 24) ? __nanosleep(32) : __trap()

namespace adl {

// ---- flags between blocks

__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// Returns the value before.
__device__ __forceinline__ unsigned add_release(unsigned* p, unsigned v) {
  unsigned before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(v) : "memory");
  return before;
}

__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

// ---- clusters (sm_90 and later)

__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __trap();
#endif
}

__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().block_rank();
#else
  return 0;
#endif
}

// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ T* shared_of(T* p, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(p, rank);
#else
  __trap();
  return p;
#endif
}

// ---- stores into the shared memory of other blocks of a cluster, counted by a barrier there (sm_90 and later)
//
// A phase of a barrier is over when it was armed and all bytes it then expects have come, in whatever order. The next
// phase begins at once. Before anyone stores, arrivals_init by one thread, and a cluster_barrier.

__device__ __forceinline__ void arrivals_init(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(at) : "memory");
#else
  __trap();
#endif
}

// By one thread, once a phase.
__device__ __forceinline__ void arrivals_expect(uint64_t* barrier, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
#else
  __trap();
#endif
}

// Until the phase with this parity, 0 for the first, is over; false if it is not after so many microseconds, at most
// four million. Not the number of tries: how long one takes is up to the GPU.
__device__ __forceinline__ bool arrivals_wait(uint64_t* barrier, unsigned parity, unsigned microseconds) {
#if __CUDA_ARCH__ >= 900
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  const auto is_over = [&] {
    unsigned over;
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(over)
        : "r"(at), "r"(parity)
        : "memory");
    return over != 0;
  };
  const auto nanoseconds = [] {
    unsigned now;
    asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(now)::"memory");
    return now;
  };
  if (is_over()) return true;
  const unsigned begun = nanoseconds();
  do
    if (is_over()) return true;
  while (nanoseconds() - begun < 1000 * microseconds);
  return false;
#else
  __trap();
  return false;
#endif
}

// 16 bytes to the same place in the shared memory of block `rank`, and to the count of its barrier.
__device__ __forceinline__ void store_async(void* p, uint4 value, uint64_t* barrier, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(p));
  const unsigned own_barrier = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  unsigned to, counter;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(own), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counter) : "r"(own_barrier), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(counter)
               : "memory");
#else
  __trap();
#endif
}

// ---- words of global memory that are their own flags: each is an atomic access of its own and orders nothing else

__device__ __forceinline__ uint4 load_relaxed(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// A line of 128 bytes on its way from memory to the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// The body of a loop that loads again at once.
__device__ __forceinline__ void spin() {}

// ---- asynchronous copies from global to shared memory

// 16 bytes, or as many zeros where `valid` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `pending` groups are under way.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- tensor cores
//
// Fragments with g = lane / 4 and t = lane % 4, as PTX has them:
//   A 16 x 16   a[r]: row g + 8 (r & 1), columns 2 t + 8 (r >> 1) + {0, 1}
//   B 16 x 8    b[r]: rows 2 t + 8 r + {0, 1}, column g
//   C 16 x 8    c[r]: row g + 8 (r >> 1), column 2 t + (r & 1)
//   tf32: A 16 x 8, a[r]: row g + 8 (r & 1), column t + 4 (r >> 1); B 8 x 8, b[r]: row t + 4 r, column g

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// N matrices of 8 x 8 16-bit elements; lane i names row i % 8 of matrix i / 8. Lane l gets row l / 4 and
// columns 2 (l % 4) + {0, 1} of each, or of its transpose.
template <int N, bool transpose>
__device__ __forceinline__ void load_matrices(uint32_t (&d)[N], const void* row) {
  static_assert(N == 2 || N == 4, "");
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (N == 4 && !transpose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
  else if constexpr (N == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from)
                 : "memory");
  else if constexpr (!transpose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(from)
                 : "memory");
}

// The nearest tf32, in a float's bits.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t v;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(v) : "f"(x));
  return v;
}

}  // namespace adl

#endif  // ADL_CUDA_ON_CPU

namespace adl {

// ---- launches

// What a kernel must ask for: larger clusters than every GPU has, and more shared memory than 48 KiB, in which its
// arrays of fixed size count too. How large those are the caller does not know, so it asks whenever it adds to them.
inline cudaError_t allow(const void* kernel, size_t shared_bytes, unsigned cluster) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 0)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (cluster > 8 && error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// The error of this launch, not of an earlier one; the caller turns it into an exception, or does without the kernel.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, LaunchOptions options,
                   A&&... arguments) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = options.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (options.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (options.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {options.cluster, 1, 1};
  }
  cudaError_t error = allow(reinterpret_cast<const void*>(kernel), options.shared_bytes, options.cluster);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, static_cast<A&&>(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();  // CUDA keeps it too, and torch would take it for its next launch's
  return error;
}

// ---- how many blocks run at once, on the whole GPU; 0 where the kernel cannot run so

inline int active_clusters(const void* kernel, int size, int threads, size_t shared_bytes) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(size);
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (allow(kernel, shared_bytes, static_cast<unsigned>(size)) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess)
    return count;
  cudaGetLastError();  // as launch() does
  return 0;
}

inline int active_blocks(const void* kernel, int threads, size_t shared_bytes) {
  int device = 0, multiprocessors = 0, each = 0;
  if (allow(kernel, shared_bytes, 1) == cudaSuccess && cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes) == cudaSuccess)
    return multiprocessors * each;
  cudaGetLastError();
  return 0;
}

// ---- words that are their own flags

constexpr uint32_t kAbsent = 0xffffffffu;  // a word that nobody has stored; it is no number

__device__ __forceinline__ bool arrived(uint4 v) {
  return v.x != kAbsent && v.y != kAbsent && v.z != kAbsent && v.w != kAbsent;
}

// ---- conversions

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(BFloat x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_acc(Half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_acc(Acc<T> x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat from_acc<BFloat>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ Half from_acc<Half>(float x) {
  return __float2half_rn(x);
}

// Two numbers side by side in a register, the first in the low half.
__device__ __forceinline__ uint32_t pack(BFloat a, BFloat b) {
  return uint32_t(__bfloat16_as_ushort(a)) | uint32_t(__bfloat16_as_ushort(b)) << 16;
}
__device__ __forceinline__ uint32_t pack(Half a, Half b) {
  return uint32_t(__half_as_ushort(a)) | uint32_t(__half_as_ushort(b)) << 16;
}

}  // namespace adl
