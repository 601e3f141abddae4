// Under autocast every cell runs in the autocast dtype, on every device type.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "recurrent/cells/cells.h"
#include "recurrent/options.h"

namespace adl {
namespace {

template <class Cell, c10::DeviceType device>
struct Autocast {
  static Tensors call(const Tensor& x, at::TensorList hx, at::TensorList weights, const Asked& asked) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow((std::string("adl_kernels::") + Cell::kName).c_str(), "")
                               .template typed<Signature::Forward>();
    c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(device));
    const auto type = at::autocast::get_autocast_dtype(device);
    return spread(asked, [&](const auto&... extras) {
      return op.call(at::autocast::cached_cast(type, x, device), at::autocast::cached_cast(type, hx, device),
                     at::autocast::cached_cast(type, weights, device), extras...);
    });
  }
};

}  // namespace
}  // namespace adl

#define ADL_AUTOCAST(Cell, device) \
  m.impl(adl::Cell::kName, adl::Signature::forward<adl::Autocast<adl::Cell, c10::DeviceType::device>>);
#define ADL_CPU(Cell) ADL_AUTOCAST(Cell, CPU)
#define ADL_CUDA(Cell) ADL_AUTOCAST(Cell, CUDA)
TORCH_LIBRARY_IMPL(adl_kernels, AutocastCPU, m){ADL_CELLS(ADL_CPU)} TORCH_LIBRARY_IMPL(adl_kernels, AutocastCUDA, m) {
  ADL_CELLS(ADL_CUDA)
}
#undef ADL_CPU
#undef ADL_CUDA
#undef ADL_AUTOCAST
