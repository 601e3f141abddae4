// CUDA C++ for g++: the names that kernels and launchers use, over emulator.h.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "emulator.h"

#undef __global__
#undef __device__
#undef __host__
#undef __launch_bounds__
#undef __forceinline__
#undef __align__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __grid_constant__
// These do not compile: shared memory goes through ADL_SHARED and ADL_DYNAMIC_SHARED.
#undef __shared__
#undef __constant__

#define ADL_EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

constexpr int warpSize = 32;

// ---- barriers

inline void __syncthreads(ADL_EMULATOR_HERE) { emulator::block_barrier({"__syncthreads", file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, ADL_EMULATOR_HERE) {
  emulator::warp_barrier({"__syncwarp", file, line}, mask);
}
inline void __nanosleep(unsigned, ADL_EMULATOR_HERE) { emulator::spin({"__nanosleep", file, line}); }
inline void __threadfence() { emulator::maybe_preempt(); }
inline void __threadfence_block() { emulator::maybe_preempt(); }
[[noreturn]] inline void __trap() { emulator::fail("__trap"); }

// ---- warps

namespace emulator {

inline int segment(int width) { return static_cast<int>(self->lane) & ~(width - 1); }
template <class T>
T shuffle(Site site, unsigned mask, const T& value, int source) {
  T result;
  shuffle(site, mask, &value, sizeof(T), source, &result);
  return result;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ADL_EMULATOR_HERE) {
  const int from = emulator::segment(width) + (source & (width - 1));
  return emulator::shuffle({"__shfl_sync", file, line}, mask, value, from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, ADL_EMULATOR_HERE) {
  const int me = static_cast<int>(emulator::self->lane), from = me ^ lanes;
  const bool inside = from < emulator::segment(width) + width;
  return emulator::shuffle({"__shfl_xor_sync", file, line}, mask, value, inside ? from : me);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ADL_EMULATOR_HERE) {
  const int me = static_cast<int>(emulator::self->lane), from = me + static_cast<int>(delta);
  const bool inside = from < emulator::segment(width) + width;
  return emulator::shuffle({"__shfl_down_sync", file, line}, mask, value, inside ? from : me);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ADL_EMULATOR_HERE) {
  const int me = static_cast<int>(emulator::self->lane), from = me - static_cast<int>(delta);
  const bool inside = from >= emulator::segment(width);
  return emulator::shuffle({"__shfl_up_sync", file, line}, mask, value, inside ? from : me);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, ADL_EMULATOR_HERE) {
  return emulator::ballot({"__ballot_sync", file, line}, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, ADL_EMULATOR_HERE) {
  return emulator::ballot({"__any_sync", file, line}, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ADL_EMULATOR_HERE) {
  return emulator::ballot({"__all_sync", file, line}, mask, predicate != 0) == mask;
}

#undef ADL_EMULATOR_HERE

// ---- atomics: relaxed, as CUDA's are

namespace emulator {

// There is one operating system thread; the builtins tell the race detector that it is an atomic.
template <class T, class F>
T update(T* p, F f) {
  maybe_preempt();
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  after = f(before);
  __atomic_store(p, &after, __ATOMIC_RELAXED);
  return before;
}

}  // namespace emulator

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [v](T x) { return static_cast<T>(x + v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [v](T x) { return std::max(x, v); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [v](T x) { return std::min(x, v); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return emulator::update(p, [expected, v](T x) { return x == expected ? v : x; });
}

// ---- loads and stores with cache hints

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}

// ---- arithmetic

using std::max;
using std::min;

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float a) { return a < 0 ? 0.0f : a > 1 ? 1.0f : a; }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// ---- the runtime, as far as launchers use it; memory is the host's

namespace emulator {

// An error is returned, and kept until someone asks for it.
inline cudaError_t returned(int error) {
  if (error != cudaSuccess) last_error() = error;
  return static_cast<cudaError_t>(error);
}

}  // namespace emulator

inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorCooperativeLaunchTooLarge) return "too many blocks in cooperative launch";
  if (error == cudaErrorInvalidValue) return "invalid argument";
  if (error == cudaErrorInvalidConfiguration) return "invalid configuration argument";
  return error == cudaSuccess ? "no error" : "an error of the emulated GPU";
}
inline cudaError_t cudaGetLastError() { return static_cast<cudaError_t>(std::exchange(emulator::last_error(), 0)); }
inline cudaError_t cudaPeekAtLastError() { return static_cast<cudaError_t>(emulator::last_error()); }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  if (posix_memalign(p, 256, bytes)) return emulator::returned(cudaErrorMemoryAllocation);
  memset(*p, 0xFF, bytes);  // NaN until written
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(p), bytes);
}
inline cudaError_t cudaFree(void* p) {
  free(p);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  memset(p, value, bytes);
  return cudaSuccess;
}

// An H100 as far as the limits go.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = static_cast<int>(emulator::multiprocessors());
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = emulator::kStaticSharedBytes;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulator::kSharedBytes;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulator::kSharedBytes + 1024;
      return cudaSuccess;
    default:
      return emulator::returned(cudaErrorNotSupported);
  }
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || static_cast<size_t>(value) > emulator::kSharedBytes)
        return emulator::returned(cudaErrorInvalidValue);
      emulator::allowed(kernel).dynamic_bytes = static_cast<size_t>(value);
      return cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      emulator::allowed(kernel).large_clusters = value;
      return cudaSuccess;
    default:
      return emulator::returned(cudaErrorNotSupported);
  }
}
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared) {
  *blocks = static_cast<int>(emulator::blocks_per_multiprocessor(static_cast<unsigned>(threads), shared));
  return cudaSuccess;
}

namespace emulator {

inline LaunchShape shape_of(const cudaLaunchConfig_t& config) {
  LaunchShape shape{config.gridDim, config.blockDim, config.dynamicSmemBytes, false, 1};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) shape.cooperative = attribute.val.cooperative;
    if (attribute.id == cudaLaunchAttributeClusterDimension) shape.cluster = attribute.val.clusterDim.x;
  }
  return shape;
}

}  // namespace emulator

inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  const emulator::LaunchShape shape = emulator::shape_of(*config);
  *clusters = static_cast<int>(emulator::active_clusters(shape.cluster, shape.block.x, shape.shared_bytes));
  return *clusters ? cudaSuccess : emulator::returned(cudaErrorInvalidValue);
}

// Throws where a kernel did something wrong.
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  return emulator::returned(
      emulator::run(reinterpret_cast<const void*>(kernel), emulator::shape_of(*config), [&] { kernel(arguments...); }));
}
