// Depthwise convolutions: the schemas, and the ops on the CPU.
//
//   x         [B, C, spatial..], one to three dimensions; results lie in memory as it does, channels first or last
//             (last too where the weight was put so)
//   weight    [M C, 1, kernel..]; channel o of the output sees channel o / M of x
//   padding   zeros before x in every dimension, then those after it in every dimension
//   seq_idx   int [B, length]: ids of documents that lie one after the other in each row; each is convolved alone
//   activation   of the sum and its bias, one of kActivationNames in csrc/depthwise/params.h; then residual is added
//
//   depthwise_conv              y
//   depthwise_conv_input_grad   dx, from dy
//   depthwise_conv_weight_grad  dweight, and dbias if asked for, else an empty tensor
//   separable_conv              the depthwise convolution and the 1x1 convolution of its result, for inference;
//                               packed: what pack_pointwise makes of pw_weight, or None
#include "depthwise/ops.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <thread>

#include "common/fork.h"
#include "common/host_memory.h"
#include "depthwise/cpu/kernels.h"
#include "depthwise/separable.h"

TORCH_LIBRARY_FRAGMENT(adl_kernels, m) {
  m.def(
      "depthwise_conv(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "Tensor? seq_idx=None, str activation='none', Tensor? residual=None) -> Tensor");
  m.def(
      "depthwise_conv_input_grad(Tensor grad, Tensor weight, SymInt[] input_size, int[] stride, int[] padding, "
      "int[] dilation, Tensor? seq_idx=None) -> Tensor");
  m.def(
      "depthwise_conv_weight_grad(Tensor grad, Tensor x, SymInt[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, Tensor? seq_idx=None, bool bias=False) -> (Tensor, Tensor)");
  m.def(
      "separable_conv(Tensor x, Tensor dw_weight, Tensor? dw_bias, Tensor pw_weight, Tensor? pw_bias, Tensor? packed, "
      "int[] stride, int[] padding, int[] dilation, str dw_activation='none', str activation='none', "
      "Tensor? residual=None) -> Tensor");
  m.def("pack_pointwise(Tensor weight) -> Tensor");
}

namespace adl {
namespace {

constexpr int64_t kPanelColumns = 64;

struct CpuEngine {
  static at::ScalarType compute_type(at::ScalarType type) { return type == at::kHalf ? at::kFloat : type; }

  template <class F>
  static void with_number(at::ScalarType type, F f) {
    if (type == at::kDouble) return f(static_cast<double*>(nullptr));
    if (type == at::kFloat) return f(static_cast<float*>(nullptr));
    f(static_cast<BFloat16*>(nullptr));
  }

  // Where oneDNN, which torch calls, was measured to be faster with AVX-512: small kernels on channels that lie side by
  // side, or on small planes, and much data. `python -m bench conv` shows both.
  static bool prefers_torch(const Conv& c, at::ScalarType type, bool is_gradient) {
    static const bool measured = std::string_view(instruction_set()).starts_with("avx512");
    if (!measured || !at::globalContext().userEnabledMkldnn() || c.C == 1 || c.multiplier > 1) return false;
    bool plain = c.in[1] > 1 && (type == at::kFloat || type == at::kBFloat16), dilated = false;
    for (int k = 0; k < kSpatial; ++k) {
      dilated = dilated || c.dilation[k] > 1;
      plain =
          plain && (k == 0 || c.kernel[k] > 1) && c.dilation[k] <= 2 && c.pad[k] <= c.dilation[k] * (c.kernel[k] / 2);
    }
    if (!plain) return false;
    if (dilated || c.kernel[0] > 1) return c.channels_last && !is_gradient && c.taps() <= 27;
    const bool is_float = type == at::kFloat, strided = c.stride[1] > 1 || c.stride[2] > 1;
    const bool much = c.B * c.C * c.in_size() >= 750000, in_place = c.channels_last && c.C <= 64 && c.C % 16 == 0;
    if (!c.channels_last && is_float && much && c.out_size() <= 400) return c.taps() <= 49;
    if (is_gradient && strided) return is_float && c.taps() <= 9;
    if (!c.channels_last || c.taps() > 25) return false;
    if (is_float) return !is_gradient && much && (strided || !in_place) && (c.taps() <= 9 || strided);
    return (c.taps() <= 9 && (!is_gradient || much)) || (!is_gradient && much);
  }

  template <class T>
  static void run(const Tensor&, ConvForward<T> p) {
    call(conv_kernels<T>().forward, p.conv, p);
  }
  template <class T>
  static void run(const Tensor&, ConvInputGrad<T> p) {
    call(conv_kernels<T>().input_grad, p.conv, p);
  }
  template <class T>
  static void run(const Tensor&, ConvWeightGrad<T> p) {
    call(conv_kernels<T>().weight_grad, p.conv, p);
  }
  template <class T>
  static void run(const Tensor&, SeparableForward<T> p) {
    call(conv_kernels<T>().separable, p.depthwise.conv, p);
  }

  static std::vector<int64_t> packed_sizes(int64_t N, int64_t K, at::ScalarType type) {
    return {(N + kPanelColumns - 1) / kPanelColumns, type == at::kBFloat16 ? K + K % 2 : K, kPanelColumns};
  }
  static const void* packed_data(const char* op, const Tensor& packed, int64_t N, int64_t K) {
    TORCH_CHECK(packed.is_cpu() && packed.is_contiguous() && packed.sizes() == packed_sizes(N, K, packed.scalar_type()),
                op, ": packed must be what pack_pointwise makes of pw_weight, ",
                packed_sizes(N, K, packed.scalar_type()), ", got ", packed.sizes());
    return packed.const_data_ptr();
  }

 private:
  template <class Params>
  static void call(const Kernel<Params>& kernel, Conv& conv, const Params& p) {
    conv.threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    const Tensor memory = host_memory({kernel.scratch(p)}, at::kByte);
    if (conv.threads > 1 && lost_its_team())
      std::thread(kernel.run, p, memory.mutable_data_ptr()).join();
    else
      kernel.run(p, memory.mutable_data_ptr());
  }
};

using Ops = DepthwiseOps<CpuEngine>;

Tensor pack_pointwise(const Tensor& weight) {
  TORCH_CHECK(weight.dim() >= 2 && weight.numel() == weight.size(0) * weight.size(1),
              "pack_pointwise: weight must be [N, K] or that with kernel sizes of 1, got ", weight.sizes());
  check_type("pack_pointwise", "weight", weight);
  const auto type = CpuEngine::compute_type(weight.scalar_type());
  const Tensor w = weight.to(type).contiguous();
  const int64_t N = w.size(0), K = w.size(1);
  const Tensor packed = host_memory(CpuEngine::packed_sizes(N, K, type), type);
  if (packed.numel() > 0)
    CpuEngine::with_number(
        type, [&]<class T>(T*) { conv_kernels<T>().pack_pointwise(pointer<T>(w), N, K, packed.mutable_data_ptr()); });
  return packed;
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, CPU, m) {
  m.impl("depthwise_conv", adl::Ops::forward);
  m.impl("depthwise_conv_input_grad", adl::Ops::input_grad);
  m.impl("depthwise_conv_weight_grad", adl::Ops::weight_grad);
  m.impl("separable_conv", adl::separable_conv<adl::CpuEngine>);
  m.impl("pack_pointwise", adl::pack_pointwise);
}
