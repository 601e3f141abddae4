// The ops of a cell on any device: check, allocate, call the engine.
//
// An engine has
//   compute_type(op, x)                 what a layer is computed in, and what is saved for it
//   empty(sizes, type, x)               a tensor on the device of x
//   saved_sizes<Cell>(shape)            of the tensors kept for backward
//   forward(layer, type, y, h_n, saved)             type: that of x as it was given
//   backward(layer, type, grads, y, saved, out)     grads of y and each final state, undefined for zeros
// and is not called for layers without elements.
#pragma once

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "ops/layer.h"

namespace adl {
namespace {

template <class Engine, class Cell>
Tensors forward(const Tensor& x, at::TensorList hx, at::TensorList weights, const std::optional<Tensor>& batch_sizes,
                bool save) {
  const Layer<Cell> layer(Cell::kName, Engine::compute_type, x, hx, weights, batch_sizes);
  const Tensor y = Engine::empty(layer.y_sizes(), layer.type, x);
  Tensors h_n, saved;
  for (const Tensor& h : layer.hx) h_n.push_back(layer.empty() ? h.clone() : Engine::empty(h.sizes(), layer.type, x));
  if (save)
    for (const auto& sizes : Engine::template saved_sizes<Cell>(layer.s))
      saved.push_back(Engine::empty(sizes, layer.type, x));
  if (!layer.empty()) Engine::forward(layer, x.scalar_type(), y, h_n, saved);
  Tensors out{to_type(y, x.scalar_type())};
  for (const Tensor& h : h_n) out.push_back(to_type(h, x.scalar_type()));
  out.insert(out.end(), saved.begin(), saved.end());
  return out;
}

template <class Engine, class Cell>
Tensors forward_only(const Tensor& x, at::TensorList hx, at::TensorList weights,
                     const std::optional<Tensor>& batch_sizes) {
  return forward<Engine, Cell>(x, hx, weights, batch_sizes, false);
}

template <class Engine, class Cell>
Tensors forward_saving(const Tensor& x, at::TensorList hx, at::TensorList weights,
                       const std::optional<Tensor>& batch_sizes) {
  return forward<Engine, Cell>(x, hx, weights, batch_sizes, true);
}

void check_tensor_of_forward(const char* op, const char* name, const Tensor& t, at::IntArrayRef sizes,
                             const Tensor& x) {
  TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == x.scalar_type() && t.device() == x.device() && t.is_contiguous(),
              op, ": ", name, " must be as the forward op left it, contiguous ", x.scalar_type(), " ", sizes, ", got ",
              t.scalar_type(), " ", t.sizes());
}

template <class Engine, class Cell>
Tensors backward(const c10::List<std::optional<Tensor>>& grads_in, const Tensor& x, at::TensorList hx,
                 at::TensorList weights, const std::optional<Tensor>& batch_sizes, const Tensor& y_in,
                 at::TensorList saved, const c10::List<bool>& needs) {
  static const std::string name = std::string(Cell::kName) + "_backward";
  const char* op = name.c_str();
  const Layer<Cell> layer(op, Engine::compute_type, x, hx, weights, batch_sizes);
  const Tensor y = prepare(y_in, layer.type);
  check_tensor_of_forward(op, "y", y, layer.y_sizes(), layer.x);
  const auto saved_sizes = Engine::template saved_sizes<Cell>(layer.s);
  TORCH_CHECK(saved.size() == saved_sizes.size(), op, ": saved must hold ", saved_sizes.size(), " tensors, got ",
              saved.size());
  for (size_t k = 0; k < saved.size(); ++k) check_tensor_of_forward(op, "saved", saved[k], saved_sizes[k], layer.x);
  TORCH_CHECK(needs.size() == 1 + weights.size(), op, ": needs must have an entry for x and each of the ",
              weights.size(), " weights, got ", needs.size());
  TORCH_CHECK(grads_in.size() == 1 + hx.size(), op, ": grads must have an entry for y and each final state, ",
              1 + hx.size(), " in all, got ", grads_in.size());
  Tensors grads;
  for (size_t k = 0; k < grads_in.size(); ++k) {
    const std::optional<Tensor> grad = grads_in.get(k);
    grads.push_back(grad && grad->defined() ? prepare(*grad, layer.type) : Tensor());
    if (grads[k].defined())
      check_tensor_of_forward(op, "a gradient", grads[k], k == 0 ? y.sizes() : hx[k - 1].sizes(), layer.x);
  }

  Tensors out;
  const auto allocate = [&](const Tensor& like, bool wanted) {
    if (!wanted)
      out.push_back(Engine::empty({0}, layer.type, x));
    else if (layer.empty())
      out.push_back(at::zeros(like.sizes(), layer.x.options()));
    else
      out.push_back(Engine::empty(like.sizes(), layer.type, x));
  };
  allocate(x, needs.get(0));
  for (const Tensor& h : hx) allocate(h, true);
  for (size_t k = 0; k < weights.size(); ++k) allocate(weights[k], needs.get(k + 1));
  if (layer.empty()) {
    for (size_t k = 1; k < grads.size(); ++k)
      if (grads[k].defined()) out[k].copy_(grads[k]);
  } else {
    Engine::backward(layer, x.scalar_type(), grads, y, saved, out);
  }
  for (Tensor& t : out) t = to_type(t, x.scalar_type());
  return out;
}

template <class Engine, class Cell>
void implement(torch::Library& m) {
  const std::string name = Cell::kName;
  m.impl(name.c_str(), forward_only<Engine, Cell>);
  m.impl((name + "_forward").c_str(), forward_saving<Engine, Cell>);
  m.impl((name + "_backward").c_str(), backward<Engine, Cell>);
}

}  // namespace
}  // namespace adl
