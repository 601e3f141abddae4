// Layers on the CPU: fills the structs, calls the scan.
#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <thread>

#include "common/fork.h"
#include "common/host_memory.h"
#include "recurrent/cpu/kernels.h"
#include "recurrent/cpu_parts.h"
#include "recurrent/ops.h"
#include "recurrent/packed_weights.h"

namespace adl {
namespace {

// A call below this many operations is over before a second thread has woken up.
constexpr int64_t kWorthAThread = 1 << 20;

// The rows of a layer as the scan counts them. Where sequences end early: packed, the longest first.
struct Rows {
  const Layer& layer;
  std::vector<int64_t> batch_sizes, offsets, order, places;

  explicit Rows(const Layer& given) : layer(given) {
    if (!layer.lengths.defined()) return;
    const LayerShape& s = layer.s;
    const int64_t* lengths = pointer<int64_t>(layer.lengths);
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
    const int64_t work = 2 * s.N * layer.cell.gates * s.H * (s.I + s.P);
    const bool serial = at::in_parallel_region() || work < kWorthAThread;
    Sequence out{};
    out.T = s.T, out.B = s.B, out.N = s.N;
    out.batch_sizes = layer.batch_sizes.data(), out.offsets = layer.offsets.data();
    out.reverse = d == 1;
    out.threads = serial ? 1 : at::get_num_threads();
    if (layer.lengths.defined()) {
      out.T = batch_sizes.size(), out.B = order.size(), out.N = places.size();
      out.batch_sizes = batch_sizes.data(), out.offsets = offsets.data();
      out.places = places.data(), out.order = order.data();
    }
    out.resets = pointer<bool>(layer.reset);
    out.bptt_steps = layer.options.bptt_steps;
    return out;
  }
};

template <class T>
Weights<T> weights_of(const Layer& layer, int64_t d) {
  const WeightPlaces& at = layer.s.at;
  const auto of = [&](int place) { return layer.weight<T>(d, place); };
  return {layer.s.I,   layer.s.H,   layer.s.P,    of(at.w_ih),  of(at.w_hh), of(at.b_ih),  of(at.b_hh),
          of(at.w_hr), of(at.w_ch), of(at.ln_ih), of(at.ln_hh), of(at.ln_c), of(at.b_ln_c)};
}

template <class T>
Extras<T> extras_of(const Layer& layer, int64_t d) {
  Extras<T> out{};
  out.choice = layer.choice;
  out.mask = pointer<T>(layer.mask, d);
  out.zoneout = layer.has_zoneout;
  std::copy_n(layer.zoneout, 2, out.zone);
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

// A scan without gradients: its weights may be packed already.
template <class T>
void infer(const Layer& layer, int64_t d, const CellKernels<T>& kernel, Forward<T>& p) {
  const int64_t rows = p.sequence.N, least = layer.options.frozen ? 0 : kFewRows;
  if (!layer.has_own_weights || rows <= least || rows > kMostRowsOfKept)
    return call(kernel.forward_scratch, kernel.forward, p);
  PackedWeights packed(layer, d, &kernel, kernel.packed_weights(p));
  p.packed = packed.memory(), p.is_packed = packed.is_packed();
  call(kernel.forward_scratch, kernel.forward, p);
  if (!packed.is_packed()) packed.keep();
}

template <class T>
void scan_forward(const Layer& layer, at::ScalarType given, const Outputs& out, const Saved* saved) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(given).cells[layer.cell.index];
  const Rows rows(layer);
  for (int64_t d = 0; d < s.D; ++d) {
    Forward<T> p{};
    p.sequence = rows.sequence(d);
    if (p.sequence.N == 0) return;
    p.weights = weights_of<T>(layer, d);
    p.extras = extras_of<T>(layer, d);
    p.x = pointer<T>(layer.x);
    p.h_0 = pointer<T>(layer.hx[0], d);
    p.y = pointer<T>(out.y) + d * s.P;
    p.y_stride = s.D * s.P;
    p.h_n = pointer<T>(out.h_n, d);
    if (layer.cell.has_c) p.c_0 = pointer<T>(layer.hx[1], d), p.c_n = pointer<T>(out.c_n, d);
    if (out.all_c.defined()) p.all_c = pointer<T>(out.all_c) + d * s.H, p.c_stride = s.D * s.H;
    if (!saved) {
      infer(layer, d, kernel, p);
      continue;
    }
    p.gates = pointer<T>(saved->gates, d);
    p.c = pointer<T>(saved->c, d);
    p.h_cell = pointer<T>(saved->h_cell, d);
    call(kernel.forward_scratch, kernel.forward, p);
  }
}

template <class T>
void scan_backward(const Layer& layer, at::ScalarType given, const Outputs& grads, const Tensor& y, const Saved& saved,
                   const Gradients& out) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(given).cells[layer.cell.index];
  const Rows rows(layer);
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
    if (grads.y.defined()) p.dy = pointer<T>(grads.y) + d * s.P;
    p.dh_n = pointer<T>(grads.h_n, d);
    p.dx = pointer<T>(out.dx);
    p.accumulate_dx = d > 0;
    p.dh_0 = pointer<T>(out.dh_0, d);
    p.kept_rows = p.sequence.N;
    p.gates = pointer<T>(saved.gates, d);
    p.c = pointer<T>(saved.c, d);
    p.h_cell = pointer<T>(saved.h_cell, d);
    if (layer.cell.has_c) {
      p.c_0 = pointer<T>(layer.hx[1], d);
      p.dc_n = pointer<T>(grads.c_n, d);
      p.dc_0 = pointer<T>(out.dc_0, d);
    }
    if (grads.all_c.defined()) p.dall_c = pointer<T>(grads.all_c) + d * s.H, p.c_stride = s.D * s.H;
    const Tensor* dw = out.dweights.data() + d * s.at.count;
    const auto run = [&](const Backward<T>& part) { call(kernel.backward_scratch, kernel.backward, part); };
    point_at_gradients(p, s.at, dw);
    if (layer.options.bptt_steps > 0 && p.sequence.N > kRowsOfAPart)
      backward_in_parts(layer, p, d, dw, run);
    else
      run(p);
  }
}

