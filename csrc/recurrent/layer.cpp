#include "recurrent/layer.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <string>

namespace adl {
namespace {

void check_tensor(const char* op, const char* what, const Tensor& t, at::IntArrayRef sizes, const char* meaning,
                  const Tensor& x, bool reverse = false) {
  if (t.sizes() == sizes && t.scalar_type() == x.scalar_type() && t.device() == x.device()) return;
  const std::string name = std::string(what) + (reverse ? " of the reverse direction" : "");
  TORCH_CHECK(t.sizes() == sizes, op, ": ", name, " must be ", sizes, " (", meaning, "), got ", t.sizes());
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the dtype of x, ", x.scalar_type(),
              ", got ", t.scalar_type());
  TORCH_CHECK(t.device() == x.device(), op, ": ", name, " must be on the device of x, ", x.device(), ", got ",
              t.device());
}

// Of lengths on the CPU; those on a GPU are not looked at, which would take waiting for it.
void check_lengths(const char* op, const Tensor& lengths, int64_t T) {
  const int64_t* p = pointer<int64_t>(lengths);
  for (int64_t b = 0; b < lengths.numel(); ++b) {
    TORCH_CHECK(p[b] >= 0, op, ": lengths[", b, "] = ", p[b], " is negative");
    TORCH_CHECK(p[b] <= T, op, ": lengths[", b, "] = ", p[b], " exceeds T = ", T);
  }
}

Squash check_activation(const char* op, const char* name, std::string_view given, bool chooses) {
  constexpr const char* kNames[] = {"tanh", "sigmoid", "relu", "identity"};
  for (int k = 0; k < 4; ++k)
    if (given == kNames[k] && (k == 0 || chooses)) return Squash(k);
  TORCH_CHECK(false, op, ": ", name, " must be ", chooses ? "tanh, sigmoid, relu or identity" : "tanh for this cell",
              ", got ", given);
}

// The options other than those that say which weights there are.
void check_options(const char* op, const CellFacts& cell, const LayerShape& s, const Tensor& x,
                   const LayerOptions& options) {
  const auto check = [&](const char* name, const Tensor& t, std::vector<int64_t> sizes, bool type, const char* wanted) {
    TORCH_CHECK(type && t.sizes() == at::IntArrayRef(sizes) && t.device() == x.device(), op, ": ", name, " must be ",
                wanted, " ", at::IntArrayRef(sizes), " on ", x.device(), ", got ", t.scalar_type(), " ", t.sizes(),
                " on ", t.device());
  };
  if (options.lengths) {
    const Tensor& t = *options.lengths;
    TORCH_CHECK(!options.batch_sizes, op, ": lengths are for padded batches, but there are batch_sizes");
    TORCH_CHECK(at::isIntegralType(t.scalar_type(), false) && t.sizes() == at::IntArrayRef({s.B}), op,
                ": lengths must be integers [", s.B, "] (batch), got ", t.scalar_type(), " ", t.sizes());
    TORCH_CHECK(t.is_cpu() || t.device() == x.device(), op, ": lengths must be on the CPU or on ", x.device(), ", got ",
                t.device());
  }
  if (options.reset) {
    TORCH_CHECK(!options.batch_sizes, op, ": reset is for padded batches, but there are batch_sizes");
    check("reset", *options.reset, {s.T, s.B}, options.reset->scalar_type() == at::kBool, "bool");
  }
  if (options.recurrent_mask)
    check("recurrent_mask", *options.recurrent_mask, {s.D, s.B, s.P}, options.recurrent_mask->is_floating_point(),
          "floating point");
  const auto check_zone = [&](const char* name, const MaybeTensor& zone, int64_t width) {
    if (!zone) return;
    std::vector<int64_t> sizes{s.D};
    sizes.insert(sizes.end(), x.sizes().begin(), x.sizes().end() - 1);
    sizes.push_back(width);
    check(name, *zone, sizes, zone->scalar_type() == at::kByte, "uint8");
  };
  const bool with_c = options.zoneout_h && cell.has_c;
  TORCH_CHECK(bool(options.zoneout_c) == with_c, op, ": zoneout_c must ",
              with_c ? "come with zoneout_h" : "not be given without zoneout_h or for cells without c");
  check_zone("zoneout_h", options.zoneout_h, s.P);
  check_zone("zoneout_c", options.zoneout_c, s.H);
  const auto& zoneout = options.zoneout;
  TORCH_CHECK(zoneout.empty() || int64_t(zoneout.size()) == cell.states(), op, ": zoneout must hold ", cell.states(),
              " numbers or none, got ", zoneout.size());
  for (double share : zoneout)
    TORCH_CHECK(share >= 0 && share <= 1, op, ": zoneout must be between 0 and 1, got ", share);
  TORCH_CHECK(!options.all_states || cell.has_c, op, ": all_states is for cells with a state c");
  TORCH_CHECK(options.bptt_steps >= 0, op, ": bptt_steps must not be negative, got ", options.bptt_steps);
}

Tensors prepare(at::TensorList list, at::ScalarType type) {
  Tensors out;
  out.reserve(list.size());
  for (const Tensor& t : list) out.push_back(adl::prepare(t, type));
  return out;
}

Tensor prepare(const MaybeTensor& t, at::ScalarType type) { return t ? adl::prepare(*t, type) : Tensor(); }

}  // namespace

