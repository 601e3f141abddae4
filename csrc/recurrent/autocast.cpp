// Under autocast every cell runs in the autocast dtype, on every device type.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "recurrent/autograd.h"

namespace adl {
namespace {

void implement_autocast(torch::Library& m, c10::DeviceType device) {
  for (const CellFacts& cell : kCellFacts)
    m.impl(cell.name, [&cell, device](const Tensor& x, at::TensorList hx,
                                      at::TensorList weights ADL_LAYER_OPTIONS(ADL_OPTION_PARAMETER)) {
      c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(device));
      const auto type = at::autocast::get_autocast_dtype(device);
      return ops_of(cell).only.call(
          at::autocast::cached_cast(type, x, device), at::autocast::cached_cast(type, hx, device),
          at::autocast::cached_cast(type, weights, device) ADL_LAYER_OPTIONS(ADL_OPTION_ARGUMENT));
    });
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, AutocastCPU, m) { adl::implement_autocast(m, c10::DeviceType::CPU); }
TORCH_LIBRARY_IMPL(adl_kernels, AutocastCUDA, m) { adl::implement_autocast(m, c10::DeviceType::CUDA); }
