// The float kernels; compiled once per instruction set.
#include "cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const Kernels<float>& kernels<float>() {
  static constexpr Kernels<float> kTable = table<float>();
  return kTable;
}

}  // namespace adl::ADL_ISA_NAMESPACE
