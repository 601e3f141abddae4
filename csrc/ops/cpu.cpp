// The ops on the CPU: fill the structs, call the scan.
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include <thread>

#include "cpu/kernels.h"
#include "ops/fork.h"
#include "ops/recurrent.h"

namespace adl {
namespace {

// A call below this many operations is over before a second thread has woken up.
constexpr int64_t kWorthAThread = 1 << 20;

template <class Cell>
Sequence sequence(const Layer<Cell>& layer, int64_t d) {
  const LayerShape& s = layer.s;
  const int64_t work = 2 * s.N * Cell::kGates * s.H * (s.I + s.P);
  const bool serial = at::in_parallel_region() || work < kWorthAThread;
  return {s.T, s.B, s.N, layer.batch_sizes.data(), layer.offsets.data(), d == 1, serial ? 1 : at::get_num_threads()};
}

template <class T, class Cell>
Weights<T> weights_of(const Layer<Cell>& layer, int64_t d) {
  const LayerShape& s = layer.s;
  const Tensor* w = layer.weights.data() + d * s.per_direction;
  Weights<T> out{s.I, s.H, s.P, pointer<T>(w[0]), pointer<T>(w[1]), nullptr, nullptr, nullptr};
  if (s.bias) out.b_ih = pointer<T>(w[2]), out.b_hh = pointer<T>(w[3]);
  if (s.projection) out.w_hr = pointer<T>(w[s.per_direction - 1]);
  return out;
}

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
  const Tensor memory = at::detail::empty_cpu({scratch(params)}, at::kByte, /*pin_memory=*/false, std::nullopt);
  if (params.sequence.threads > 1 && lost_its_team())
    std::thread(kernel, params, memory.mutable_data_ptr()).join();
  else
    kernel(params, memory.mutable_data_ptr());
}

template <class Cell, class T>
void scan_forward(const Layer<Cell>& layer, at::ScalarType type, const Tensor& y, const Tensors& h_n,
                  const Tensors& saved) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(type).cells[index_of<Cell>()];
  const bool save = !saved.empty();
  for (int64_t d = 0; d < s.D; ++d) {
    Forward<T> p{};
    p.sequence = sequence(layer, d);
    p.weights = weights_of<T>(layer, d);
    p.x = pointer<T>(layer.x);
    p.h_0 = pointer<T>(layer.hx[0], d);
    p.y = pointer<T>(y) + d * s.P;
    p.y_stride = s.D * s.P;
    p.h_n = pointer<T>(h_n[0], d);
    if (Cell::kHasC) p.c_0 = pointer<T>(layer.hx[1], d), p.c_n = pointer<T>(h_n[1], d);
    if (Cell::kSavesGates && save) p.gates = pointer<T>(saved[0], d);
    if (Cell::kHasC && save) p.c = pointer<T>(saved[1], d);
    if (s.projection && save) p.h_cell = pointer<T>(saved[2], d);
    call(kernel.forward_scratch, kernel.forward, p);
  }
}

template <class Cell, class T>
void scan_backward(const Layer<Cell>& layer, at::ScalarType type, const Tensors& grads, const Tensor& y,
                   at::TensorList saved, const Tensors& out) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(type).cells[index_of<Cell>()];
  for (int64_t d = 0; d < s.D; ++d) {
    Backward<T> p{};
    p.sequence = sequence(layer, d);
    p.weights = weights_of<T>(layer, d);
    p.x = pointer<T>(layer.x);
    p.h_0 = pointer<T>(layer.hx[0], d);
    p.y = pointer<T>(y) + d * s.P;
    p.y_stride = s.D * s.P;
    if (grads[0].defined()) p.dy = pointer<T>(grads[0]) + d * s.P;
    p.dh_n = pointer<T>(grads[1], d);
    p.dx = pointer<T>(out[0]);
    p.accumulate_dx = d > 0;
    p.dh_0 = pointer<T>(out[1], d);
    if (Cell::kSavesGates) p.gates = pointer<T>(saved[0], d);
    if (Cell::kHasC) {
      p.c_0 = pointer<T>(layer.hx[1], d);
      p.c = pointer<T>(saved[1], d);
      p.dc_n = pointer<T>(grads[2], d);
      p.dc_0 = pointer<T>(out[2], d);
    }
    if (s.projection) p.h_cell = pointer<T>(saved[2], d);
    const Tensor* dw = out.data() + (Cell::kHasC ? 3 : 2) + d * s.per_direction;
    p.dw_ih = pointer<T>(dw[0]);
    p.dw_hh = pointer<T>(dw[1]);
    if (s.bias) p.db_ih = pointer<T>(dw[2]), p.db_hh = pointer<T>(dw[3]);
    if (s.projection) p.dw_hr = pointer<T>(dw[s.per_direction - 1]);
    call(kernel.backward_scratch, kernel.backward, p);
  }
}

struct Cpu {
  // float16 is converted at the door, and what is saved for it is float.
  static at::ScalarType compute_type(const char* op, const Tensor& x) {
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

  static Tensor empty(at::IntArrayRef sizes, at::ScalarType type, const Tensor&) {
    return at::detail::empty_cpu(sizes, type, /*pin_memory=*/false, std::nullopt);
  }

  // gates [D, J, N, pre, U] and c [D, J, N, U], J blocks of U units; h_cell [D, N, H] with a projection.
  template <class Cell>
  static std::vector<std::vector<int64_t>> saved_sizes(const LayerShape& s) {
    constexpr int64_t U = unit_block(Cell::kGates);
    const int64_t J = blocks(s.H, U);
    std::vector<std::vector<int64_t>> sizes;
    if (Cell::kSavesGates) sizes.push_back({s.D, J, s.N, Cell::kPre, U});
    if (Cell::kHasC) sizes.push_back({s.D, J, s.N, U});
    if (s.projection) sizes.push_back({s.D, s.N, s.H});
    return sizes;
  }

  template <class Cell>
  static void forward(const Layer<Cell>& layer, at::ScalarType type, const Tensor& y, const Tensors& h_n,
                      const Tensors& saved) {
    with_number(layer.type, [&]<class T>(T) { scan_forward<Cell, T>(layer, type, y, h_n, saved); });
  }

  template <class Cell>
  static void backward(const Layer<Cell>& layer, at::ScalarType type, const Tensors& grads, const Tensor& y,
                       at::TensorList saved, const Tensors& out) {
    with_number(layer.type, [&]<class T>(T) { scan_backward<Cell, T>(layer, type, grads, y, saved, out); });
  }
};

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, CPU, m) {
#define ADL_IMPLEMENT(Cell) adl::implement<adl::Cpu, adl::Cell>(m);
  ADL_CELLS(ADL_IMPLEMENT)
#undef ADL_IMPLEMENT
}