std::vector<int64_t> check_batch_sizes(const char* op, const Tensor& x, const Tensor& h_0, const MaybeTensor& given) {
  const int64_t B = h_0.size(1);
  if (!given) {
    TORCH_CHECK(x.size(1) == B, op, ": h_0 must have the batch size of x, ", x.size(1), ", got ", B);
    return std::vector<int64_t>(x.size(0), B);
  }
  const Tensor sizes = given->contiguous();
  const int64_t* p = pointer<int64_t>(sizes);
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

LayerShape check_layer(const char* op, const CellFacts& cell, const Tensor& x, at::TensorList hx,
                       at::TensorList weights, const LayerOptions& options) {
  const MaybeTensor& batch_sizes = options.batch_sizes;
  TORCH_CHECK(
      !batch_sizes || (batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong && batch_sizes->is_cpu()), op,
      ": batch_sizes must be a 1-D int64 tensor on the CPU, got ", batch_sizes->dim(), "-D ",
      batch_sizes->scalar_type(), " on ", batch_sizes->device());
  TORCH_CHECK(x.dim() == (batch_sizes ? 2 : 3), op, ": x must be ",
              batch_sizes ? "[N, I] with batch_sizes" : "[T, B, I]", ", got ", x.sizes());
  TORCH_CHECK(int64_t(hx.size()) == cell.states(), op, ": hx must hold ", cell.has_c ? "h_0 and c_0" : "h_0 alone",
              ", got ", hx.size(), " tensors");
  TORCH_CHECK(hx[0].dim() == 3, op, ": h_0 must be [D, B, P] (directions, batch, width of h), got ", hx[0].sizes());

  LayerShape s{};
  s.D = hx[0].size(0), s.B = hx[0].size(1), s.P = hx[0].size(2), s.I = x.size(-1);
  s.T = batch_sizes ? batch_sizes->size(0) : x.size(0);
  s.N = batch_sizes ? x.size(0) : x.size(0) * x.size(1);
  TORCH_CHECK(s.D == 1 || s.D == 2, op, ": h_0 must be of one or two directions, got ", hx[0].sizes());
  const int64_t count = weights.size();
  s.at = WeightPlaces::of(cell, options, count / s.D);
  TORCH_CHECK(count == s.at.count * s.D, op, ": weights must hold ", WeightPlaces::names(cell, options),
              " for each of ", s.D, " directions, got ", count, " tensors");
  s.bias = s.at.b_ih >= 0;
  s.projection = s.at.w_hr >= 0;
  TORCH_CHECK(!options.peephole || cell.peepholes > 0, op, ": this cell has no peepholes");
  TORCH_CHECK(!s.projection || cell.has_c, op, ": weight_hr is only for cells with a state c, got ", count, " weights");
  const int64_t gates = cell.gates;
  TORCH_CHECK(weights[0].dim() == 2 && weights[0].size(0) % gates == 0, op, ": weight_ih must be [", gates,
              " * H, I], got ", weights[0].sizes());
  s.H = weights[0].size(0) / gates;
  TORCH_CHECK(s.projection || s.P == s.H, op, ": h_0 must be as wide as the hidden size, ", s.H, ", got ",
              hx[0].sizes());

  check_tensor(op, "h_0", hx[0], {s.D, s.B, s.P}, "directions, batch, width of h", x);
  if (cell.has_c) check_tensor(op, "c_0", hx[1], {s.D, s.B, s.H}, "directions, batch, hidden size", x);
  for (int64_t d = 0; d < s.D; ++d) {
    const auto check = [&](const char* name, int place, at::IntArrayRef sizes, const char* meaning) {
      if (place >= 0) check_tensor(op, name, weights[d * s.at.count + place], sizes, meaning, x, d == 1);
    };
    const char* each = "gates * hidden size";
    check("weight_ih", s.at.w_ih, {gates * s.H, s.I}, "gates * hidden size, input size");
    check("weight_hh", s.at.w_hh, {gates * s.H, s.P}, "gates * hidden size, width of h");
    check("bias_ih", s.at.b_ih, {gates * s.H}, each);
    check("bias_hh", s.at.b_hh, {gates * s.H}, each);
    check("weight_hr", s.at.w_hr, {s.P, s.H}, "width of h, hidden size");
    check("weight_ch", s.at.w_ch, {cell.peepholes, s.H}, "gates that see c, hidden size");
    check("weight_ln_ih", s.at.ln_ih, {gates * s.H}, each);
    check("weight_ln_hh", s.at.ln_hh, {gates * s.H}, each);
    check("weight_ln_c", s.at.ln_c, {s.H}, "hidden size");
    check("bias_ln_c", s.at.b_ln_c, {s.H}, "hidden size");
  }
  return s;
}

Layer::Layer(const char* op, const CellFacts& cell, at::ScalarType type, const Tensor& x_in, at::TensorList hx_in,
             at::TensorList weights_in, const LayerOptions& options)
    : cell(cell),
      options(options),
      s(check_layer(op, cell, x_in, hx_in, weights_in, options)),
      type(type),
      x(adl::prepare(x_in, type)),
      hx(prepare(hx_in, type)),
      weights(prepare(weights_in, type)),
      batch_sizes(check_batch_sizes(op, x_in, hx_in[0], options.batch_sizes)),
      lengths(prepare(options.lengths, at::kLong)),
      reset(prepare(options.reset, at::kBool)),
      mask(prepare(options.recurrent_mask, type)),
      zoneout_h(prepare(options.zoneout_h, at::kByte)),
      zoneout_c(prepare(options.zoneout_c, at::kByte)),
      has_zoneout(options.has_zoneout()),
      has_own_weights(std::equal(weights.begin(), weights.end(), weights_in.begin(),
                                 [](const Tensor& a, const Tensor& b) { return a.is_same(b); })) {
  check_options(op, cell, s, x_in, options);
  if (lengths.defined() && lengths.is_cpu()) check_lengths(op, lengths, s.T);
  std::copy(options.zoneout.begin(), options.zoneout.end(), zoneout);
  choice.cell = check_activation(op, "cell_activation", options.cell_activation, cell.peepholes > 0);
  choice.hidden = check_activation(op, "hidden_activation", options.hidden_activation, cell.peepholes > 0);
  offsets.reserve(batch_sizes.size() + 1);
  for (int64_t size : batch_sizes) offsets.push_back(offsets.back() + size);
}

}  // namespace adl
