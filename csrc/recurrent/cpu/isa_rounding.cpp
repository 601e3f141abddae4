// The kernels on float tensors that multiply in bfloat16; compiled for the set that does it in one instruction.
#include "recurrent/cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

const Kernels<float>& rounding() {
  static constexpr Kernels<float> kTable = table<float, BFloat16>();
  return kTable;
}

}  // namespace adl::ADL_ISA_NAMESPACE
