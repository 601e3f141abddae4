// Derivatives of the depthwise convolutions. Each of the three ops is linear in its tensors, and the derivatives of
// each are the others: derivatives of any order are made of them.
#include <ATen/FuncTorchTLS.h>
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "depthwise/ops.h"

namespace adl {
namespace {

using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using Variables = torch::autograd::variable_list;
using Ints = std::vector<int64_t>;
using SymInts = std::vector<c10::SymInt>;

// The sizes that ops take may be symbols here, while a graph is traced.
using Forward = ConvSignature::Forward;
using InputGrad = Tensor(const Tensor&, const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                         const MaybeTensor&);
using WeightGrad = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, SymIntArrayRef, IntArrayRef, IntArrayRef,
                                              IntArrayRef, const MaybeTensor&, bool);

template <class Signature>
const c10::TypedOperatorHandle<Signature>& op();
template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}
template <>
const c10::TypedOperatorHandle<Forward>& op<Forward>() {
  static const auto found = find<Forward>("adl_kernels::depthwise_conv");
  return found;
}
template <>
const c10::TypedOperatorHandle<InputGrad>& op<InputGrad>() {
  static const auto found = find<InputGrad>("adl_kernels::depthwise_conv_input_grad");
  return found;
}
template <>
const c10::TypedOperatorHandle<WeightGrad>& op<WeightGrad>() {
  static const auto found = find<WeightGrad>("adl_kernels::depthwise_conv_weight_grad");
  return found;
}

bool wants_graph(const Tensor& a, const Tensor& b, const MaybeTensor& c = {}) {
  return at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad() || (c && c->requires_grad()));
}

// The numbers of a convolution and its documents, kept for backward.
struct Window {
  Ints stride, padding, dilation;
  MaybeTensor seq_idx;

  Window(IntArrayRef s, IntArrayRef p, IntArrayRef d, const MaybeTensor& ids)
      : stride(s.vec()), padding(p.vec()), dilation(d.vec()), seq_idx(ids) {}
  explicit Window(AutogradContext* ctx)
      : stride(ctx->saved_data["stride"].toIntVector()),
        padding(ctx->saved_data["padding"].toIntVector()),
        dilation(ctx->saved_data["dilation"].toIntVector()),
        seq_idx(ctx->saved_data["seq_idx"].toOptional<Tensor>()) {}

  void keep(AutogradContext* ctx) const {
    ctx->saved_data["stride"] = stride, ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation, ctx->saved_data["seq_idx"] = seq_idx;
  }

  Tensor forward(const Tensor& x, const Tensor& weight, const MaybeTensor& bias = {}) const {
    return op<Forward>().call(x, weight, bias, stride, padding, dilation, seq_idx, "none", {});
  }
  Tensor input_grad(const Tensor& grad, const Tensor& weight, SymIntArrayRef input_size) const {
    return op<InputGrad>().call(grad, weight, input_size, stride, padding, dilation, seq_idx);
  }
  std::tuple<Tensor, Tensor> weight_grad(const Tensor& grad, const Tensor& x, SymIntArrayRef kernel, bool bias) const {
    return op<WeightGrad>().call(grad, x, kernel, stride, padding, dilation, seq_idx, bias);
  }
};

SymInts kernel_size(const Tensor& weight) { return weight.sym_sizes().slice(2).vec(); }

Tensor per_channel(const Tensor& values, const Tensor& like) {
  SymInts sizes(like.dim(), 1);
  sizes[1] = values.sym_size(0);
  return values.view_symint(sizes);
}

