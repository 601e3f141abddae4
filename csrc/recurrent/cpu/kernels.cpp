// The kernels of the instruction set in use.
#include "recurrent/cpu/kernels.h"

namespace adl {

template <class T>
const Kernels<T>& kernels() {
  ADL_RETURN_OF_ISA(T, kernels<T>())
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<BFloat16>& kernels<BFloat16>();

const Kernels<float>* rounding_kernels() {
#if defined(ADL_ISA_AVX512)
  if (isa() == Isa::kAvx512Bf16) return &isa_avx512bf16::rounding();
#endif
  return nullptr;
}

}  // namespace adl
