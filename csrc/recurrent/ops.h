// The ops of a cell on any device: check, allocate, call the engine.
//
// An engine has
//   compute_type(op, x)                 what a layer is computed in, and what is saved for it
//   empty(sizes, type, x)               a tensor on the device of x
//   saved_sizes(layer)                  of the tensors kept for backward
//   forward(layer, type, y, h_n, all_c, saved)             type: that of x as it was given
//   backward(layer, type, grads, y, saved, out)            grads of y, each final state and all c, undefined for zeros
// and is not called for layers without elements. Where sequences end early y and all c are zero, the final states the
// initial ones, and so their gradients: the engine overwrites what has a step.
#pragma once

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "recurrent/layer.h"

namespace adl {
namespace {

template <class Engine, class Cell>
Tensors forward(const Tensor& x, at::TensorList hx, at::TensorList weights, const Asked& asked, bool save) {
  const Layer<Cell> layer(Cell::kName, Engine::compute_type, x, hx, weights, asked);
  const bool ragged = layer.lengths.defined();
  const auto rows = [&](int64_t width) {
    const Tensor t = Engine::empty(layer.row_sizes(width), layer.type, x);
    if (ragged) t.zero_();
    return t;
  };
  const Tensor y = rows(layer.s.P);
  Tensors h_n, saved;
  for (const Tensor& h : layer.hx)
    h_n.push_back(layer.empty() || ragged ? h.clone() : Engine::empty(h.sizes(), layer.type, x));
  const Tensor all_c = layer.all_states ? rows(layer.s.H) : Tensor();
  if (save)
    for (const auto& sizes : Engine::saved_sizes(layer)) saved.push_back(Engine::empty(sizes, layer.type, x));
  if (!layer.empty()) Engine::forward(layer, x.scalar_type(), y, h_n, all_c, saved);
  Tensors out{to_type(y, x.scalar_type())};
  for (const Tensor& h : h_n) out.push_back(to_type(h, x.scalar_type()));
  if (layer.all_states) out.push_back(to_type(all_c, x.scalar_type()));
  out.insert(out.end(), saved.begin(), saved.end());
  return out;
}

template <class Engine, class Cell, bool save>
struct ForwardOp {
  static Tensors call(const Tensor& x, at::TensorList hx, at::TensorList weights, const Asked& asked) {
    return forward<Engine, Cell>(x, hx, weights, asked, save);
  }
};

void check_tensor_of_forward(const char* op, const char* name, const Tensor& t, at::IntArrayRef sizes,
                             const Tensor& x) {
  TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == x.scalar_type() && t.device() == x.device() && t.is_contiguous(),
              op, ": ", name, " must be as the forward op left it, contiguous ", x.scalar_type(), " ", sizes, ", got ",
              t.scalar_type(), " ", t.sizes());
}

template <class Engine, class Cell>
struct BackwardOp {
  static Tensors call(const c10::List<MaybeTensor>& grads_in, const Tensor& x, at::TensorList hx,
                      at::TensorList weights, const Asked& asked, const Tensor& y_in, at::TensorList saved,
                      const c10::List<bool>& needs) {
    static const std::string name = std::string(Cell::kName) + "_backward";
    const char* op = name.c_str();
    const Layer<Cell> layer(op, Engine::compute_type, x, hx, weights, asked);
    const Tensor y = prepare(y_in, layer.type);
    check_tensor_of_forward(op, "y", y, layer.row_sizes(layer.s.P), layer.x);
    const auto saved_sizes = Engine::saved_sizes(layer);
    TORCH_CHECK(saved.size() == saved_sizes.size(), op, ": saved must hold ", saved_sizes.size(), " tensors, got ",
                saved.size());
    for (size_t k = 0; k < saved.size(); ++k) check_tensor_of_forward(op, "saved", saved[k], saved_sizes[k], layer.x);
    TORCH_CHECK(needs.size() == 1 + weights.size(), op, ": needs must have an entry for x and each of the ",
                weights.size(), " weights, got ", needs.size());
    const size_t outputs = 1 + hx.size() + layer.all_states;
    TORCH_CHECK(grads_in.size() == outputs, op, ": grads must have an entry for y",
                layer.all_states ? ", each final state and all c, " : " and each final state, ", outputs,
                " in all, got ", grads_in.size());
    Tensors grads;
    for (size_t k = 0; k < outputs; ++k) {
      const MaybeTensor grad = grads_in.get(k);
      grads.push_back(grad && grad->defined() ? prepare(*grad, layer.type) : Tensor());
      const std::vector<int64_t> sizes = k == 0          ? y.sizes().vec()
                                         : k > hx.size() ? layer.row_sizes(layer.s.H)
                                                         : hx[k - 1].sizes().vec();
      if (grads[k].defined()) check_tensor_of_forward(op, "a gradient", grads[k], sizes, layer.x);
    }

    Tensors out;
    const bool ragged = layer.lengths.defined();
    const auto allocate = [&](const Tensor& like, bool wanted) {
      if (!wanted)
        out.push_back(Engine::empty({0}, layer.type, x));
      else if (layer.empty() || ragged)
        out.push_back(at::zeros(like.sizes(), layer.x.options()));
      else
        out.push_back(Engine::empty(like.sizes(), layer.type, x));
    };
    allocate(x, needs.get(0));
    for (const Tensor& h : hx) allocate(h, true);
    for (size_t k = 0; k < weights.size(); ++k) allocate(weights[k], needs.get(k + 1));
    if (layer.empty() || ragged)
      for (size_t k = 1; k <= hx.size(); ++k)
        if (grads[k].defined()) out[k].copy_(grads[k]);
    if (!layer.empty()) Engine::backward(layer, x.scalar_type(), grads, y, saved, out);
    for (Tensor& t : out) t = to_type(t, x.scalar_type());
    return out;
  }
};

template <class Engine, class Cell>
void implement(torch::Library& m) {
  const std::string name = Cell::kName;
  m.impl(name.c_str(), Signature::forward<ForwardOp<Engine, Cell, false>>);
  m.impl((name + "_forward").c_str(), Signature::forward<ForwardOp<Engine, Cell, true>>);
  m.impl((name + "_backward").c_str(), Signature::backward<BackwardOp<Engine, Cell>>);
}

}  // namespace
}  // namespace adl
