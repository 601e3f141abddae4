// The convolutions of float and double; compiled once per instruction set.
#include "depthwise/cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const ConvKernels<float>& conv_kernels<float>() {
  static constexpr ConvKernels<float> kTable = conv_table<float>();
  return kTable;
}

template <>
const ConvKernels<double>& conv_kernels<double>() {
  static constexpr ConvKernels<double> kTable = conv_table<double>();
  return kTable;
}

}  // namespace adl::ADL_ISA_NAMESPACE
