// The depthwise convolutions as the ops see them, on any device: arguments checked, layout chosen, results allocated.
//
// An engine has compute_type(type), what numbers of a type are computed in; with_number(type, f), which calls f with
// a null pointer to the C++ type; run(tensor, params) for each struct of csrc/depthwise/params.h; and it may have
// prefers_torch(conv, type, is_gradient), whether torch's own convolution is faster.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "common/pointer.h"
#include "depthwise/params.h"

namespace adl {
namespace {

using at::IntArrayRef;
using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// As csrc/depthwise/ops.cpp has them.
struct ConvSignature {
  using Forward = Tensor(const Tensor&, const Tensor&, const MaybeTensor&, IntArrayRef, IntArrayRef, IntArrayRef,
                         const MaybeTensor&, std::string_view, const MaybeTensor&);
  using InputGrad = Tensor(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                           const MaybeTensor&);
  using WeightGrad = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef,
                                                IntArrayRef, const MaybeTensor&, bool);
};

inline Activation activation_of(const char* op, std::string_view name) {
  for (int k = 0; k < kActivations; ++k)
    if (name == kActivationNames[k]) return Activation(k);
  std::string names;
  for (const char* known : kActivationNames) names += (names.empty() ? "" : ", ") + std::string(known);
  TORCH_CHECK_VALUE(false, op, ": activation must be one of ", names, ", got ", name);
}

// Whether the channels lie side by side: as torch's strides say, which knows no such format in one dimension.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() > 3) return t.suggest_memory_format() != at::MemoryFormat::Contiguous;
  return !t.is_contiguous() && t.movedim(1, -1).is_contiguous();
}

// The layout of a result, as torch has it: that of x, or channels last if the weight was put so (Module.to).
inline bool goes_channels_last(const Tensor& x, const Tensor& weight) {
  return is_channels_last(x) || (weight.dim() > 3 && is_channels_last(weight));
}

// Where there is one place per channel, both layouts are the same, and the kernels of this one faster.
inline bool computes_channels_last(const Conv& c, bool lies_so) {
  return lies_so || (c.in_size() == 1 && c.out_size() == 1);
}

// The tensor as [B, spatial.., channels] or [B, channels, spatial..] lies in memory, copied only where it does not.
inline Tensor lay_out(const Tensor& t, bool channels_last, at::ScalarType type) {
  const Tensor typed = t.scalar_type() == type ? t : t.to(type);
  return channels_last ? typed.movedim(1, -1).contiguous().movedim(-1, 1) : typed.contiguous();
}

inline Tensor empty_laid_out(IntArrayRef sizes, at::TensorOptions options, bool channels_last) {
  if (!channels_last) return at::empty(sizes, options.memory_format(at::MemoryFormat::Contiguous));
  std::vector<int64_t> lying{sizes[0]};
  lying.insert(lying.end(), sizes.begin() + 2, sizes.end());
  lying.push_back(sizes[1]);
  return at::empty(lying, options.memory_format(at::MemoryFormat::Contiguous)).movedim(-1, 1);
}

inline void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  with_memory(t);
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the dtype of x, ", x.scalar_type(),
              ", got ", t.scalar_type());
  TORCH_CHECK(t.device() == x.device(), op, ": ", name, " must be on the device of x, ", x.device(), ", got ",
              t.device());
}

inline void check_sizes(const char* op, const char* name, const Tensor& t, IntArrayRef sizes, const char* meaning,
                        const Tensor& x) {
  TORCH_CHECK(t.sizes() == sizes, op, ": ", name, " must be ", sizes, " (", meaning, "), got ", t.sizes());
  check_like(op, name, t, x);
}

// What a convolution is, from the sizes of x and of its weight. `padding` has what lies before x in every dimension,
// then what lies after it.
inline Conv conv_of(const char* op, IntArrayRef x, int64_t out_channels, IntArrayRef kernel, IntArrayRef stride,
                    IntArrayRef padding, IntArrayRef dilation) {
  const size_t dims = kernel.size();
  TORCH_CHECK(dims >= 1 && dims <= kSpatial && x.size() == dims + 2, op, ": x must be [B, C, length], [B, C, height, ",
              "width] or [B, C, depth, height, width] and the kernel have as many dimensions, got x ", x,
              " and kernel ", kernel);
  TORCH_CHECK(stride.size() == dims && dilation.size() == dims && padding.size() == 2 * dims, op,
              ": stride and dilation must have one number per dimension and padding two (all before x, then all ",
              "after), got stride ", stride, ", padding ", padding, ", dilation ", dilation, " in ", dims,
              " dimensions");
  Conv c{};
  c.B = x[0], c.C = x[1], c.multiplier = c.C == 0 ? 1 : out_channels / c.C;
  TORCH_CHECK(c.C * c.multiplier == out_channels && (c.C == 0 || out_channels > 0), op, ": the weight must have a ",
              "multiple of the ", c.C, " channels of x, got ", out_channels);
  const size_t unused = kSpatial - dims;
  for (size_t k = 0; k < unused; ++k) c.in[k] = c.out[k] = c.kernel[k] = c.stride[k] = c.dilation[k] = 1, c.pad[k] = 0;
  for (size_t k = 0; k < dims; ++k) {
    const size_t to = unused + k;
    TORCH_CHECK(kernel[k] > 0 && stride[k] > 0 && dilation[k] > 0, op,
                ": kernel, stride and dilation must be positive, got kernel ", kernel, ", stride ", stride,
                ", dilation ", dilation);
    TORCH_CHECK(padding[k] >= 0 && padding[dims + k] >= 0, op, ": padding must not be negative, got ", padding);
    c.in[to] = x[2 + k], c.kernel[to] = kernel[k], c.stride[to] = stride[k], c.dilation[to] = dilation[k];
    c.pad[to] = padding[k];
    const int64_t padded = x[2 + k] + padding[k] + padding[dims + k], reach = dilation[k] * (kernel[k] - 1) + 1;
    TORCH_CHECK(padded >= reach, op, ": the kernel must not be larger than the padded input, but reaches over ", reach,
                " where there are ", padded);
    c.out[to] = (padded - reach) / stride[k] + 1;
    // Where there is one of them, the distance to the next may be anything.
    if (c.out[to] == 1) c.stride[to] = 1;
    if (kernel[k] == 1) c.dilation[to] = 1;
  }
  return c;
}

