// Number types of the CUDA code as the host sees them. No torch here.
#pragma once

#include <cstddef>

// The tests run the kernels on the CPU, by a header of the same names.
#ifdef ADL_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace adl {

using BFloat = __nv_bfloat16;
using Half = __half;

// What states, sums and pre-activations are kept in.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulator<T>::type;

// Of launch() in device.cuh.
struct LaunchOptions {
  size_t shared_bytes = 0;
  bool cooperative = false;
  unsigned cluster = 1;  // blocks per cluster
};

}  // namespace adl
