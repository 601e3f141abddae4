// One layer as the ops see it, on any device: arguments checked, converted and made contiguous.
#pragma once

#include <ATen/core/Tensor.h>

#include "cells/cells.h"
#include "ops/checks.h"

namespace adl {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// Every trip through the dispatcher counts in a call of one step: none that changes nothing.
Tensor to_type(const Tensor& t, at::ScalarType type) { return t.scalar_type() == type ? t : t.to(type); }

Tensor prepare(const Tensor& t, at::ScalarType type) { return to_type(t, type).contiguous(); }

Tensors prepare(at::TensorList list, at::ScalarType type) {
  Tensors out;
  out.reserve(list.size());
  for (const Tensor& t : list) out.push_back(prepare(t, type));
  return out;
}

// Null for a tensor without elements: what is not wanted is passed as an empty tensor.
template <class T>
T* pointer(const Tensor& t) {
  return t.defined() && t.numel() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

template <class T>
T* pointer(const Tensor& t, int64_t direction) {
  T* p = pointer<T>(t);
  return p ? p + direction * t.stride(0) : nullptr;
}

template <class Cell>
struct Layer {
  LayerShape s;
  at::ScalarType type;
  Tensor x;
  Tensors hx, weights;
  std::vector<int64_t> batch_sizes, offsets{0};

  // `compute_type`: of an op's name and x, what the layer is computed in.
  Layer(const char* op, at::ScalarType (*compute_type)(const char*, const Tensor&), const Tensor& x_in,
        at::TensorList hx_in, at::TensorList weights_in, const std::optional<Tensor>& sizes)
      : s(check_layer(op, Cell::kGates, Cell::kHasC, x_in, hx_in, weights_in, sizes)),
        type(compute_type(op, x_in)),
        x(prepare(x_in, type)),
        hx(prepare(hx_in, type)),
        weights(prepare(weights_in, type)),
        batch_sizes(check_batch_sizes(op, x_in, hx_in[0], sizes)) {
    for (int64_t size : batch_sizes) offsets.push_back(offsets.back() + size);
  }

  bool empty() const { return s.N == 0 || s.H == 0; }

  std::vector<int64_t> y_sizes() const {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = s.D * s.P;
    return sizes;
  }
};

}  // namespace
}  // namespace adl