inline std::vector<int64_t> out_sizes(const Conv& c, int64_t channels, size_t dims) {
  std::vector<int64_t> sizes{c.B, channels};
  sizes.insert(sizes.end(), c.out + kSpatial - dims, c.out + kSpatial);
  return sizes;
}

// Ids of documents as the kernels read them; keep the result while they do.
inline Tensor set_documents(const char* op, Conv& c, const MaybeTensor& given, const Tensor& x) {
  if (!given) return Tensor();
  TORCH_CHECK(x.dim() == 3 && c.stride[2] == 1 && c.out[2] == c.in[2], op,
              ": seq_idx needs one dimension, stride 1 and an output as long as x, got x ", x.sizes(), ", stride ",
              c.stride[2], " and an output of ", c.out[2]);
  TORCH_CHECK(given->dim() == 2 && given->size(0) == c.B && given->size(1) == c.in[2] &&
                  (given->scalar_type() == at::kInt || given->scalar_type() == at::kLong),
              op, ": seq_idx must be int32 or int64 [", c.B, ", ", c.in[2], "] (batch, length), got ",
              given->scalar_type(), " ", given->sizes());
  TORCH_CHECK(given->device() == x.device(), op, ": seq_idx must be on the device of x, ", x.device(), ", got ",
              given->device());
  const Tensor ids = given->to(at::kInt).contiguous();
  c.documents = pointer<int32_t>(ids);
  return ids;
}

// The kernels know no other numbers.
inline void check_type(const char* op, const char* name, const Tensor& t) {
  const auto type = with_memory(t).scalar_type();
  TORCH_CHECK(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op, ": ", name,
              " must be of dtype double, float, bfloat16 or half, got ", type);
}

inline void check_weight(const char* op, const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(weight.dim() >= 3 && weight.dim() <= 2 + kSpatial && weight.size(1) == 1, op,
              ": weight must be [channels, 1, kernel..] with one to three dimensions of the kernel, got ",
              weight.sizes());
  check_like(op, "weight", weight, x);
  check_type(op, "x", x);
}

// Whether torch computes the same, and the engine says that it is faster.
template <class Engine>
bool goes_to_torch(const Conv& c, IntArrayRef padding, at::ScalarType type, bool is_gradient) {
  if constexpr (requires { Engine::prefers_torch(c, type, is_gradient); }) {
    const size_t dims = padding.size() / 2;
    return std::equal(padding.begin(), padding.begin() + dims, padding.begin() + dims) && !c.documents &&
           Engine::prefers_torch(c, type, is_gradient);
  }
  return false;
}

template <class Engine>
struct DepthwiseOps {
  static Tensor forward(const Tensor& x_in, const Tensor& weight, const MaybeTensor& bias, IntArrayRef stride,
                        IntArrayRef padding, IntArrayRef dilation, const MaybeTensor& seq_idx,
                        std::string_view activation, const MaybeTensor& residual) {
    constexpr const char* kOp = "depthwise_conv";
    check_weight(kOp, x_in, weight);
    Conv conv = conv_of(kOp, x_in.sizes(), weight.size(0), weight.sizes().slice(2), stride, padding, dilation);
    const auto sizes = out_sizes(conv, conv.channels(), weight.dim() - 2);
    if (bias) check_sizes(kOp, "bias", *bias, {conv.channels()}, "channels of the output", x_in);
    if (residual) check_sizes(kOp, "residual", *residual, sizes, "as the output", x_in);
    const Tensor documents = set_documents(kOp, conv, seq_idx, x_in);
    const Activation act = activation_of(kOp, activation);
    const bool last = goes_channels_last(x_in, weight);
    conv.channels_last = computes_channels_last(conv, last);
    if (act == Activation::kNone && !residual && goes_to_torch<Engine>(conv, padding, x_in.scalar_type(), false)) {
      const size_t dims = stride.size();
      const Tensor y = at::convolution(x_in, weight, bias, stride, padding.slice(0, dims), dilation, false,
                                       std::vector<int64_t>(dims, 0), conv.C);
      return lay_out(y, last, y.scalar_type());
    }
    const auto type = Engine::compute_type(x_in.scalar_type());
    const Tensor x = lay_out(x_in, conv.channels_last, type), w = weight.to(type).contiguous();
    const Tensor b = bias ? bias->to(type).contiguous() : Tensor();
    const Tensor r = residual ? lay_out(*residual, conv.channels_last, type) : Tensor();
    const Tensor y = empty_laid_out(sizes, x.options(), last);
    if (y.numel() > 0) {
      Engine::with_number(type, [&]<class T>(T*) {
        Engine::run(
            x, ConvForward<T>{conv, pointer<T>(x), pointer<T>(w), pointer<T>(b), pointer<T>(r), pointer<T>(y), act});
      });
    }
    return y.to(x_in.scalar_type());
  }