struct Cpu final : Engine {
  // float16 is converted on entry, and what is saved for it is float.
  at::ScalarType compute_type(const char* op, const Tensor& x) const override {
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

  Tensor empty(at::IntArrayRef sizes, at::ScalarType type, const Tensor&) const override {
    return host_memory(sizes, type);
  }

  // gates [D, J, N, pre, U] and c [D, J, N, U], J blocks of U units; h_cell [D, N, H] with a projection.
  SavedSizes saved_sizes(const Layer& layer) const override {
    const LayerShape& s = layer.s;
    const int64_t U = layer.cell.unit_block, J = blocks(s.H, U);
    SavedSizes sizes;
    if (layer.saves_gates()) sizes.gates = {s.D, J, s.N, layer.saved_per_unit(), U};
    if (layer.cell.has_c) sizes.c = {s.D, J, s.N, U};
    if (s.projection) sizes.h_cell = {s.D, s.N, s.H};
    return sizes;
  }

  void forward(const Layer& layer, at::ScalarType given, const Outputs& out, const Saved* saved) const override {
    with_number(layer.type, [&]<class T>(T) { scan_forward<T>(layer, given, out, saved); });
  }
  void backward(const Layer& layer, at::ScalarType given, const Outputs& grads, const Tensor& y, const Saved& saved,
                const Gradients& out) const override {
    with_number(layer.type, [&]<class T>(T) { scan_backward<T>(layer, given, grads, y, saved, out); });
  }
};

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, CPU, m) {
  static const adl::Cpu engine;
  adl::implement(m, engine);
}
