// Depthwise convolutions: the schemas, and the ops on the CPU.
//
//   x         [B, C, spatial..], one to three dimensions; results lie in memory as it does, channels first or last
//   weight    [M C, 1, kernel..]; channel o of the output sees channel o / M of x
//   padding   zeros before x in every dimension, then those after it in every dimension
//   seq_idx   int [B, length]: ids of documents that lie one after the other in each row; each is convolved alone
//   activation   of the sum and its bias, one of kActivationNames in csrc/convolution.h; then residual is added
//
//   depthwise_conv              y
//   depthwise_conv_input_grad   dx, from dy
//   depthwise_conv_weight_grad  dweight, and dbias if asked for, else an empty tensor
//   separable_conv              the depthwise convolution and the 1x1 convolution of its result, for inference;
//                               packed: what pack_pointwise makes of pw_weight, or None
#include "ops/conv.h"

#include <torch/library.h>

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

// SCAFFOLD: torch's convolution, until the kernels are there.
#include <ATen/ATen.h>
#include <ATen/Functions.h>
namespace adl {
namespace {
struct Scaffold {
  static at::ScalarType compute_type(at::ScalarType t) { return t == at::kHalf ? at::kFloat : t; }
};
at::Tensor pad_of(const at::Tensor& x, at::IntArrayRef padding) {
  const size_t dims = padding.size() / 2;
  std::vector<int64_t> pad;
  for (size_t k = dims; k-- > 0;) pad.insert(pad.end(), {padding[k], padding[dims + k]});
  return at::constant_pad_nd(x, pad);
}
at::Tensor like(const at::Tensor& t, bool last) { return lay_out(t, last, t.scalar_type()); }
at::Tensor fwd(const Tensor& x, const Tensor& w, const MaybeTensor& b, IntArrayRef s, IntArrayRef p, IntArrayRef d,
               const MaybeTensor& ids, std::string_view act, const MaybeTensor& r) {
  Conv c = conv_of("depthwise_conv", x.sizes(), w.size(0), w.sizes().slice(2), s, p, d);
  const bool last = is_channels_last(x);
  Tensor y;
  if (ids) {
    const int64_t reach = d[0] * (w.size(2) - 1) + 1;
    const auto taps = [&](const Tensor& t) { return t.unfold(-1, reach, 1).slice(-1, 0, reach, d[0]); };
    const Tensor around = taps(pad_of(ids->to(at::kDouble) + 1, p));
    const Tensor same = around == (ids->to(at::kDouble) + 1).unsqueeze(-1);
    const Tensor seen = taps(pad_of(x, p)) * same.unsqueeze(1).to(x.scalar_type());
    y = (seen.repeat_interleave(c.multiplier, 1) * w.unsqueeze(0)).sum(-1);
    if (b) y = y + b->unsqueeze(-1);
  } else {
    y = at::convolution(pad_of(x, p), w, b, s, std::vector<int64_t>(s.size(), 0), d, false,
                        std::vector<int64_t>(s.size(), 0), x.size(1));
  }
  switch (activation_of("depthwise_conv", act)) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
      y = at::relu(y);
      break;
    case Activation::kRelu6:
      y = at::hardtanh(y, 0, 6);
      break;
    case Activation::kHardswish:
      y = at::hardswish(y);
      break;
    case Activation::kSilu:
      y = at::silu(y);
      break;
    case Activation::kSigmoid:
      y = at::sigmoid(y);
      break;
    case Activation::kTanh:
      y = at::tanh(y);
      break;
  }
  if (r) y = y + *r;
  return like(y, last);
}
template <bool kInput, bool kWeight>
std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& g, const Tensor& x, const Tensor& w, IntArrayRef s, IntArrayRef p,
                                       IntArrayRef d) {
  const Tensor xp = pad_of(x, p);
  auto [dx, dw, db] =
      at::convolution_backward(g, xp, w, at::IntArrayRef{w.size(0)}, s, std::vector<int64_t>(s.size(), 0), d, false,
                               std::vector<int64_t>(s.size(), 0), x.size(1), {kInput, kWeight, kWeight});
  if (kInput)
    for (size_t k = 0; k < s.size(); ++k) dx = dx.narrow(2 + k, p[k], x.size(2 + k));
  return {dx, dw, db};
}
at::Tensor in_grad(const Tensor& g, const Tensor& w, IntArrayRef size, IntArrayRef s, IntArrayRef p, IntArrayRef d,
                   const MaybeTensor& ids) {
  TORCH_CHECK(!ids, "scaffold");
  return like(std::get<0>(bwd<true, false>(g, at::zeros(size, g.options()), w, s, p, d)), is_channels_last(g));
}
std::tuple<Tensor, Tensor> w_grad(const Tensor& g, const Tensor& x, IntArrayRef k, IntArrayRef s, IntArrayRef p,
                                  IntArrayRef d, const MaybeTensor& ids, bool bias) {
  TORCH_CHECK(!ids, "scaffold");
  std::vector<int64_t> size{g.size(1), 1};
  size.insert(size.end(), k.begin(), k.end());
  auto r = bwd<false, true>(g, x, at::zeros(size, x.options()), s, p, d);
  return {std::get<1>(r).contiguous(), bias ? std::get<2>(r) : at::empty({0}, x.options())};
}
at::Tensor sep(const Tensor& x, const Tensor& w, const MaybeTensor& b, const Tensor& pw, const MaybeTensor& pb,
               const MaybeTensor&, IntArrayRef s, IntArrayRef p, IntArrayRef d, std::string_view da,
               std::string_view act, const MaybeTensor& r) {
  const Tensor mid = fwd(x, w, b, s, p, d, {}, da, {});
  const std::vector<int64_t> ones(s.size(), 1), zeros(s.size(), 0), none(2 * s.size(), 0);
  std::vector<int64_t> full(pw.sizes().begin(), pw.sizes().begin() + 2);
  full.insert(full.end(), s.size(), 1);
  Tensor y = at::convolution(mid, pw.view(full), pb, ones, zeros, ones, false, zeros, 1);
  switch (activation_of("separable_conv", act)) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
      y = at::relu(y);
      break;
    case Activation::kRelu6:
      y = at::hardtanh(y, 0, 6);
      break;
    case Activation::kHardswish:
      y = at::hardswish(y);
      break;
    case Activation::kSilu:
      y = at::silu(y);
      break;
    case Activation::kSigmoid:
      y = at::sigmoid(y);
      break;
    case Activation::kTanh:
      y = at::tanh(y);
      break;
  }
  if (r) y = y + *r;
  return like(y, is_channels_last(x));
}
}  // namespace
}  // namespace adl
TORCH_LIBRARY_IMPL(adl_kernels, CPU, m) {
  m.impl("depthwise_conv", adl::fwd);
  m.impl("depthwise_conv_input_grad", adl::in_grad);
  m.impl("depthwise_conv_weight_grad", adl::w_grad);
  m.impl("separable_conv", adl::sep);
  m.impl("pack_pointwise", [](const at::Tensor& w) { return w.clone(); });
}
