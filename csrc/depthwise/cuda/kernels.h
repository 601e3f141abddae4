// Launches the depthwise convolutions: plain structs and a stream.
#pragma once

#include "common/cuda/launch.h"
#include "common/cuda/types.h"
#include "depthwise/params.h"

namespace adl::cuda {

template <class T>
cudaError_t convolve(const ConvForward<T>&, const Gpu&, cudaStream_t);

template <class T>
cudaError_t convolve(const ConvInputGrad<T>&, const Gpu&, cudaStream_t);

// sums: so many numbers as conv_sums() says, for the parts of the sums that blocks make.
template <class T>
cudaError_t convolve(const ConvWeightGrad<T>&, Acc<T>* sums, const Gpu&, cudaStream_t);
template <class T>
int64_t conv_sums(const ConvWeightGrad<T>&, const Gpu&);

template <class T>
cudaError_t separable(const SeparableForward<T>&, const Gpu&, cudaStream_t);

}  // namespace adl::cuda
