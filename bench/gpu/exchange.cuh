// Waits that end, and what only the calibration asks of a GPU: bulk copies between blocks, the relaxed barrier.
#pragma once

#include "measure.cuh"

namespace calibrate {

// ---- PTX

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ bool phase_is_over(uint64_t* barrier, unsigned parity) {
  unsigned over = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(over)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#endif
  return over;
}

// As adl::arrivals_wait, but false after a while.
__device__ __forceinline__ bool arrivals_came(uint64_t* barrier, unsigned parity) {
  if (phase_is_over(barrier, parity)) return true;
  const long long start = clock64();
  while (clock64() - start < kPatience)
    if (phase_is_over(barrier, parity)) return true;
  return false;
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

// ---- no PTX

// Of a block that may be a single warp, for which that is faster.
__device__ __forceinline__ void block_barrier() {
  if (blockDim.x > 32)
    __syncthreads();
  else
    __syncwarp();
}

__device__ __forceinline__ uint4 all_words(unsigned v) { return {v, v, v, v}; }
__device__ __forceinline__ bool all_are(uint4 v, unsigned x) { return v.x == x && v.y == x && v.z == x && v.w == x; }

// i = first + k * stride as (row, column) of rows of `columns`, without a division for every k.
struct Place {
  int row, column, rows, columns, row_step, column_step;
  __device__ __forceinline__ Place(int first, int stride, int rows_, int columns_)
      : row(first / columns_), column(first % columns_), rows(rows_), columns(columns_) {
    row_step = stride / columns, column_step = stride % columns;
  }
  __device__ __forceinline__ bool inside() const { return row < rows; }
  __device__ __forceinline__ void next() {
    row += row_step, column += column_step;
    if (column >= columns) column -= columns, ++row;
  }
};

// ---- on the host

// How many clusters the GPU holds at a time; 0 if none.
template <class... A>
int fitting_clusters(void (*kernel)(A...), unsigned P, unsigned threads, size_t shared_bytes) {
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {P, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = P, config.blockDim = threads, config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute, config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, function, &config) != cudaSuccess) clusters = 0;
  cudaGetLastError();
  return clusters;
}

}  // namespace calibrate
