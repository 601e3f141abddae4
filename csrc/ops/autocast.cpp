// Under autocast every cell runs in the autocast dtype, on every device type.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "cells/cells.h"

namespace adl {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

template <class Cell, c10::DeviceType device>
Tensors autocast(const Tensor& x, at::TensorList hx, at::TensorList weights, const std::optional<Tensor>& batch_sizes) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow((std::string("adl_kernels::") + Cell::kName).c_str(), "")
          .template typed<Tensors(const Tensor&, at::TensorList, at::TensorList, const std::optional<Tensor>&)>();
  c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto type = at::autocast::get_autocast_dtype(device);
  return op.call(at::autocast::cached_cast(type, x, device), at::autocast::cached_cast(type, hx, device),
                 at::autocast::cached_cast(type, weights, device), batch_sizes);
}

}  // namespace
}  // namespace adl

#define ADL_CPU(Cell) m.impl(adl::Cell::kName, adl::autocast<adl::Cell, c10::DeviceType::CPU>);
#define ADL_CUDA(Cell) m.impl(adl::Cell::kName, adl::autocast<adl::Cell, c10::DeviceType::CUDA>);
TORCH_LIBRARY_IMPL(adl_kernels, AutocastCPU, m){ADL_CELLS(ADL_CPU)} TORCH_LIBRARY_IMPL(adl_kernels, AutocastCUDA, m) {
  ADL_CELLS(ADL_CUDA)
}
#undef ADL_CPU
#undef ADL_CUDA
