// One call on a layer as the CUDA ops see it.
#pragma once

#include <ATen/ops/empty.h>

#include <cstdlib>
#include <cstring>

#include "cuda/kernels.h"
#include "ops/gpu.h"

namespace adl {
namespace {

// Gates gate .. gate + count - 1 of the weights, whose products are pre-activations pre .. pre + count - 1.
struct Run {
  int64_t gate, pre, count;
};

template <int n>
std::vector<Run> runs(const int (&map)[n]) {
  std::vector<Run> out;
  for (int k = 0; k < n; ++k) {
    if (k > 0 && map[k] == map[k - 1] + 1)
      ++out.back().count;
    else
      out.push_back({k, map[k], 1});
  }
  return out;
}

template <class Cell, class T>
struct GpuLayer {
  static constexpr int64_t kGates = Cell::kGates, kPre = Cell::kPre;

  const char* op;
  const Layer<Cell>& layer;
  const LayerShape& s;
  const Device device;
  const cuda::Kernels<T>& kernels;
  const cuda::CellKernels<T>& cell;
  Tensor offsets;  // on the device; undefined where all steps have all sequences

  GpuLayer(const char* op, const Layer<Cell>& layer)
      : op(op),
        layer(layer),
        s(layer.s),
        device(layer.x),
        kernels(cuda::kernels<T>()),
        cell(kernels.cells[index_of<Cell>()]) {
    if (layer.batch_sizes.front() == layer.batch_sizes.back()) return;
    offsets = buffer({s.T + 1}, at::kLong);
    check(cuda::store_numbers(layer.offsets.data(), s.T + 1, pointer<int64_t>(offsets), device.stream()));
  }

  void check(cudaError_t error) const {
    TORCH_CHECK(error == cudaSuccess, op, ": a CUDA kernel could not be launched: ", cudaGetErrorString(error));
  }

  Tensor buffer(at::IntArrayRef sizes, at::ScalarType type) const {
    return at::empty(sizes, layer.x.options().dtype(type));
  }

  const T* x() const { return pointer<T>(layer.x); }
  const T* hx(int64_t k, int64_t d) const { return pointer<T>(layer.hx[k], d); }
  const T* weight(int64_t d, int64_t k) const { return pointer<T>(layer.weights[d * s.per_direction + k]); }
  const T* w_ih(int64_t d) const { return weight(d, 0); }
  const T* w_hh(int64_t d) const { return weight(d, 1); }
  const T* w_hr(int64_t d) const { return weight(d, s.per_direction - 1); }

  // Of step t, and of the i-th step of the scan of direction d.
  int64_t row(int64_t t) const { return layer.offsets[t]; }
  int64_t count(int64_t t) const { return layer.batch_sizes[t]; }
  int64_t step(int64_t d, int64_t i) const { return d == 1 ? s.T - 1 - i : i; }
  Before before(int64_t d, int64_t t) const {
    const int64_t other = d == 1 ? t + 1 : t - 1;
    return other < 0 || other >= s.T ? Before{0, 0} : Before{row(other), count(other)};
  }
  Steps steps(int64_t d) const { return {s.T, s.B, pointer<int64_t>(offsets), d == 1, 0, s.T}; }

  // Whether the block-resident tier serves this layer. ADL_CUDA_TIER=streaming or block overrules the choice.
  bool in_blocks(bool backward) const {
    const char* wanted = std::getenv("ADL_CUDA_TIER");
    const bool fits = !s.projection && cell.block_fits && cell.block_fits(s.H, backward, allows_tf32(), device.facts());
    TORCH_CHECK(fits || !wanted || std::strcmp(wanted, "block") != 0, op,
                ": ADL_CUDA_TIER=block does not serve hidden size ", s.H, " in ", layer.type,
                s.projection ? " with a projection" : "");
    return fits && !(wanted && std::strcmp(wanted, "streaming") == 0);
  }
};

}  // namespace
}  // namespace adl
