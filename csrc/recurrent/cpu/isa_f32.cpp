// The float kernels; compiled once per instruction set.
#include "recurrent/cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const Kernels<float>& kernels<float>() {
  static constexpr Kernels<float> kTable = table<float, float>();
  return kTable;
}

}  // namespace adl::ADL_ISA_NAMESPACE
