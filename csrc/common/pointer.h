// Where the numbers of a tensor lie.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace adl {

// The tensor, which torch's own copies would not survive without memory.
inline const at::Tensor& with_memory(const at::Tensor& t) {
  TORCH_CHECK(t.numel() == 0 || t.const_data_ptr(),
              "expected a tensor with numbers in memory, but its storage is empty: ",
              "it was freed (resize_(0)), or the tensor only stands for another");
  return t;
}

// Null for a tensor without elements: what is not wanted is passed as an empty tensor.
template <class T>
T* pointer(const at::Tensor& t) {
  return t.defined() && t.numel() ? static_cast<T*>(with_memory(t).mutable_data_ptr()) : nullptr;
}

}  // namespace adl