struct ForwardNode : torch::autograd::Function<ForwardNode> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                        const Window& window) {
    at::AutoDispatchBelowADInplaceOrView below;
    window.keep(ctx);
    ctx->saved_data["biased"] = bias.has_value();
    ctx->save_for_backward({x, weight});
    return window.forward(x, weight, bias);
  }

  static Variables backward(AutogradContext* ctx, Variables grads) {
    const Window window(ctx);
    const Variables saved = ctx->get_saved_variables();
    const Tensor &grad = grads[0], &x = saved[0], &weight = saved[1];
    Variables out(4);
    if (!grad.defined()) return out;
    if (ctx->needs_input_grad(0)) out[0] = window.input_grad(grad, weight, x.sym_sizes());
    const bool bias =
        ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(2);  // of what is not given it cannot be asked
    if (ctx->needs_input_grad(1)) {
      std::tie(out[1], out[2]) = window.weight_grad(grad, x, kernel_size(weight), bias);
      if (!bias) out[2] = Tensor();
    } else if (bias) {
      out[2] = grad.transpose(0, 1).flatten(1).sum(1);
    }
    return out;
  }
};

struct InputGradNode : torch::autograd::Function<InputGradNode> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& weight, SymIntArrayRef input_size,
                        const Window& window) {
    at::AutoDispatchBelowADInplaceOrView below;
    window.keep(ctx);
    ctx->save_for_backward({grad, weight});
    return window.input_grad(grad, weight, input_size);
  }

  static Variables backward(AutogradContext* ctx, Variables grads) {
    const Window window(ctx);
    const Variables saved = ctx->get_saved_variables();
    Variables out(4);
    if (!grads[0].defined()) return out;
    if (ctx->needs_input_grad(0)) out[0] = window.forward(grads[0], saved[1]);
    if (ctx->needs_input_grad(1))
      out[1] = std::get<0>(window.weight_grad(saved[0], grads[0], kernel_size(saved[1]), false));
    return out;
  }
};

struct WeightGradNode : torch::autograd::Function<WeightGradNode> {
  static Variables forward(AutogradContext* ctx, const Tensor& grad, const Tensor& x, SymIntArrayRef kernel,
                           const Window& window, bool bias) {
    at::AutoDispatchBelowADInplaceOrView below;
    window.keep(ctx);
    ctx->saved_data["bias"] = bias;
    ctx->save_for_backward({grad, x});
    const auto [dweight, dbias] = window.weight_grad(grad, x, kernel, bias);
    return {dweight, dbias};
  }

  static Variables backward(AutogradContext* ctx, Variables grads) {
    const Window window(ctx);
    const Variables saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &x = saved[1], &of_weight = grads[0], &of_bias = grads[1];
    Variables out(5);
    if (ctx->needs_input_grad(0)) {
      if (of_weight.defined()) out[0] = window.forward(x, of_weight);
      if (ctx->saved_data["bias"].toBool() && of_bias.defined()) {
        const Tensor spread = per_channel(of_bias, grad).expand_symint(grad.sym_sizes());
        out[0] = out[0].defined() ? out[0] + spread : spread;
      }
    }
    if (ctx->needs_input_grad(1) && of_weight.defined()) out[1] = window.input_grad(grad, of_weight, x.sym_sizes());
    return out;
  }
};

Tensor activate(const Tensor& y, std::string_view name) {
  switch (activation_of("depthwise_conv", name)) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return at::relu(y);
    case Activation::kRelu6:
      return at::hardtanh(y, 0, 6);
    case Activation::kHardswish:
      return at::hardswish(y);
    case Activation::kSilu:
      return at::silu(y);
    case Activation::kSigmoid:
      return at::sigmoid(y);
    case Activation::kTanh:
      return at::tanh(y);
  }
  return y;
}

