#include "recurrent/ops.h"

#include <ATen/ops/zeros.h>

#include <string>

namespace adl {
namespace {

Tensors forward(const Engine& engine, const CellFacts& cell, const Tensor& x, at::TensorList hx, at::TensorList weights,
                const LayerOptions& options, bool save) {
  const at::ScalarType given = x.scalar_type(), type = engine.compute_type(cell.name, x);
  const Layer layer(cell.name, cell, type, x, hx, weights, options);
  const bool ragged = layer.lengths.defined();
  const auto rows = [&](int64_t width) {
    const Tensor t = engine.empty(layer.row_sizes(width), type, x);
    if (ragged) t.zero_();
    return t;
  };
  const auto state = [&](const Tensor& h) {
    return layer.empty() || ragged ? h.clone() : engine.empty(h.sizes(), type, x);
  };
  Outputs out{rows(layer.s.P), state(layer.hx[0]), {}, {}};
  if (cell.has_c) out.c_n = state(layer.hx[1]);
  if (options.all_states) out.all_c = rows(layer.s.H);
  Saved saved;
  if (save)
    saved = Saved::of(engine.saved_sizes(layer), [&](const auto& sizes) { return engine.empty(sizes, type, x); });
  if (!layer.empty()) engine.forward(layer, given, out, saved);
  Tensors list = out.list();
  for (Tensor& t : list) t = to_type(t, given);
  for (Tensor& t : saved.list()) list.push_back(std::move(t));
  return list;
}

void check_left(const char* op, const char* name, const Tensor& t, at::IntArrayRef sizes, const Tensor& x) {
  TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == x.scalar_type() && t.device() == x.device() && t.is_contiguous(),
              op, ": ", name, " must be as the forward op left it, contiguous ", x.scalar_type(), " ", sizes, ", got ",
              t.scalar_type(), " ", t.sizes());
}

Tensors backward(const Engine& engine, const CellFacts& cell, const std::string& name,
                 const c10::List<MaybeTensor>& grads_in, const Tensor& x, at::TensorList hx, at::TensorList weights,
                 const LayerOptions& options, const Tensor& y_in, at::TensorList saved_in,
                 const c10::List<bool>& needs) {
  const char* op = name.c_str();
  const at::ScalarType given = x.scalar_type(), type = engine.compute_type(op, x);
  const Layer layer(op, cell, type, x, hx, weights, options);
  const Tensor y = prepare(y_in, type);
  check_left(op, "y", y, layer.row_sizes(layer.s.P), layer.x);
  size_t count = 0;
  const SavedSizes sizes = engine.saved_sizes(layer);
  const Saved saved = Saved::of(sizes, [&](const auto& each) {
    const Tensor kept = count < saved_in.size() ? saved_in[count] : Tensor();
    ++count;
    if (kept.defined()) check_left(op, "saved", kept, each, layer.x);
    return kept;
  });
  TORCH_CHECK(saved_in.size() == count, op, ": saved must hold ", count, " tensors, got ", saved_in.size());
  TORCH_CHECK(needs.size() == 1 + weights.size(), op, ": needs must have an entry for x and each of the ",
              weights.size(), " weights, got ", needs.size());
  const size_t outputs = Outputs::count(cell, options);
  TORCH_CHECK(grads_in.size() == outputs, op, ": grads must have an entry for y",
              options.all_states ? ", each final state and all c, " : " and each final state, ", outputs,
              " in all, got ", grads_in.size());
  Tensors list;
  for (size_t k = 0; k < outputs; ++k) {
    const MaybeTensor grad = grads_in.get(k);
    list.push_back(grad && grad->defined() ? prepare(*grad, type) : Tensor());
  }
  const Outputs grads = Outputs::of(cell, options, list);
  const auto check_grad = [&](const Tensor& grad, at::IntArrayRef wanted) {
    if (grad.defined()) check_left(op, "a gradient", grad, wanted, layer.x);
  };
  check_grad(grads.y, y.sizes());
  for (int64_t k = 0; k < cell.states(); ++k) check_grad(grads.state(k), hx[k].sizes());
  check_grad(grads.all_c, layer.row_sizes(layer.s.H));

  const bool ragged = layer.lengths.defined();
  const auto allocate = [&](const Tensor& like, bool wanted) {
    if (!wanted) return engine.empty({0}, type, x);
    if (layer.empty() || ragged) return at::zeros(like.sizes(), layer.x.options());
    return engine.empty(like.sizes(), type, x);
  };
  Gradients out{allocate(x, needs.get(0)), allocate(hx[0], true), {}, {}};
  if (cell.has_c) out.dc_0 = allocate(hx[1], true);
  for (size_t k = 0; k < weights.size(); ++k) out.dweights.push_back(allocate(weights[k], needs.get(k + 1)));
  if (layer.empty() || ragged)
    for (int64_t k = 0; k < cell.states(); ++k)
      if (grads.state(k).defined()) out.state(k).copy_(grads.state(k));
  if (!layer.empty()) engine.backward(layer, given, grads, y, saved, out);
  Tensors found = out.list();
  for (Tensor& t : found) t = to_type(t, given);
  return found;
}

}  // namespace

void implement(torch::Library& m, const Engine& engine) {
  for (const CellFacts& cell : kCellFacts) {
    const std::string name = cell.name, name_of_backward = name + "_backward";
    const auto op = [&](bool save) {
      return [&engine, &cell, save](const Tensor& x, at::TensorList hx,
                                    at::TensorList weights ADL_LAYER_OPTIONS(ADL_OPTION_PARAMETER)) {
        return forward(engine, cell, x, hx, weights, {ADL_LAYER_OPTIONS(ADL_OPTION_NAME)}, save);
      };
    };
    m.impl(name.c_str(), op(false));
    m.impl((name + "_forward").c_str(), op(true));
    m.impl(name_of_backward.c_str(),
           [&engine, &cell, name_of_backward](const c10::List<MaybeTensor>& grads, const Tensor& x, at::TensorList hx,
                                              at::TensorList weights ADL_LAYER_OPTIONS(ADL_OPTION_PARAMETER),
                                              const Tensor& y, at::TensorList saved, const c10::List<bool>& needs) {
             return backward(engine, cell, name_of_backward, grads, x, hx, weights,
                             {ADL_LAYER_OPTIONS(ADL_OPTION_NAME)}, y, saved, needs);
           });
  }
}

}  // namespace adl
