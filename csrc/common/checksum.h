// A checksum of tensors on the CPU, at the speed at which memory is read: whether their numbers are those of before,
// which no version counter knows (.data, shared memory, views of NumPy).
#pragma once

#include <ATen/core/Tensor.h>

namespace adl {

// Of the numbers, their type, the sizes and strides. A change of one number is always noticed, any other with a
// probability of 1 - 2^-64.
uint64_t checksum_of(const at::Tensor& t);
uint64_t checksum_of(const std::vector<at::Tensor>& tensors);

}  // namespace adl