  static Tensor input_grad(const Tensor& grad, const Tensor& weight, IntArrayRef input_size, IntArrayRef stride,
                           IntArrayRef padding, IntArrayRef dilation, const MaybeTensor& seq_idx) {
    constexpr const char* kOp = "depthwise_conv_input_grad";
    check_weight(kOp, grad, weight);
    Conv conv = conv_of(kOp, input_size, weight.size(0), weight.sizes().slice(2), stride, padding, dilation);
    check_sizes(kOp, "grad", grad, out_sizes(conv, conv.channels(), weight.dim() - 2), "as the output", weight);
    const Tensor documents = set_documents(kOp, conv, seq_idx, grad);
    const bool last = goes_channels_last(grad, weight);
    conv.channels_last = computes_channels_last(conv, last);
    if (goes_to_torch<Engine>(conv, padding, grad.scalar_type(), true)) {
      const size_t dims = stride.size();
      const Tensor like = empty_laid_out(input_size, grad.options(), last);
      const Tensor dx = std::get<0>(
          at::convolution_backward(grad, like, weight, std::nullopt, stride, padding.slice(0, dims), dilation, false,
                                   std::vector<int64_t>(dims, 0), conv.C, {true, false, false}));
      return lay_out(dx, last, dx.scalar_type());
    }
    const auto type = Engine::compute_type(grad.scalar_type());
    const Tensor dy = lay_out(grad, conv.channels_last, type), w = weight.to(type).contiguous();
    const Tensor dx = empty_laid_out(input_size, dy.options(), last);
    if (dy.numel() == 0) {
      dx.zero_();
    } else if (dx.numel() > 0) {
      Engine::with_number(type, [&]<class T>(T*) {
        Engine::run(dy, ConvInputGrad<T>{conv, pointer<T>(dy), pointer<T>(w), pointer<T>(dx)});
      });
    }
    return dx.to(grad.scalar_type());
  }

  static std::tuple<Tensor, Tensor> weight_grad(const Tensor& grad, const Tensor& x_in, IntArrayRef kernel_size,
                                                IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                const MaybeTensor& seq_idx, bool bias) {
    constexpr const char* kOp = "depthwise_conv_weight_grad";
    TORCH_CHECK(grad.dim() == x_in.dim() && grad.dim() >= 3, op_dims(kOp), grad.sizes(), " and x ", x_in.sizes());
    check_type(kOp, "x", x_in);
    Conv conv = conv_of(kOp, x_in.sizes(), grad.size(1), kernel_size, stride, padding, dilation);
    check_sizes(kOp, "grad", grad, out_sizes(conv, conv.channels(), kernel_size.size()), "as the output", x_in);
    const Tensor documents = set_documents(kOp, conv, seq_idx, x_in);
    conv.channels_last = computes_channels_last(conv, is_channels_last(x_in));
    const auto type = Engine::compute_type(x_in.scalar_type());
    const Tensor dy = lay_out(grad, conv.channels_last, type), x = lay_out(x_in, conv.channels_last, type);
    std::vector<int64_t> sizes{conv.channels(), 1};
    sizes.insert(sizes.end(), kernel_size.begin(), kernel_size.end());
    const Tensor dw = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));
    const Tensor db = at::empty({bias ? conv.channels() : 0}, x.options().memory_format(at::MemoryFormat::Contiguous));
    if (dy.numel() == 0) {
      dw.zero_(), db.zero_();
    } else if (dw.numel() > 0) {
      Engine::with_number(type, [&]<class T>(T*) {
        Engine::run(x, ConvWeightGrad<T>{conv, pointer<T>(dy), pointer<T>(x), pointer<T>(dw), pointer<T>(db)});
      });
    }
    return {dw.to(x_in.scalar_type()), db.to(x_in.scalar_type())};
  }

 private:
  static std::string op_dims(const char* op) {
    return std::string(op) +
           ": grad and x must be [B, C, length], [B, C, height, width] or [B, C, depth, height, "
           "width], got grad ";
  }
};

}  // namespace
}  // namespace adl
