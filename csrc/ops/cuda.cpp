// The ops on a GPU: projections and weight gradients are one product each, the scan goes by one of the tiers.
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include <algorithm>

#include "ops/gpu_layer.h"
#include "ops/recurrent.h"

namespace adl {
namespace {

// gx = W_ih x of the steps between begin and end of the scan.
template <class Cell, class T>
void project(const GpuLayer<Cell, T>& g, int64_t d, ForwardScan<T>& scan, Acc<T>* gx, bool in_place) {
  const LayerShape& s = g.s;
  const int64_t a = g.step(d, scan.steps.begin), b = g.step(d, scan.steps.end - 1);
  const int64_t first = g.row(std::min(a, b)), rows = g.row(std::max(a, b) + 1) - first;
  scan.gx = gx;
  scan.gx_first = in_place ? 0 : first;
  scan.gx_stride = (in_place ? g.kPre : g.kGates) * s.H;
  g.device.product(false, true, rows, g.kGates * s.H, s.I, g.x() + first * s.I, s.I, g.w_ih(d), s.I,
                   gx + (first - scan.gx_first) * scan.gx_stride, scan.gx_stride, false);
}

// h_n: in h_0, out the state after the last step; rounded, it is what each product reads.
template <class Cell, class T>
void stream_forward(const GpuLayer<Cell, T>& g, int64_t d, const ForwardScan<T>& scan, T* h_n, T* y) {
  const LayerShape& s = g.s;
  const int64_t G = g.kGates, y_stride = s.D * s.P;
  const Tensor gh = g.buffer({s.B, G * s.H}, type_of<Acc<T>>());
  for (int64_t i = scan.steps.begin; i < scan.steps.end; ++i) {
    const int64_t t = g.step(d, i), row = g.row(t), count = g.count(t);
    g.device.product(false, true, count, G * s.H, s.P, h_n, s.P, g.w_hh(d), s.P, pointer<Acc<T>>(gh), G * s.H, false);
    g.check(g.cell.streaming_forward(scan, row, count, pointer<Acc<T>>(gh), g.device.stream()));
    if (!s.projection) continue;
    g.device.product(false, true, count, s.P, s.H, scan.y + row * s.H, s.H, g.w_hr(d), s.H, h_n, s.P, false);
    g.check(g.kernels.copy_rows(y + row * y_stride, y_stride, h_n, s.P, count, s.P, g.device.stream()));
  }
}

template <class Cell, class T>
void forward_layer(const Layer<Cell>& layer, const Tensor& y, const Tensors& h_n, const Tensors& saved) {
  using A = Acc<T>;
  constexpr bool kExact = std::is_same_v<A, T>;
  const GpuLayer<Cell, T> g(Cell::kName, layer);
  const LayerShape& s = g.s;
  const bool save = !saved.empty(), in_blocks = g.in_blocks(false);
  const bool in_place = kExact && Cell::kSavesGates && save;

  // States in full precision: where that is T's own, the outputs themselves.
  Tensors state;
  for (size_t k = 0; k < h_n.size(); ++k) {
    h_n[k].copy_(layer.hx[k]);
    state.push_back(kExact ? h_n[k] : layer.hx[k].to(type_of<A>()));
  }
  Tensor h_cell;  // h before the projection
  if (s.projection) h_cell = save ? saved.back() : g.buffer({s.D, s.N, s.H}, type_of<T>());
  int64_t at_once = s.T;
  Tensor projected;
  if (!in_place) {
    const int64_t bytes = s.D * s.B * Cell::kGates * s.H * int64_t(sizeof(A));
    at_once = std::clamp<int64_t>(most_projected() / bytes, 1, s.T);
    const int64_t rows = std::min(s.N, at_once * s.B);
    projected = g.buffer({s.D, rows, Cell::kGates * s.H}, type_of<A>());
  }

  for (int64_t begin = 0; begin < s.T; begin += at_once) {
    Directions<ForwardScan<T>> directions{int(s.D), {}};
    for (int64_t d = 0; d < s.D; ++d) {
      ForwardScan<T>& scan = directions.of[d];
      scan.steps = g.steps(d);
      scan.steps.begin = begin, scan.steps.end = std::min(begin + at_once, s.T);
      scan.H = s.H;
      scan.w_hh = g.w_hh(d);
      if (s.bias) scan.b_ih = g.weight(d, 2), scan.b_hh = g.weight(d, 3);
      if (!s.projection) {
        scan.h = pointer<A>(state[0], d);
        if (!kExact && !in_blocks) scan.h_rounded = pointer<T>(h_n[0], d);
        scan.y = pointer<T>(y) + d * s.P, scan.y_stride = s.D * s.P;
      } else {
        scan.y = pointer<T>(h_cell, d), scan.y_stride = s.H;
      }
      if (Cell::kHasC) scan.c = pointer<A>(state[1], d);
      if (Cell::kSavesGates && save) scan.gates = pointer<T>(saved[0], d);
      if (Cell::kHasC && save) scan.kept_c = pointer<T>(saved[1], d);
      project(g, d, scan, in_place ? pointer<A>(saved[0], d) : pointer<A>(projected, d), in_place);
      if (!in_blocks) stream_forward(g, d, scan, pointer<T>(h_n[0], d), pointer<T>(y) + d * s.P);
    }
    if (in_blocks) g.check(g.cell.block_forward(directions, allows_tf32(), g.device.facts(), g.device.stream()));
  }
  for (size_t k = 0; k < h_n.size() && !kExact; ++k)
    if (k > 0 || in_blocks) h_n[k].copy_(state[k]);
}

// dh_rows [N, P], dL/dh of every row, is for layers with a projection alone.
template <class Cell, class T>
void stream_backward(const GpuLayer<Cell, T>& g, int64_t d, const BackwardScan<T>& scan, Acc<T>* dh, const T* dy,
                     T* dh_rows) {
  const LayerShape& s = g.s;
  const int64_t y_stride = s.D * s.P, pre = g.kPre * s.H;
  const cudaStream_t stream = g.device.stream();
  for (int64_t i = s.T - 1; i >= 0; --i) {
    const int64_t t = g.step(d, i), row = g.row(t), count = g.count(t);
    if (s.projection) {
      g.check(g.kernels.add_rows(dh_rows + row * s.P, s.P, dh, s.P, dy ? dy + row * y_stride : nullptr, y_stride, count,
                                 s.P, stream));
      g.device.product(false, false, count, s.H, s.P, dh_rows + row * s.P, s.P, g.w_hr(d), s.H, scan.dh, s.H, false);
    }
    g.check(g.cell.streaming_backward(scan, row, count, g.before(d, t), stream));
    bool more = !s.projection;  // adds to what bypassed W_hh
    for (const Run& run : runs(Cell::kHh)) {
      g.device.product(false, false, count, s.P, run.count * s.H, scan.dgates + row * pre + run.pre * s.H, pre,
                       g.w_hh(d) + run.gate * s.H * s.P, s.P, dh, s.P, more);
      more = true;
    }
  }
}

// The gradients of x and of the weights of a direction, from those of its pre-activations [N, pre, H].
template <class Cell, class T>
void weight_gradients(const GpuLayer<Cell, T>& g, int64_t d, const Tensor& dgates, const Tensor& dh_rows,
                      const Tensor& y, at::TensorList saved, const Tensor& dx, const Tensor* dw) {
  const LayerShape& s = g.s;
  const int64_t pre = g.kPre * s.H;
  const T* from = pointer<T>(dgates);
  bool more = d > 0;
  for (const Run& run : runs(Cell::kIh)) {
    const T* part = from + run.pre * s.H;
    const int64_t width = run.count * s.H, row = run.gate * s.H;
    if (T* to = pointer<T>(dx))
      g.device.product(false, false, s.N, s.I, width, part, pre, g.w_ih(d) + row * s.I, s.I, to, s.I, more);
    if (T* to = pointer<T>(dw[0]))
      g.device.product(true, false, width, s.I, s.N, part, pre, g.x(), s.I, to + row * s.I, s.I, false);
    more = true;
  }
  if (T* to = pointer<T>(dw[1])) {
    const Tensor h_prev = g.buffer({s.N, s.P}, type_of<T>());
    g.check(g.kernels.previous_states(g.steps(d), s.P, pointer<T>(y) + d * s.P, s.D * s.P, g.hx(0, d),
                                      pointer<T>(h_prev), g.device.stream()));
    for (const Run& run : runs(Cell::kHh))
      g.device.product(true, false, run.count * s.H, s.P, s.N, from + run.pre * s.H, pre, pointer<T>(h_prev), s.P,
                       to + run.gate * s.H * s.P, s.P, false);
  }
  if (s.bias && (dw[2].numel() || dw[3].numel())) {
    const Tensor sums = at::sum(dgates, {0}, false, type_of<Acc<T>>());  // [pre * H]
    const auto gather = [&](const Tensor& to, const std::vector<Run>& list) {
      for (const Run& run : list)
        if (to.numel())
          to.narrow(0, run.gate * s.H, run.count * s.H).copy_(sums.narrow(0, run.pre * s.H, run.count * s.H));
    };
    gather(dw[2], runs(Cell::kIh));
    gather(dw[3], runs(Cell::kHh));
  }
  if (s.projection)
    if (T* to = pointer<T>(dw[s.per_direction - 1]))
      g.device.product(true, false, s.P, s.H, s.N, pointer<T>(dh_rows), s.P, pointer<T>(saved.back(), d), s.H, to, s.H,
                       false);
}

template <class Cell, class T>
void backward_layer(const Layer<Cell>& layer, const Tensors& grads, const Tensor& y, at::TensorList saved,
                    const Tensors& out) {
  using A = Acc<T>;
  constexpr bool kExact = std::is_same_v<A, T>;
  static const std::string name = std::string(Cell::kName) + "_backward";
  const GpuLayer<Cell, T> g(name.c_str(), layer);
  const LayerShape& s = g.s;
  const bool in_blocks = g.in_blocks(true);

  // Gradients of the states in full precision: where that is T's own, the outputs themselves.
  Tensors state;
  for (size_t k = 0; k < layer.hx.size(); ++k) {
    const Tensor& to = out[1 + k];
    state.push_back(kExact ? to : g.buffer(to.sizes(), type_of<A>()));
    if (grads[1 + k].defined())
      state[k].copy_(grads[1 + k]);
    else
      state[k].zero_();
  }
  const Tensor dgates = g.buffer({s.D, s.N, Cell::kPre * s.H}, type_of<T>());
  Tensor dh_cell, dh_rows;
  if (s.projection) {
    dh_cell = g.buffer({s.B, s.H}, type_of<A>());
    dh_rows = g.buffer({s.D, s.N, s.P}, type_of<T>());
  }

  Directions<BackwardScan<T>> directions{int(s.D), {}};
  for (int64_t d = 0; d < s.D; ++d) {
    BackwardScan<T>& scan = directions.of[d];
    const T* dy = grads[0].defined() ? pointer<T>(grads[0]) + d * s.P : nullptr;
    scan.steps = g.steps(d);
    scan.H = s.H;
    scan.w_hh = g.w_hh(d);
    scan.h_0 = g.hx(0, d);
    if (!s.projection)
      scan.y = pointer<T>(y) + d * s.P, scan.y_stride = s.D * s.P, scan.dy = dy, scan.dh = pointer<A>(state[0], d);
    else
      scan.dh = pointer<A>(dh_cell);
    if (Cell::kSavesGates) scan.gates = pointer<T>(saved[0], d);
    if (Cell::kHasC) {
      scan.c_0 = g.hx(1, d);
      scan.kept_c = pointer<T>(saved[1], d);
      scan.dc = pointer<A>(state[1], d);
    }
    scan.dgates = pointer<T>(dgates, d);
    if (!in_blocks)
      stream_backward(g, d, scan, pointer<A>(state[0], d), dy, s.projection ? pointer<T>(dh_rows, d) : nullptr);
  }
  if (in_blocks) g.check(g.cell.block_backward(directions, allows_tf32(), g.device.facts(), g.device.stream()));

  const Tensor* dw = out.data() + 1 + layer.hx.size();
  for (int64_t d = 0; d < s.D; ++d)
    weight_gradients(g, d, dgates[d], s.projection ? dh_rows[d] : Tensor(), y, saved, out[0], dw + d * s.per_direction);
  for (size_t k = 0; k < state.size() && !kExact; ++k) out[1 + k].copy_(state[k]);
}

struct Cuda {
  static at::ScalarType compute_type(const char* op, const Tensor& x) {
    const at::ScalarType type = x.scalar_type();
    TORCH_CHECK(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
                ": x must be float64, float32, bfloat16 or float16, got ", type);
    return type;
  }

