// Depthwise convolutions on a GPU.
#include <torch/library.h>

#include "common/cuda_device.h"
#include "depthwise/cuda/kernels.h"
#include "depthwise/separable.h"

namespace adl {
namespace {

struct GpuConv {
  static at::ScalarType compute_type(at::ScalarType type) { return type; }

  template <class F>
  static void with_number(at::ScalarType type, F f) {
    with_gpu_number(type, f);
  }

  template <class T>
  static void run(const Tensor& on, const ConvForward<T>& f) {
    const Device device(on);
    check_launch("depthwise_conv", cuda::convolve(f, device.facts(), device.stream()));
  }
  template <class T>
  static void run(const Tensor& on, const ConvInputGrad<T>& g) {
    const Device device(on);
    check_launch("depthwise_conv_input_grad", cuda::convolve(g, device.facts(), device.stream()));
  }
  template <class T>
  static void run(const Tensor& on, const ConvWeightGrad<T>& g) {
    const Device device(on);
    const Tensor sums = at::empty({cuda::conv_sums(g, device.facts())},
                                  on.options().dtype(type_of<Acc<T>>()).memory_format(at::MemoryFormat::Contiguous));
    check_launch("depthwise_conv_weight_grad",
                 cuda::convolve(g, pointer<Acc<T>>(sums), device.facts(), device.stream()));
  }

  template <class T>
  static void run(const Tensor& on, const SeparableForward<T>& s) {
    const Device device(on);
    check_launch("separable_conv", cuda::separable(s, device.facts(), device.stream()));
  }

  // The kernels read the weight as it is.
  static const void* packed_data(const char*, const Tensor&, int64_t, int64_t) { return nullptr; }
};

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, ADL_GPU_KEY, m) {
  using Ops = adl::DepthwiseOps<adl::GpuConv>;
  m.impl("depthwise_conv", Ops::forward);
  m.impl("depthwise_conv_input_grad", Ops::input_grad);
  m.impl("depthwise_conv_weight_grad", Ops::weight_grad);
  m.impl("separable_conv", adl::separable_conv<adl::GpuConv>);
  m.impl("pack_pointwise", [](const at::Tensor& weight) { return weight.clone(); });
}
