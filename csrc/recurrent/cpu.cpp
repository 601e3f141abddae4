// The ops on the CPU: fill the structs, call the scan.
#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <thread>

#include "common/fork.h"
#include "common/host_memory.h"
#include "recurrent/cpu/kernels.h"
#include "recurrent/cpu_parts.h"
#include "recurrent/ops.h"

namespace adl {
namespace {

// A call below this many operations is over before a second thread has woken up.
constexpr int64_t kWorthAThread = 1 << 20;

// The rows of a layer as the scan counts them. Where sequences end early: packed, the longest first.
template <class Cell>
struct Rows {
  const Layer<Cell>& layer;
  std::vector<int64_t> batch_sizes, offsets, order, places;

  explicit Rows(const Layer<Cell>& given) : layer(given) {
    if (!layer.lengths.defined()) return;
    const LayerShape& s = layer.s;
    const int64_t* lengths = layer.lengths.template const_data_ptr<int64_t>();
    for (int64_t b = 0; b < s.B; ++b)
      if (lengths[b] > 0) order.push_back(b);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    offsets.push_back(0);
    int64_t count = order.size();
    for (int64_t t = 0; count > 0; ++t) {
      while (count > 0 && lengths[order[count - 1]] <= t) --count;
      for (int64_t b = 0; b < count; ++b) places.push_back(t * s.B + order[b]);
      if (count > 0) batch_sizes.push_back(count), offsets.push_back(offsets.back() + count);
    }
  }

