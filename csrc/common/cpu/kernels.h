// What every instruction set offers, and the choice among them at run time.
#pragma once

#include "common/cpu/number.h"
#include "depthwise/params.h"
#include "recurrent/cells/cells.h"
#include "recurrent/params.h"

namespace adl {

template <class T>
struct CellKernels {
  int64_t (*forward_scratch)(const Forward<T>&);  // bytes
  void (*forward)(const Forward<T>&, void* scratch);
  int64_t (*backward_scratch)(const Backward<T>&);  // bytes
  void (*backward)(const Backward<T>&, void* scratch);
};

template <class T>
struct Kernels {
  CellKernels<T> cells[kCells];
  // Does independent fused multiply-adds; returns how many floating-point operations that were.
  double (*multiply_add)(int64_t rounds);
};

template <class Params>
struct Kernel {
  int64_t (*scratch)(const Params&);  // bytes
  void (*run)(const Params&, void* scratch);
};

template <class T>
struct ConvKernels {
  Kernel<ConvForward<T>> forward;
  Kernel<ConvInputGrad<T>> input_grad;
  Kernel<ConvWeightGrad<T>> weight_grad;
  Kernel<SeparableForward<T>> separable;
  void (*pack_pointwise)(const T* weight, int64_t N, int64_t K, void* to);  // to [panels, K, 64], see separable.h
};

// For tensors of float, double or BFloat16, of the instruction set chosen.
template <class T>
const Kernels<T>& kernels();
template <class T>
const ConvKernels<T>& conv_kernels();

// For tensors of float whose products round their operands to bfloat16; null where that would not be faster.
const Kernels<float>* rounding_kernels();

const char* instruction_set();  // "default", "avx2", "avx512" or "avx512bf16"

// to[0 .. 4 count) = whether each word of Philox blocks block.. of a seed and stream is below the threshold.
void draw(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, uint64_t threshold, uint8_t* to);

// Measured ceilings: multiply-adds in float and in bfloat16, reading a buffer of so many bytes per thread.
double fma_gflops(int threads, double seconds);
double bf16_gflops(int threads, double seconds);
double read_gbytes(int64_t bytes, int threads, double seconds);

#define ADL_DECLARE(isa)                \
  namespace isa {                       \
  template <class T>                    \
  const Kernels<T>& kernels();          \
  template <class T>                    \
  const ConvKernels<T>& conv_kernels(); \
  const Kernels<float>& rounding();     \
  double read(const void*, int64_t);    \
  decltype(adl::draw) draw;             \
  }
ADL_DECLARE(isa_default)
ADL_DECLARE(isa_avx2)
ADL_DECLARE(isa_avx512)
ADL_DECLARE(isa_avx512bf16)
#undef ADL_DECLARE

}  // namespace adl
