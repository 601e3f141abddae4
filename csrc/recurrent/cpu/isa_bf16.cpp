// The kernels that multiply in bfloat16; compiled once per instruction set.
#include "recurrent/cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const Kernels<BFloat16>& kernels<BFloat16>() {
  static constexpr Kernels<BFloat16> kTable = table<BFloat16, BFloat16>();
  return kTable;
}

}  // namespace adl::ADL_ISA_NAMESPACE