  Sequence sequence(int64_t d) const {
    const LayerShape& s = layer.s;
    const int64_t work = 2 * s.N * Cell::kGates * s.H * (s.I + s.P);
    const bool serial = at::in_parallel_region() || work < kWorthAThread;
    Sequence out{
        s.T, s.B, s.N, layer.batch_sizes.data(), layer.offsets.data(), d == 1, serial ? 1 : at::get_num_threads()};
    if (layer.lengths.defined()) {
      out.T = batch_sizes.size(), out.B = order.size(), out.N = places.size();
      out.batch_sizes = batch_sizes.data(), out.offsets = offsets.data();
      out.places = places.data(), out.order = order.data();
    }
    out.resets = pointer<bool>(layer.reset);
    out.bptt_steps = layer.bptt_steps;
    return out;
  }
};

template <class T, class Cell>
Weights<T> weights_of(const Layer<Cell>& layer, int64_t d) {
  const LayerShape& s = layer.s;
  const Tensor* w = layer.weights.data() + d * s.per_direction;
  Weights<T> out{};
  out.I = s.I, out.H = s.H, out.P = s.P;
  out.w_ih = pointer<T>(w[0]), out.w_hh = pointer<T>(w[1]);
  if (s.bias) out.b_ih = pointer<T>(w[2]), out.b_hh = pointer<T>(w[3]);
  if (s.projection) out.w_hr = pointer<T>(w[s.w_hr]);
  if (s.w_ch >= 0) out.w_ch = pointer<T>(w[s.w_ch]);
  if (s.ln >= 0) out.ln_ih = pointer<T>(w[s.ln]), out.ln_hh = pointer<T>(w[s.ln + 1]);
  if (s.ln >= 0 && Cell::kHasC) out.ln_c = pointer<T>(w[s.ln + 2]), out.ln_c_shift = pointer<T>(w[s.ln + 3]);
  return out;
}

template <class T, class Cell>
Extras<T> extras_of(const Layer<Cell>& layer, int64_t d) {
  Extras<T> out{};
  out.choice = layer.choice;
  out.mask = pointer<T>(layer.mask, d);
  out.zoneout = layer.has_zoneout;
  for (int64_t k = 0; k < layer.kStates; ++k) out.zone[k] = layer.zoneout[k];
  out.zone_h = pointer<uint8_t>(layer.zoneout_h, d);
  out.zone_c = pointer<uint8_t>(layer.zoneout_c, d);
  return out;
}

// The kernels for tensors of type T, which `type` was converted to. Float32 layers follow torch's switch
// torch.backends.mkldnn.matmul.fp32_precision: "bf16", which torch.set_float32_matmul_precision("medium") sets, allows
// products in bfloat16. The getter of the latter raises if the user has also set a newer switch.
template <class T>
const Kernels<T>& kernels_for(at::ScalarType type) {
  if constexpr (std::is_same_v<T, float>) {
    const bool rounds = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL) ==
                        at::Float32Precision::BF16;
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
  const Tensor memory = host_memory({scratch(params)}, at::kByte);
  if (params.sequence.threads > 1 && lost_its_team())
    std::thread(kernel, params, memory.mutable_data_ptr()).join();
  else
    kernel(params, memory.mutable_data_ptr());
}

template <class Cell, class T>
void scan_forward(const Layer<Cell>& layer, at::ScalarType type, const Tensor& y, const Tensors& h_n,
                  const Tensor& all_c, const Tensors& saved) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(type).cells[index_of<Cell>()];
  const Rows<Cell> rows(layer);
  const bool save = !saved.empty();
  for (int64_t d = 0; d < s.D; ++d) {
    Forward<T> p{};
    p.sequence = rows.sequence(d);
    if (p.sequence.N == 0) return;
    p.weights = weights_of<T>(layer, d);
    p.extras = extras_of<T>(layer, d);
    p.x = pointer<T>(layer.x);
    p.h_0 = pointer<T>(layer.hx[0], d);
    p.y = pointer<T>(y) + d * s.P;
    p.y_stride = s.D * s.P;
    p.h_n = pointer<T>(h_n[0], d);
    if (Cell::kHasC) p.c_0 = pointer<T>(layer.hx[1], d), p.c_n = pointer<T>(h_n[1], d);
    if (layer.all_states) p.all_c = pointer<T>(all_c) + d * s.H, p.c_stride = s.D * s.H;
    const Tensor* kept = saved.data();
    if (save && layer.saves_gates()) p.gates = pointer<T>(*kept++, d);
    if (save && Cell::kHasC) p.c = pointer<T>(*kept++, d);
    if (save && s.projection) p.h_cell = pointer<T>(*kept++, d);
    call(kernel.forward_scratch, kernel.forward, p);
  }
}

template <class Cell, class T>
void scan_backward(const Layer<Cell>& layer, at::ScalarType type, const Tensors& grads, const Tensor& y,
                   at::TensorList saved, const Tensors& out) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(type).cells[index_of<Cell>()];
  const Rows<Cell> rows(layer);
  for (int64_t d = 0; d < s.D; ++d) {
    Backward<T> p{};
    p.sequence = rows.sequence(d);
    if (p.sequence.N == 0) return;
    p.weights = weights_of<T>(layer, d);
    p.extras = extras_of<T>(layer, d);
    p.x = pointer<T>(layer.x);
    p.h_0 = pointer<T>(layer.hx[0], d);
    p.y = pointer<T>(y) + d * s.P;
    p.y_stride = s.D * s.P;
    if (grads[0].defined()) p.dy = pointer<T>(grads[0]) + d * s.P;
    p.dh_n = pointer<T>(grads[1], d);
    p.dx = pointer<T>(out[0]);
    p.accumulate_dx = d > 0;
    p.dh_0 = pointer<T>(out[1], d);
    p.kept_rows = p.sequence.N;
    const Tensor* kept = saved.data();
    if (layer.saves_gates()) p.gates = pointer<T>(*kept++, d);
    if (Cell::kHasC) {
      p.c_0 = pointer<T>(layer.hx[1], d);
      p.c = pointer<T>(*kept++, d);
      p.dc_n = pointer<T>(grads[2], d);
      p.dc_0 = pointer<T>(out[2], d);
    }
    if (layer.all_states && grads[3].defined()) p.dall_c = pointer<T>(grads[3]) + d * s.H, p.c_stride = s.D * s.H;
    if (s.projection) p.h_cell = pointer<T>(*kept++, d);
    const Tensor* dw = out.data() + 1 + layer.kStates + d * s.per_direction;
    const auto run = [&](const Backward<T>& part) { call(kernel.backward_scratch, kernel.backward, part); };
    point_at_gradients(p, s, dw);
    if (layer.bptt_steps > 0 && p.sequence.N > kRowsOfAPart)
      backward_in_parts(layer, p, d, dw, run);
    else
      run(p);
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

  static Tensor empty(at::IntArrayRef sizes, at::ScalarType type, const Tensor&) { return host_memory(sizes, type); }

  // gates [D, J, N, pre, U] and c [D, J, N, U], J blocks of U units; h_cell [D, N, H] with a projection.
  template <class Cell>
  static std::vector<std::vector<int64_t>> saved_sizes(const Layer<Cell>& layer) {
    constexpr int64_t U = unit_block(Cell::kGates);
    const LayerShape& s = layer.s;
    const int64_t J = blocks(s.H, U);
    std::vector<std::vector<int64_t>> sizes;
    if (layer.saves_gates()) sizes.push_back({s.D, J, s.N, layer.saved_per_unit(), U});
    if (Cell::kHasC) sizes.push_back({s.D, J, s.N, U});
    if (s.projection) sizes.push_back({s.D, s.N, s.H});
    return sizes;
  }

  template <class Cell>
  static void forward(const Layer<Cell>& layer, at::ScalarType type, const Tensor& y, const Tensors& h_n,
                      const Tensor& all_c, const Tensors& saved) {
    with_number(layer.type, [&]<class T>(T) { scan_forward<Cell, T>(layer, type, y, h_n, all_c, saved); });
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
