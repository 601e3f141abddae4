// Memory of the CPU that nobody has written yet.
#pragma once

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <cstring>

namespace adl {

// at::empty without its way through the dispatcher. Like it, this is NaN where torch.utils.deterministic asks for that:
// a kernel that reads what nobody wrote then shows.
inline at::Tensor host_memory(at::IntArrayRef sizes, at::ScalarType type) {
  const at::Tensor memory = at::detail::empty_cpu(sizes, type, /*pin_memory=*/false, std::nullopt);
  const at::Context& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory() && memory.nbytes() > 0)
    std::memset(memory.mutable_data_ptr(), 0xff, memory.nbytes());
  return memory;
}

}  // namespace adl
