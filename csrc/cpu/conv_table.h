// The convolutions of one instruction set and number type, for the isa_conv*.cpp.
#pragma once

#include "cpu/conv_weight_grad.h"
#include "cpu/kernels.h"
#include "cpu/separable.h"
#include "cpu/table.h"

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