// By torch's own ops: what vmap, jvp and other transforms see.
Tensor definition(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const Window& w) {
  const size_t dims = w.stride.size();
  Ints pad;
  for (size_t k = dims; k-- > 0;) pad.insert(pad.end(), {w.padding[k], w.padding[dims + k]});
  const Tensor padded = at::constant_pad_nd(x, pad);
  if (!w.seq_idx)
    return at::convolution(padded, weight, bias, w.stride, Ints(dims, 0), w.dilation, false, Ints(dims, 0), x.size(1));
  // Every tap of every place, [B, C, length, taps], where it is of the same document.
  const int64_t reach = w.dilation[0] * (weight.size(2) - 1) + 1;
  const auto taps = [&](const Tensor& t) { return t.unfold(-1, reach, 1).slice(-1, 0, reach, w.dilation[0]); };
  const Tensor ids = *w.seq_idx, around = taps(at::constant_pad_nd(ids.to(at::kDouble), pad, -1e30));
  const Tensor same = around == ids.unsqueeze(-1);
  const Tensor seen = taps(padded) * same.unsqueeze(1).to(x.scalar_type());
  const Tensor y = (seen.repeat_interleave(weight.size(0) / x.size(1), 1) * weight.unsqueeze(0)).sum(-1);
  return bias ? y + bias->unsqueeze(-1) : y;
}

bool is_transformed(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  try {  // only so does torch tell whether one of its function transforms runs
    if (const auto& transforms = at::functorch::functorchTLSAccessor()) transforms->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    return true;
  }
  return torch::autograd::isFwGradDefined(x) || torch::autograd::isFwGradDefined(weight) ||
         torch::autograd::isFwGradDefined(bias);
}

Tensor forward(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, IntArrayRef stride, IntArrayRef padding,
               IntArrayRef dilation, const MaybeTensor& seq_idx, std::string_view activation,
               const MaybeTensor& residual) {
  const bool transformed = is_transformed(x, weight, bias) || torch::autograd::isFwGradDefined(residual);
  if (!transformed && !wants_graph(x, weight, bias) && !wants_graph(x, x, residual)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return op<Forward>().call(x, weight, bias, stride, padding, dilation, seq_idx, activation, residual);
  }
  const Window window(stride, padding, dilation, seq_idx);
  Tensor y = transformed ? definition(x, weight, bias, window) : ForwardNode::apply(x, weight, bias, window);
  y = activate(y, activation);
  return residual ? y + *residual : y;
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, SymIntArrayRef input_size, IntArrayRef stride,
                  IntArrayRef padding, IntArrayRef dilation, const MaybeTensor& seq_idx) {
  if (wants_graph(grad, weight))
    return InputGradNode::apply(grad, weight, input_size, Window(stride, padding, dilation, seq_idx));
  at::AutoDispatchBelowADInplaceOrView below;
  return op<InputGrad>().call(grad, weight, input_size, stride, padding, dilation, seq_idx);
}

std::tuple<Tensor, Tensor> weight_grad(const Tensor& grad, const Tensor& x, SymIntArrayRef kernel, IntArrayRef stride,
                                       IntArrayRef padding, IntArrayRef dilation, const MaybeTensor& seq_idx,
                                       bool bias) {
  if (wants_graph(grad, x)) {
    const Variables out = WeightGradNode::apply(grad, x, kernel, Window(stride, padding, dilation, seq_idx), bias);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return op<WeightGrad>().call(grad, x, kernel, stride, padding, dilation, seq_idx, bias);
}

template <c10::DeviceType device>
Tensor autocast(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, IntArrayRef stride, IntArrayRef padding,
                IntArrayRef dilation, const MaybeTensor& seq_idx, std::string_view activation,
                const MaybeTensor& residual) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [](const Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  };
  const auto maybe = [&](const MaybeTensor& t) { return t ? MaybeTensor(cast(*t)) : t; };
  return op<Forward>().call(cast(x), cast(weight), maybe(bias), stride, padding, dilation, seq_idx, activation,
                            maybe(residual));
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, Autograd, m) {
  m.impl("depthwise_conv", adl::forward);
  m.impl("depthwise_conv_input_grad", adl::input_grad);
  m.impl("depthwise_conv_weight_grad", adl::weight_grad);
}
TORCH_LIBRARY_IMPL(adl_kernels, AutocastCPU, m) { m.impl("depthwise_conv", adl::autocast<c10::DeviceType::CPU>); }
TORCH_LIBRARY_IMPL(adl_kernels, AutocastCUDA, m) { m.impl("depthwise_conv", adl::autocast<c10::DeviceType::CUDA>); }
