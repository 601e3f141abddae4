// The kernels of the instruction set in use.
#include "depthwise/cpu/kernels.h"

namespace adl {

template <class T>
const ConvKernels<T>& conv_kernels() {
  ADL_RETURN_OF_ISA(T, conv_kernels<T>())
}

template const ConvKernels<float>& conv_kernels<float>();
template const ConvKernels<double>& conv_kernels<double>();
template const ConvKernels<BFloat16>& conv_kernels<BFloat16>();

}  // namespace adl
