// The double kernels; compiled once per instruction set.
#include "recurrent/cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const Kernels<double>& kernels<double>() {
  static constexpr Kernels<double> kTable = table<double, double>();
  return kTable;
}

}  // namespace adl::ADL_ISA_NAMESPACE
