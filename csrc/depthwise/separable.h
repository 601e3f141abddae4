// A depthwise convolution and the 1x1 convolution of its result as one op, on any device: arguments checked, layout
// chosen, result allocated.
//
// Beside what csrc/depthwise/ops.h asks of an engine, it has packed_data(op, packed, N, K), where the kernels find what
// pack_pointwise made of the weight [N, K] (checked, since they read beyond what torch knows of), or null.
#pragma once

#include "depthwise/ops.h"

namespace adl {
namespace {

template <class Engine>
Tensor separable_conv(const Tensor& x_in, const Tensor& dw_weight, const MaybeTensor& dw_bias, const Tensor& pw_weight,
                      const MaybeTensor& pw_bias, const MaybeTensor& packed, IntArrayRef stride, IntArrayRef padding,
                      IntArrayRef dilation, std::string_view dw_activation, std::string_view activation,
                      const MaybeTensor& residual) {
  constexpr const char* kOp = "separable_conv";
  check_weight(kOp, x_in, dw_weight);
  Conv conv = conv_of(kOp, x_in.sizes(), dw_weight.size(0), dw_weight.sizes().slice(2), stride, padding, dilation);
  const int64_t K = conv.channels();
  TORCH_CHECK(pw_weight.dim() >= 2 && pw_weight.size(1) == K && pw_weight.numel() == pw_weight.size(0) * K, kOp,
              ": pw_weight must be [N, ", K, "] or that with kernel sizes of 1 (output channels, channels of the ",
              "depthwise convolution), got ", pw_weight.sizes());
  check_like(kOp, "pw_weight", pw_weight, x_in);
  const int64_t N = pw_weight.size(0);
  const auto sizes = out_sizes(conv, N, dw_weight.dim() - 2);
  if (dw_bias) check_sizes(kOp, "dw_bias", *dw_bias, {K}, "channels of the depthwise convolution", x_in);
  if (pw_bias) check_sizes(kOp, "pw_bias", *pw_bias, {N}, "channels of the output", x_in);
  if (residual) check_sizes(kOp, "residual", *residual, sizes, "as the output", x_in);
  const Activation dw_act = activation_of(kOp, dw_activation), act = activation_of(kOp, activation);
  const bool last = goes_channels_last(x_in, dw_weight) || goes_channels_last(x_in, pw_weight);
  conv.channels_last = computes_channels_last(conv, last);
  const auto type = Engine::compute_type(x_in.scalar_type());
  const auto of_type = [&](const MaybeTensor& t) { return t ? t->to(type).contiguous() : Tensor(); };
  const Tensor x = lay_out(x_in, conv.channels_last, type);
  const Tensor w = of_type(dw_weight), b = of_type(dw_bias), pw = of_type(pw_weight), pb = of_type(pw_bias);
  const Tensor r = residual ? lay_out(*residual, conv.channels_last, type) : Tensor();
  const Tensor y = empty_laid_out(sizes, x.options(), last);
  TORCH_CHECK(!packed || packed->scalar_type() == type, kOp,
              ": packed must be what pack_pointwise makes of a pw_weight ", "of this dtype, ", type, ", got ",
              packed ? packed->scalar_type() : type);
  if (y.numel() > 0) {
    const void* const ready = packed ? Engine::packed_data(kOp, *packed, N, K) : nullptr;
    Engine::with_number(type, [&]<class T>(T*) {
      const ConvForward<T> depthwise{conv, pointer<T>(x), pointer<T>(w), pointer<T>(b), nullptr, nullptr, dw_act};
      Engine::run(x, SeparableForward<T>{depthwise, N, pointer<T>(pw), ready, pointer<T>(pb), pointer<T>(r),
                                         pointer<T>(y), act});
    });
  }
  return y.to(x_in.scalar_type());
}

}  // namespace
}  // namespace adl
