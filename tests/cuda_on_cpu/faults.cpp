// Kernels that are wrong on purpose: `faults NAME` runs one. tests/cuda/test_emulator.py says what has to notice it.
#include "faults.h"

#include <cstdio>
#include <exception>
#include <vector>

#include "checks.h"
#include "common/cuda/device.cuh"

namespace adl {

// ---- memory

__global__ void global_write(float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i <= n) y[i] = 1;
}
__global__ void global_read(const float* x, float* y) { y[0] = x[threadIdx.x + 1]; }
__global__ void dynamic_overrun(float* y) {
  ADL_DYNAMIC_SHARED(memory);
  float* s = reinterpret_cast<float*>(memory);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
__global__ void array_overrun(float* y) {
  ADL_SHARED(float, s, 64);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
__global__ void misaligned_float4(const float* x, float* y) {
  y[0] = reinterpret_cast<const float4*>(x + 1 + 4 * threadIdx.x)->x;
}
__global__ void overflow(int* y) { y[threadIdx.x] = 2147483647 + static_cast<int>(threadIdx.x); }
__global__ void deep(float* y, int n) {
  volatile char frame[4096];
  frame[n] = 1;
  if (n) deep(y, n - 1);
  y[0] = frame[n];
}
__global__ void unwritten_array(float* y) {
  ADL_SHARED(float, s, 64);
  if (threadIdx.x) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
__global__ void unwritten_dynamic(float* y) {
  ADL_DYNAMIC_SHARED(memory);
  y[0] = reinterpret_cast<float*>(memory)[threadIdx.x];
}
__global__ void large_array(float* y) {
  ADL_SHARED(float, s, 20000);
  y[0] = s[0] = 1;
}
__global__ void arrays_beside(float* y) {
  ADL_SHARED(float, s, 1024);
  y[0] = s[0] = 1;
}

// ---- barriers and warps

__global__ void two_lines(float* y) {
  if (threadIdx.x < 32) {
    y[threadIdx.x] = 1;
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void lanes_gone(float* y) {
  float v = 1;
  if (threadIdx.x % 2) v = __shfl_xor_sync(0xffffffffu, v, 1);
  y[threadIdx.x] = v;
}
__global__ void warp_sum(float* y) { y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1); }
__global__ void divergent(float* y) {
  float v = 1;
  if (threadIdx.x % 2)
    v = __shfl_xor_sync(0xffffffffu, v, 1);
  else
    v = __shfl_xor_sync(0xffffffffu, v, 3);
  y[threadIdx.x] = v;
}
__global__ void outside_mask(float* y) {
  if (threadIdx.x >= 16) y[0] = __shfl_sync(0xffff0000u, 1.0f, 3);
}
__global__ void not_in_mask(float* y) { y[0] = __shfl_sync(0xffff0000u, 1.0f, 20); }
__global__ void deadlock(float* y) {
  if (threadIdx.x % 32 == 0)
    __syncwarp();
  else
    __syncthreads();
  y[0] = 1;
}
__global__ void livelock(unsigned* flag) { ADL_SPIN_WHILE(load_acquire(flag) == 0); }
__global__ void grid_wide(float*) { grid_barrier(); }
__global__ void grid_left(float*) {
  if (blockIdx.x == 0) grid_barrier();
}
__global__ void trap(float*) { __trap(); }

// ---- asynchronous copies, matrices, clusters

__global__ void misaligned_copy(const float* x) {
  ADL_DYNAMIC_SHARED(memory);
  copy_async(memory + 4 * threadIdx.x, x);
  copy_async_commit();
  copy_async_wait<0>();
}
__global__ void unfinished_copy(const float* x) {
  ADL_DYNAMIC_SHARED(memory);
  copy_async(memory, x);
  copy_async_commit();
}
__global__ void early_read(const float* x, float* y) {
  ADL_DYNAMIC_SHARED(memory);
  copy_async(memory, x);
  copy_async_commit();
  y[0] = reinterpret_cast<float*>(memory)[0];
  copy_async_wait<0>();
}
__global__ void misaligned_matrix(uint32_t* y) {
  ADL_DYNAMIC_SHARED(memory);
  uint32_t d[2];
  load_matrices<2, false>(d, memory + 4 * threadIdx.x);
  y[0] = d[0];
}
__global__ void no_such_block(float* y) {
  ADL_SHARED(float, s, 1);
  y[0] = shared_of(s, 2)[0];
}
__global__ void block_ended(float* y) {
  ADL_SHARED(float, s, 1);
  s[0] = 1;
  cluster_barrier();
  y[blockIdx.x] = shared_of(s, 1 - cluster_rank())[0];
}
__global__ void block_not_started(float* y) {
  ADL_DYNAMIC_SHARED(memory);
  float* s = reinterpret_cast<float*>(memory);
  shared_of(s, 1 - cluster_rank())[0] = 1;
  cluster_barrier();
  y[blockIdx.x] = s[0];
}

// ---- races

__global__ void same_place(float* y) { y[threadIdx.x / 2] = static_cast<float>(threadIdx.x); }
__global__ void lost_update(float* y) { y[0] += 1; }
__global__ void next_block(float* y) {
  if (threadIdx.x == 0) y[blockIdx.x + 1] = y[blockIdx.x] + 1;
}
__global__ void shuffle_as_barrier(float* y) {
  ADL_SHARED(float, s, 32);
  s[threadIdx.x] = 1;
  const float v = __shfl_sync(0xffffffffu, 1.0f, 0);
  y[threadIdx.x] = v + s[31 - threadIdx.x];
}
template <bool release, bool acquire>
__global__ void hand_over(float* y, unsigned* flag) {
  if (blockIdx.x == 0) {
    y[0] = 1;
    release ? add_release(flag, 1u) : atomicAdd(flag, 1u);
  } else {
    ADL_SPIN_WHILE((acquire ? load_acquire(flag) : atomicAdd(flag, 0u)) == 0);
    y[1] = y[0];
  }
}

// ---- nothing wrong

__global__ void threads_return(float* y) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}
__global__ void atomic_sum(float* y) { atomicAdd(y, 1.0f); }

}  // namespace adl

int main(int argc, char** argv) {
  using namespace adl;
  std::vector<float> x(256, 1.0f), y(64, 0.0f);
  std::vector<int> whole(64);
  std::vector<uint32_t> bits(64);
  alignas(16) float aligned[4] = {1, 1, 1, 1};
  unsigned flag = 0;
  const cudaStream_t s = nullptr;
  const LaunchOptions shared{256, false, 1}, together{0, true, 1}, pairs{256, false, 2};
  // As launch() does, without asking for what has to be asked for.
  const auto unasked = [&](size_t shared_bytes) {
    cudaLaunchConfig_t config{};
    config.gridDim = config.blockDim = 1;
    config.dynamicSmemBytes = shared_bytes;
    return cudaLaunchKernelEx(&config, arrays_beside, y.data());
  };
  Faults faults = {
      {"global_write", [&] { return launch(global_write, 1, 128, s, {}, y.data(), 64); }},
      {"global_read", [&] { return launch(global_read, 1, 256, s, {}, x.data(), y.data()); }},
      {"dynamic_overrun", [&] { return launch(dynamic_overrun, 1, 64, s, shared, y.data()); }},
      {"array_overrun", [&] { return launch(array_overrun, 1, 64, s, {}, y.data()); }},
      {"misaligned_float4", [&] { return launch(misaligned_float4, 1, 8, s, {}, x.data(), y.data()); }},
      {"overflow", [&] { return launch(overflow, 1, 64, s, {}, whole.data()); }},
      {"deep", [&] { return launch(deep, 1, 1, s, {}, y.data(), 100); }},
      {"unwritten_array", [&] { return launch(unwritten_array, 1, 64, s, {}, y.data()); }},
      {"unwritten_dynamic", [&] { return launch(unwritten_dynamic, 1, 1, s, shared, y.data()); }},
      {"large_array", [&] { return launch(large_array, 1, 1, s, {}, y.data()); }},
      {"arrays_beside", [&] { return unasked(48 * 1024); }},
      {"shared_not_asked_for", [&] { return unasked(48 * 1024 + 1); }},
      {"error_left", [&] { return unasked(48 * 1024 + 1), launch(threads_return, 1, 64, s, {}, y.data()); }},
      {"two_lines", [&] { return launch(two_lines, 1, 64, s, {}, y.data()); }},
      {"lanes_gone", [&] { return launch(lanes_gone, 1, 64, s, {}, y.data()); }},
      {"partial_warp", [&] { return launch(warp_sum, 1, 48, s, {}, y.data()); }},
      {"divergent", [&] { return launch(divergent, 1, 64, s, {}, y.data()); }},
      {"outside_mask", [&] { return launch(outside_mask, 1, 32, s, {}, y.data()); }},
      {"not_in_mask", [&] { return launch(not_in_mask, 1, 32, s, {}, y.data()); }},
      {"deadlock", [&] { return launch(deadlock, 1, 64, s, {}, y.data()); }},
      {"livelock", [&] { return launch(livelock, 1, 64, s, {}, &flag); }},
      {"grid_barrier", [&] { return launch(grid_wide, 4, 32, s, {}, y.data()); }},
      {"grid_left", [&] { return launch(grid_left, 4, 32, s, together, y.data()); }},
      {"trap", [&] { return launch(trap, 1, 1, s, {}, y.data()); }},
      {"large_block", [&] { return launch(warp_sum, 1, 2048, s, {}, y.data()); }},
      {"large_shared", [&] { return launch(warp_sum, 1, 32, s, {300 * 1024, false, 1}, y.data()); }},
      {"large_cooperative", [&] { return launch(grid_wide, 1000, 1024, s, together, y.data()); }},
      {"odd_cluster", [&] { return launch(warp_sum, 3, 32, s, pairs, y.data()); }},
      {"misaligned_copy", [&] { return launch(misaligned_copy, 1, 4, s, shared, aligned); }},
      {"unfinished_copy", [&] { return launch(unfinished_copy, 1, 1, s, shared, aligned); }},
      {"early_read", [&] { return launch(early_read, 1, 1, s, shared, aligned, y.data()); }},
      {"misaligned_matrix", [&] { return launch(misaligned_matrix, 1, 32, s, shared, bits.data()); }},
      {"no_such_block", [&] { return launch(no_such_block, 2, 1, s, pairs, y.data()); }},
      {"block_ended", [&] { return launch(block_ended, 2, 32, s, pairs, y.data()); }},
      {"block_not_started", [&] { return launch(block_not_started, 2, 1, s, pairs, y.data()); }},
      {"same_place", [&] { return launch(same_place, 1, 64, s, {}, y.data()); }},
      {"lost_update", [&] { return launch(lost_update, 2, 64, s, {}, y.data()); }},
      {"next_block", [&] { return launch(next_block, 8, 32, s, {}, y.data()); }},
      {"shuffle_as_barrier", [&] { return launch(shuffle_as_barrier, 1, 32, s, {}, y.data()); }},
      {"no_release", [&] { return launch(hand_over<false, true>, 2, 1, s, together, y.data(), &flag); }},
      {"no_acquire", [&] { return launch(hand_over<true, false>, 2, 1, s, together, y.data(), &flag); }},
      {"release_acquire", [&] { return launch(hand_over<true, true>, 2, 1, s, together, y.data(), &flag); }},
      {"threads_return", [&] { return launch(threads_return, 1, 64, s, {}, y.data()); }},
      {"atomic_sum", [&] { return launch(atomic_sum, 2, 64, s, {}, y.data()); }},
  };
  faults.merge(store_faults());
  try {
    check(faults.at(argc > 1 ? argv[1] : "")());
  } catch (const std::exception& error) {
    printf("error: %s\n", error.what());
    return 2;
  }
  for (float v : y)
    if (v != v) {
      printf("NaN\n");
      return 1;
    }
  printf("done\n");
  return 0;
}
