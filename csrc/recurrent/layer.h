// One call of a layer as the ops see it, on any device: arguments checked, converted and made contiguous.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/pointer.h"
#include "recurrent/results.h"

namespace adl {

// The shape of one layer, read off its arguments.
struct LayerShape {
  int64_t T, B, N, I, H, P, D;
  WeightPlaces at;
  bool bias, projection;
};

// Everything that would otherwise corrupt memory is checked here, once for every call.
LayerShape check_layer(const char* op, const CellFacts& cell, const Tensor& x, at::TensorList hx,
                       at::TensorList weights, const LayerOptions& options);

// The batch sizes as a vector: those given, or B at each of T steps.
std::vector<int64_t> check_batch_sizes(const char* op, const Tensor& x, const Tensor& h_0, const MaybeTensor& given);

// Every trip through the dispatcher counts in a call of one step: none that changes nothing.
inline Tensor to_type(const Tensor& t, at::ScalarType type) { return t.scalar_type() == type ? t : t.to(type); }
inline Tensor prepare(const Tensor& t, at::ScalarType type) { return to_type(with_memory(t), type).contiguous(); }

template <class T>
T* pointer(const Tensor& t, int64_t direction) {
  T* p = pointer<T>(t);
  return p ? p + direction * t.stride(0) : nullptr;
}

struct Layer {
  const CellFacts& cell;
  const LayerOptions& options;
  LayerShape s;
  at::ScalarType type;
  Tensor x;
  Tensors hx, weights;
  std::vector<int64_t> batch_sizes, offsets{0};

  // Options made ready; tensors undefined where they are not given.
  Tensor lengths, reset, mask;  // int64 where it was given, bool, of `type`
  Tensor zoneout_h, zoneout_c;  // uint8
  double zoneout[2] = {0, 0};
  bool has_zoneout;
  bool has_own_weights;  // whether no weight had to be converted or copied
  Choice choice;

  // `type`: what the layer is computed in. Keeps references to `cell` and `options`.
  Layer(const char* op, const CellFacts& cell, at::ScalarType type, const Tensor& x_in, at::TensorList hx_in,
        at::TensorList weights_in, const LayerOptions& options);

  bool empty() const { return s.N == 0 || s.H == 0; }
  // An output that is not what the cell made does not tell what that was; with layer norm gates are the products.
  bool saves_gates() const { return cell.saves_gates || has_zoneout || options.layer_norm; }
  int64_t saved_per_unit() const { return options.layer_norm ? 2 * cell.gates : cell.pre; }

  // Weight `place` of direction d; null where place < 0, or for one without elements.
  template <class T>
  T* weight(int64_t d, int place) const {
    return place < 0 ? nullptr : pointer<T>(weights[d * s.at.count + place]);
  }

  // Of rows of so many features in each direction.
  std::vector<int64_t> row_sizes(int64_t width) const {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = s.D * width;
    return sizes;
  }
};

}  // namespace adl
