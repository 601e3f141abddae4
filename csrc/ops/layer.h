// One layer as the CPU ops see it: arguments checked, converted and laid out for the scans.
#pragma once

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <thread>

#include "cpu/kernels.h"
#include "ops/checks.h"
#include "ops/fork.h"

namespace adl {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// What is computed in; float16 is converted at the door, and what is saved for it is float.
at::ScalarType compute_type(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble:
    case at::kFloat:
    case at::kBFloat16:
      return x.scalar_type();
    case at::kHalf:
      return at::kFloat;
    default:
      TORCH_CHECK(false, op, ": x must be float64, float32, bfloat16 or float16, got ", x.scalar_type());
  }
}

// Every trip through the dispatcher counts in a call of one step: none that changes nothing.
Tensor to_type(const Tensor& t, at::ScalarType type) { return t.scalar_type() == type ? t : t.to(type); }

Tensor prepare(const Tensor& t, at::ScalarType type) { return to_type(t, type).contiguous(); }

Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  return at::detail::empty_cpu(sizes, type, /*pin_memory=*/false, std::nullopt);
}

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

// A call below this many operations is over before a second thread has woken up.
constexpr int64_t kWorthAThread = 1 << 20;

template <class Cell>
struct Layer {
  LayerShape s;
  at::ScalarType type;
  Tensor x;
  Tensors hx, weights;
  std::vector<int64_t> batch_sizes, offsets{0};

  Layer(const char* op, const Tensor& x_in, at::TensorList hx_in, at::TensorList weights_in,
        const std::optional<Tensor>& sizes)
      : s(check_layer(op, Cell::kGates, Cell::kHasC, x_in, hx_in, weights_in, sizes)),
        type(compute_type(op, x_in)),
        x(prepare(x_in, type)),
        hx(prepare(hx_in, type)),
        weights(prepare(weights_in, type)),
        batch_sizes(check_batch_sizes(op, x_in, hx_in[0], sizes)) {
    for (int64_t size : batch_sizes) offsets.push_back(offsets.back() + size);
  }

  bool empty() const { return s.N == 0 || s.H == 0; }

  Sequence sequence(int64_t d) const {
    const int64_t work = 2 * s.N * Cell::kGates * s.H * (s.I + s.P);
    const bool serial = at::in_parallel_region() || work < kWorthAThread;
    return {s.T, s.B, s.N, batch_sizes.data(), offsets.data(), d == 1, serial ? 1 : at::get_num_threads()};
  }

  template <class T>
  Weights<T> weights_of(int64_t d) const {
    const Tensor* w = weights.data() + d * s.per_direction;
    Weights<T> out{s.I, s.H, s.P, pointer<T>(w[0]), pointer<T>(w[1]), nullptr, nullptr, nullptr};
    if (s.bias) out.b_ih = pointer<T>(w[2]), out.b_hh = pointer<T>(w[3]);
    if (s.projection) out.w_hr = pointer<T>(w[s.per_direction - 1]);
    return out;
  }

  std::vector<int64_t> y_sizes() const {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = s.D * s.P;
    return sizes;
  }

  // gates [D, J, N, pre, U] and c [D, J, N, U], J blocks of U units; h_cell [D, N, H] with a projection.
  std::vector<std::vector<int64_t>> saved_sizes() const {
    constexpr int64_t U = unit_block(Cell::kGates);
    const int64_t J = blocks(s.H, U);
    std::vector<std::vector<int64_t>> sizes;
    if (Cell::kSavesGates) sizes.push_back({s.D, J, s.N, Cell::kPre, U});
    if (Cell::kHasC) sizes.push_back({s.D, J, s.N, U});
    if (s.projection) sizes.push_back({s.D, s.N, s.H});
    return sizes;
  }
};

// The kernels for tensors of type T, which `type` was converted to. Float32 layers follow
// torch.set_float32_matmul_precision: "medium" allows products in bfloat16.
template <class T>
const Kernels<T>& kernels_for(at::ScalarType type) {
  if constexpr (std::is_same_v<T, float>) {
    const bool rounds = at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM;
    if (type == at::kFloat && rounds && rounding_kernels()) return *rounding_kernels();
  }
  return kernels<T>();
}

// Calls f with a number of the C++ type that this type is computed in.
template <class F>
void with_number(at::ScalarType type, F f) {
  if (type == at::kDouble) return f(double{});
  if (type == at::kBFloat16) return f(BFloat16{});
  f(float{});
}

template <class Params>
void call(int64_t (*scratch)(const Params&), void (*kernel)(const Params&, void*), const Params& params) {
  const Tensor memory = empty({scratch(params)}, at::kByte);
  if (params.sequence.threads > 1 && lost_its_team())
    std::thread(kernel, params, memory.mutable_data_ptr()).join();
  else
    kernel(params, memory.mutable_data_ptr());
}

}  // namespace
}  // namespace adl
