// What the ops check before any pointer is taken: everything that would otherwise corrupt memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>
#include <vector>

#include "recurrent/cells/cells.h"
#include "recurrent/options.h"

namespace adl {

// The shape of one layer, read off its arguments.
struct LayerShape {
  int64_t T, B, N, I, H, P, D;
  int64_t per_direction;  // weights per direction
  bool bias, projection;
  // Places among the weights of a direction; -1 for what there is not.
  int64_t w_hr = -1, w_ch = -1, ln = -1;
};

// What the checks must know of a cell.
struct CellFacts {
  int gates, peepholes;
  bool has_c;
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
                                              const MaybeTensor& given) {
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

inline LayerShape check_layer(const char* op, const CellFacts& cell, const at::Tensor& x, at::TensorList hx,
                              at::TensorList weights, const Asked& asked) {
  const int gates = cell.gates;
  const bool has_c = cell.has_c;
  const MaybeTensor& batch_sizes = asked.batch_sizes;
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
  const int64_t norms = asked.layer_norm ? (has_c ? 4 : 2) : 0, basic = s.per_direction - asked.peephole - norms;
  TORCH_CHECK(count % s.D == 0 && basic >= 2 && basic <= 5, op,
              ": weights must hold weight_ih, weight_hh [, bias_ih, bias_hh] [, weight_hr]",
              asked.peephole ? ", weight_ch" : "",
              !asked.layer_norm ? ""
              : has_c           ? ", weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c"
                                : ", weight_ln_ih, weight_ln_hh",
              " for each of ", s.D, " directions, got ", count, " tensors");
  s.bias = basic >= 4;
  s.projection = basic % 2 == 1;
  if (s.projection) s.w_hr = basic - 1;
  if (asked.peephole) s.w_ch = basic;
  if (asked.layer_norm) s.ln = basic + asked.peephole;
  TORCH_CHECK(!asked.peephole || cell.peepholes > 0, op, ": this cell has no peepholes");
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
    if (s.projection) check_tensor(op, "weight_hr" + suffix, w[s.w_hr], {s.P, s.H}, "width of h, hidden size", x);
    if (asked.peephole)
      check_tensor(op, "weight_ch" + suffix, w[s.w_ch], {cell.peepholes, s.H}, "gates that see c, hidden size", x);
    if (asked.layer_norm) {
      check_tensor(op, "weight_ln_ih" + suffix, w[s.ln], {gates * s.H}, "gates * hidden size", x);
      check_tensor(op, "weight_ln_hh" + suffix, w[s.ln + 1], {gates * s.H}, "gates * hidden size", x);
      if (has_c) {
        check_tensor(op, "weight_ln_c" + suffix, w[s.ln + 2], {s.H}, "hidden size", x);
        check_tensor(op, "bias_ln_c" + suffix, w[s.ln + 3], {s.H}, "hidden size", x);
      }
    }
  }
  return s;
}

// Of lengths on the CPU; those on a GPU are not looked at, which would take waiting for it.
inline void check_lengths(const char* op, const at::Tensor& lengths, int64_t T) {
  const int64_t* p = lengths.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < lengths.numel(); ++b) {
    TORCH_CHECK(p[b] >= 0, op, ": lengths[", b, "] = ", p[b], " is negative");
    TORCH_CHECK(p[b] <= T, op, ": lengths[", b, "] = ", p[b], " exceeds T = ", T);
  }
}

inline Squash check_activation(const char* op, const char* name, c10::string_view given, bool chooses) {
  constexpr const char* kNames[] = {"tanh", "sigmoid", "relu", "identity"};
  for (int k = 0; k < 4; ++k)
    if (given == kNames[k] && (k == 0 || chooses)) return Squash(k);
  TORCH_CHECK(false, op, ": ", name, " must be ", chooses ? "tanh, sigmoid, relu or identity" : "tanh for this cell",
              ", got ", given);
}

// What is asked besides the weights, against the shape of the layer.
inline void check_extras(const char* op, const CellFacts& cell, const LayerShape& s, const at::Tensor& x,
                         const Asked& asked) {
  const auto check = [&](const char* name, const at::Tensor& t, std::vector<int64_t> sizes, bool type,
                         const char* wanted) {
    TORCH_CHECK(type && t.sizes() == at::IntArrayRef(sizes) && t.device() == x.device(), op, ": ", name, " must be ",
                wanted, " ", at::IntArrayRef(sizes), " on ", x.device(), ", got ", t.scalar_type(), " ", t.sizes(),
                " on ", t.device());
  };
  if (asked.lengths) {
    const at::Tensor& t = *asked.lengths;
    TORCH_CHECK(!asked.batch_sizes, op, ": lengths are for padded batches, but there are batch_sizes");
    TORCH_CHECK(at::isIntegralType(t.scalar_type(), false) && t.sizes() == at::IntArrayRef({s.B}), op,
                ": lengths must be integers [", s.B, "] (batch), got ", t.scalar_type(), " ", t.sizes());
    TORCH_CHECK(t.is_cpu() || t.device() == x.device(), op, ": lengths must be on the CPU or on ", x.device(), ", got ",
                t.device());
  }
  if (asked.reset) {
    TORCH_CHECK(!asked.batch_sizes, op, ": reset is for padded batches, but there are batch_sizes");
    check("reset", *asked.reset, {s.T, s.B}, asked.reset->scalar_type() == at::kBool, "bool");
  }
  if (asked.recurrent_mask)
    check("recurrent_mask", *asked.recurrent_mask, {s.D, s.B, s.P}, asked.recurrent_mask->is_floating_point(),
          "floating point");
  const auto check_zone = [&](const char* name, const MaybeTensor& zone, int64_t width) {
    if (!zone) return;
    std::vector<int64_t> sizes{s.D};
    sizes.insert(sizes.end(), x.sizes().begin(), x.sizes().end() - 1);
    sizes.push_back(width);
    check(name, *zone, sizes, zone->scalar_type() == at::kByte, "uint8");
  };
  const size_t states = cell.has_c ? 2 : 1;
  TORCH_CHECK(
      bool(asked.zoneout_c) == (asked.zoneout_h && cell.has_c), op, ": zoneout_c must ",
      asked.zoneout_h && cell.has_c ? "come with zoneout_h" : "not be given without zoneout_h or for cells without c");
  check_zone("zoneout_h", asked.zoneout_h, s.P);
  check_zone("zoneout_c", asked.zoneout_c, s.H);
  TORCH_CHECK(asked.zoneout.empty() || asked.zoneout.size() == states, op, ": zoneout must hold ", states,
              " numbers or none, got ", asked.zoneout.size());
  for (double share : asked.zoneout)
    TORCH_CHECK(share >= 0 && share <= 1, op, ": zoneout must be between 0 and 1, got ", share);
  TORCH_CHECK(!asked.all_states || cell.has_c, op, ": all_states is for cells with a state c");
  TORCH_CHECK(asked.bptt_steps >= 0, op, ": bptt_steps must not be negative, got ", asked.bptt_steps);
}

}  // namespace adl
