// The convolutions of BFloat16; compiled once per instruction set.
#include "depthwise/cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const ConvKernels<BFloat16>& conv_kernels<BFloat16>() {
  static constexpr ConvKernels<BFloat16> kTable = conv_table<BFloat16>();
  return kTable;
}

}  // namespace adl::ADL_ISA_NAMESPACE
