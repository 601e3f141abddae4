// One layer as the ops see it, on any device: arguments checked, converted and made contiguous.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>

#include "recurrent/cells/cells.h"
#include "recurrent/checks.h"

namespace adl {
namespace {

// Every trip through the dispatcher counts in a call of one step: none that changes nothing.
Tensor to_type(const Tensor& t, at::ScalarType type) { return t.scalar_type() == type ? t : t.to(type); }

Tensor prepare(const Tensor& t, at::ScalarType type) { return to_type(t, type).contiguous(); }

Tensors prepare(at::TensorList list, at::ScalarType type) {
  Tensors out;
  out.reserve(list.size());
  for (const Tensor& t : list) out.push_back(prepare(t, type));
  return out;
}

Tensor prepare(const MaybeTensor& t, at::ScalarType type) { return t ? prepare(*t, type) : Tensor(); }

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
  static constexpr CellFacts kFacts{Cell::kGates, Cell::kPeepholes, Cell::kHasC};
  static constexpr int64_t kStates = Cell::kHasC ? 2 : 1;

  LayerShape s;
  at::ScalarType type;
  Tensor x;
  Tensors hx, weights;
  std::vector<int64_t> batch_sizes, offsets{0};

  // What is asked besides; tensors undefined where it is not.
  Tensor lengths, reset, mask;  // int64 where it was given, bool, of `type`
  Tensor zoneout_h, zoneout_c;  // uint8
  double zoneout[2] = {0, 0};
  bool has_zoneout, layer_norm, all_states;
  Choice choice;
  int64_t bptt_steps;

  // `compute_type`: of an op's name and x, what the layer is computed in.
  Layer(const char* op, at::ScalarType (*compute_type)(const char*, const Tensor&), const Tensor& x_in,
        at::TensorList hx_in, at::TensorList weights_in, const Asked& asked)
      : s(check_layer(op, kFacts, x_in, hx_in, weights_in, asked)),
        type(compute_type(op, x_in)),
        x(prepare(x_in, type)),
        hx(prepare(hx_in, type)),
        weights(prepare(weights_in, type)),
        batch_sizes(check_batch_sizes(op, x_in, hx_in[0], asked.batch_sizes)),
        lengths(prepare(asked.lengths, at::kLong)),
        reset(prepare(asked.reset, at::kBool)),
        mask(prepare(asked.recurrent_mask, type)),
        zoneout_h(prepare(asked.zoneout_h, at::kByte)),
        zoneout_c(prepare(asked.zoneout_c, at::kByte)),
        has_zoneout(asked.zoneout_h || !asked.zoneout.empty()),
        layer_norm(asked.layer_norm),
        all_states(asked.all_states),
        bptt_steps(asked.bptt_steps) {
    check_extras(op, kFacts, s, x_in, asked);
    if (lengths.defined() && lengths.is_cpu()) check_lengths(op, lengths, s.T);
    std::copy(asked.zoneout.begin(), asked.zoneout.end(), zoneout);
    constexpr bool kChooses = Cell::kPeepholes > 0;
    choice.cell = check_activation(op, "cell_activation", asked.cell_activation, kChooses);
    choice.hidden = check_activation(op, "hidden_activation", asked.hidden_activation, kChooses);
    for (int64_t size : batch_sizes) offsets.push_back(offsets.back() + size);
  }

  bool empty() const { return s.N == 0 || s.H == 0; }
  // An output that is not what the cell made does not tell what that was; with layer norm gates are the products.
  bool saves_gates() const { return Cell::kSavesGates || has_zoneout || layer_norm; }
  int64_t saved_per_unit() const { return layer_norm ? 2 * Cell::kGates : Cell::kPre; }

  // Of rows of so many features in each direction.
  std::vector<int64_t> row_sizes(int64_t width) const {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = s.D * width;
    return sizes;
  }
};

}  // namespace
}  // namespace adl
