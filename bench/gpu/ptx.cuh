// What only the calibration asks of a GPU: its clocks, bulk copies between blocks, the relaxed barrier.
#pragma once

#include "common/cuda/device.cuh"

#ifdef ADL_CUDA_ON_CPU
#include "calibration_on_cpu.h"
#else

namespace calibrate {

__device__ __forceinline__ long long cycles_now() { return clock64(); }

__device__ __forceinline__ long long nanoseconds_now() {
  long long ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
  return ns;
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// What this thread has written to shared memory is seen by bulk copies that come after the next barrier of the block.
__device__ __forceinline__ void publish_to_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// `bytes` from shared memory to the place `to` in that of block `rank`, and to the count of its barrier.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* barrier,
                                          unsigned rank) {
#if __CUDA_ARCH__ >= 900
  unsigned there, counter;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counter) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(there),
      "r"(shared_address(from)), "r"(bytes), "r"(counter)
      : "memory");
#endif
}

// Orders no memory.
__device__ __forceinline__ void relaxed_cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void store_relaxed(uint4* p, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

}  // namespace calibrate

#endif  // ADL_CUDA_ON_CPU
