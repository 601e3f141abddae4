// The kernels of the convolutions as the ops see them.
#pragma once

#include "common/cpu/isa.h"
#include "depthwise/params.h"

namespace adl {

template <class T>
struct ConvKernels {
  Kernel<ConvForward<T>> forward;
  Kernel<ConvInputGrad<T>> input_grad;
  Kernel<ConvWeightGrad<T>> weight_grad;
  Kernel<SeparableForward<T>> separable;
  void (*pack_pointwise)(const T* weight, int64_t N, int64_t K, void* to);  // to [panels, K, 64], see separable.h
};

// For tensors of float, double or BFloat16, of the instruction set in use.
template <class T>
const ConvKernels<T>& conv_kernels();

}  // namespace adl

ADL_FOR_EACH_ISA(template <class T> const ConvKernels<T>& conv_kernels();)
