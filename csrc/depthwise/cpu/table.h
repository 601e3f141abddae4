// The convolutions of one instruction set and number type, for the isa_*.cpp.
#pragma once

#include "depthwise/cpu/kernels.h"
#include "depthwise/cpu/separable.h"
#include "depthwise/cpu/weight_grad.h"

namespace adl {
namespace {

template <class Work, class Params>
constexpr Kernel<Params> kernel() {
  return {scratch_of<Work, Params>, run<Work, Params>};
}

template <class T>
constexpr ConvKernels<T> conv_table() {
  return {kernel<Correlation<T>, ConvForward<T>>(), kernel<Correlation<T>, ConvInputGrad<T>>(),
          kernel<WeightGradient<T>, ConvWeightGrad<T>>(), kernel<Separable<T>, SeparableForward<T>>(),
          pack_pointwise<T>};
}

}  // namespace
}  // namespace adl