  static Tensor empty(at::IntArrayRef sizes, at::ScalarType type, const Tensor& x) {
    return at::empty(sizes, x.options().dtype(type));
  }

  // gates [D, N, pre, H] and c [D, N, H]; h_cell [D, N, H] with a projection.
  template <class Cell>
  static std::vector<std::vector<int64_t>> saved_sizes(const LayerShape& s) {
    std::vector<std::vector<int64_t>> sizes;
    if (Cell::kSavesGates) sizes.push_back({s.D, s.N, Cell::kPre, s.H});
    if (Cell::kHasC) sizes.push_back({s.D, s.N, s.H});
    if (s.projection) sizes.push_back({s.D, s.N, s.H});
    return sizes;
  }

  template <class Cell>
  static void forward(const Layer<Cell>& layer, at::ScalarType, const Tensor& y, const Tensors& h_n,
                      const Tensors& saved) {
    with_gpu_number(layer.type, [&]<class T>(T*) { forward_layer<Cell, T>(layer, y, h_n, saved); });
  }

  template <class Cell>
  static void backward(const Layer<Cell>& layer, at::ScalarType, const Tensors& grads, const Tensor& y,
                       at::TensorList saved, const Tensors& out) {
    with_gpu_number(layer.type, [&]<class T>(T*) { backward_layer<Cell, T>(layer, grads, y, saved, out); });
  }
};

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, ADL_GPU_KEY, m) {
#define ADL_IMPLEMENT(Cell) adl::implement<adl::Cuda, adl::Cell>(m);
  ADL_CELLS(ADL_IMPLEMENT)
#undef ADL_IMPLEMENT
}
