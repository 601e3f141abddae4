// What the ops check before any pointer is taken: everything that would otherwise corrupt memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>
#include <vector>

namespace adl {

// The shape of one layer, read off its arguments.
struct LayerShape {
  int64_t T, B, N, I, H, P, D;
  int64_t per_direction;  // weights per direction
  bool bias, projection;
};

inline void check_tensor(const char* op, const std::string& name, const at::Tensor& t, at::IntArrayRef sizes,
                         const char* meaning, const at::Tensor& x) {
  TORCH_CHECK(t.sizes() == sizes, op, ": ", name, " must be ", sizes, " (", meaning, "), got ", t.sizes());
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the dtype of x, ", x.scalar_type(),
              ", got ", t.scalar_type());
  TORCH_CHECK(t.device() == x.device(), op, ": ", name, " must be on the device of x, ", x.device(), ", got ",
              t.device());
}

// The batch sizes as a vector: those given, or B at each of T steps.
inline std::vector<int64_t> check_batch_sizes(const char* op, const at::Tensor& x, const at::Tensor& h_0,
                                              const std::optional<at::Tensor>& given) {
  const int64_t B = h_0.size(1);
  if (!given) {
    TORCH_CHECK(x.size(1) == B, op, ": h_0 must have the batch size of x, ", x.size(1), ", got ", B);
    return std::vector<int64_t>(x.size(0), B);
  }
  const at::Tensor sizes = given->contiguous();
  const int64_t* p = sizes.const_data_ptr<int64_t>();
  const std::vector<int64_t> out(p, p + sizes.numel());
  TORCH_CHECK(out.empty() || out[0] == B, op, ": batch_sizes must start with the batch size of h_0, ", B, ", got ",
              out[0]);
  int64_t rows = 0, before = B;
  for (int64_t size : out) {
    TORCH_CHECK(size > 0 && size <= before, op, ": batch_sizes must be positive and must not increase, got ", size,
                " after ", before);
    before = size;
    rows += size;
  }
  TORCH_CHECK(rows == x.size(0), op, ": batch_sizes must sum up to the rows of x, ", x.size(0), ", got ", rows);
  return out;
}

inline LayerShape check_layer(const char* op, int gates, bool has_c, const at::Tensor& x, at::TensorList hx,
                              at::TensorList weights, const std::optional<at::Tensor>& batch_sizes) {
  TORCH_CHECK(
      !batch_sizes || (batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong && batch_sizes->is_cpu()), op,
      ": batch_sizes must be a 1-D int64 tensor on the CPU, got ", batch_sizes->dim(), "-D ",
      batch_sizes->scalar_type(), " on ", batch_sizes->device());
  TORCH_CHECK(x.dim() == (batch_sizes ? 2 : 3), op, ": x must be ",
              batch_sizes ? "[N, I] with batch_sizes" : "[T, B, I]", ", got ", x.sizes());
  TORCH_CHECK(hx.size() == (has_c ? 2u : 1u), op, ": hx must hold ", has_c ? "h_0 and c_0" : "h_0 alone", ", got ",
              hx.size(), " tensors");
  TORCH_CHECK(hx[0].dim() == 3, op, ": h_0 must be [D, B, P] (directions, batch, width of h), got ", hx[0].sizes());

  LayerShape s{};
  s.D = hx[0].size(0), s.B = hx[0].size(1), s.P = hx[0].size(2), s.I = x.size(-1);
  s.T = batch_sizes ? batch_sizes->size(0) : x.size(0);
  s.N = batch_sizes ? x.size(0) : x.size(0) * x.size(1);
  TORCH_CHECK(s.D == 1 || s.D == 2, op, ": h_0 must be of one or two directions, got ", hx[0].sizes());
  const int64_t count = weights.size();
  s.per_direction = count / s.D;
  TORCH_CHECK(count % s.D == 0 && s.per_direction >= 2 && s.per_direction <= 5, op,
              ": weights must hold weight_ih, weight_hh [, bias_ih, bias_hh] [, weight_hr] for each of ", s.D,
              " directions, got ", count, " tensors");
  s.bias = s.per_direction >= 4;
  s.projection = s.per_direction % 2 == 1;
  TORCH_CHECK(!s.projection || has_c, op, ": weight_hr is only for cells with a state c, got ", count, " weights");
  TORCH_CHECK(weights[0].dim() == 2 && weights[0].size(0) % gates == 0, op, ": weight_ih must be [", gates,
              " * H, I], got ", weights[0].sizes());
  s.H = weights[0].size(0) / gates;
  TORCH_CHECK(s.projection || s.P == s.H, op, ": h_0 must be as wide as the hidden size, ", s.H, ", got ",
              hx[0].sizes());

  check_tensor(op, "h_0", hx[0], {s.D, s.B, s.P}, "directions, batch, width of h", x);
  if (has_c) check_tensor(op, "c_0", hx[1], {s.D, s.B, s.H}, "directions, batch, hidden size", x);
  for (int64_t d = 0; d < s.D; ++d) {
    const at::Tensor* w = weights.data() + d * s.per_direction;
    const std::string suffix = d ? " of the reverse direction" : "";
    check_tensor(op, "weight_ih" + suffix, w[0], {gates * s.H, s.I}, "gates * hidden size, input size", x);
    check_tensor(op, "weight_hh" + suffix, w[1], {gates * s.H, s.P}, "gates * hidden size, width of h", x);
    if (s.bias) {
      check_tensor(op, "bias_ih" + suffix, w[2], {gates * s.H}, "gates * hidden size", x);
      check_tensor(op, "bias_hh" + suffix, w[3], {gates * s.H}, "gates * hidden size", x);
    }
    if (s.projection)
      check_tensor(op, "weight_hr" + suffix, w[s.per_direction - 1], {s.P, s.H}, "width of h, hidden size", x);
  }
  return s;
}

}  // namespace adl
