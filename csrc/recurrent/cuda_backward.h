// The backward ops on a GPU: the scan goes by one of the tiers, then the gradients of x and the weights are one product
// each.
#pragma once

#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "recurrent/cuda_layer.h"

namespace adl {
namespace {

// Where the gradients of some products stand, rows `stride` apart; pre-activations count in their columns.
template <class T>
struct ProductGradients {
  T* of;
  int64_t stride;
  std::vector<Run> runs;
};

// What the scan of a direction leaves for the gradients of its weights.
template <class T>
struct ScanGradients {
  const CudaLayer<T>& g;
  Tensor dgates;     // [N, pre, H]
  Tensor dproducts;  // [N, 2, G, H] with layer norm, where dgates are not those of the products
  Tensor dh_rows;    // [N, P] of the projected h
  Tensor reset_h;    // [N, H] r h, for cells that reset before the product
  Tensor dw_ch;      // [B, kPeepholes, H]
  Tensor dln;        // [B, 2, G, H]
  Tensor dln_c;      // [B, 2, H]

  ScanGradients(const CudaLayer<T>& g, const Tensor* dw) : g(g) {
    const LayerShape& s = g.s;
    const auto type = type_of<T>();
    const auto sums = [&](std::vector<int64_t> sizes) {
      return at::zeros(sizes, g.layer.x.options().dtype(type_of<Acc<T>>()));
    };
    dgates = g.buffer({s.N, g.cell.pre, s.H}, type);
    if (s.projection) dh_rows = g.buffer({s.N, s.P}, type);
    if (g.cell.resets_before) reset_h = g.buffer({s.N, s.H}, type);
    if (s.at.w_ch >= 0 && dw[s.at.w_ch].numel()) dw_ch = sums({s.B, g.cell.peepholes, s.H});
    if (!g.options.layer_norm) return;
    dproducts = g.buffer({s.N, 2, g.cell.gates, s.H}, type);
    dln = sums({s.B, 2, g.cell.gates, s.H});
    if (g.cell.has_c) dln_c = sums({s.B, 2, s.H});
  }

  ProductGradients<T> of_ih() const {
    if (dproducts.defined()) return {pointer<T>(dproducts), dproducts.stride(0), {{0, 0, g.cell.gates}}};
    return {pointer<T>(dgates), dgates.stride(0), runs(g.cell, g.cell.ih)};
  }
  ProductGradients<T> of_hh() const {
    if (!dproducts.defined()) return {pointer<T>(dgates), dgates.stride(0), runs_of_hh(g.cell)};
    const std::vector<Run> in_order =
        g.cell.resets_before ? runs_of_hh(g.cell) : std::vector<Run>{{0, 0, g.cell.gates}};
    return {pointer<T>(dproducts) + dproducts.stride(1), dproducts.stride(0), in_order};
  }
};

// dh [B, P]: in dL/dh_n, out dL/dh_0. Uniform layers without a projection take the former from the scan.
template <class T>
void stream_backward(const ScanGradients<T>& gradients, int64_t d, const BackwardScan<T>& scan,
                     const BackwardExtras<T>& extras, Acc<T>* dh, const T* dy, const T* y) {
  using A = Acc<T>;
  const CudaLayer<T>& g = gradients.g;
  const LayerShape& s = g.s;
  const int64_t y_stride = s.D * s.P;
  const cudaStream_t stream = g.device.stream();
  const ProductGradients<T> products = gradients.of_hh();
  T* const dh_rows = pointer<T>(gradients.dh_rows);
  Tensor seen, dreset_h;
  if (g.sees || g.options.bptt_steps) seen = g.buffer({s.B, s.P}, type_of<A>());
  if (g.cell.resets_before) dreset_h = g.buffer({s.B, s.H}, type_of<A>());
  BackwardScan<T> outer = scan;  // of the projected h
  outer.H = s.P, outer.dh = dh, outer.dy = dy, outer.y = y, outer.y_stride = y_stride;

  // to (+)= W_hh^T of the gradients of this run
  const auto product = [&](const Run& run, int64_t row, int64_t count, A* to, bool more) {
    g.device.product(false, false, count, s.P, run.count * s.H, products.of + row * products.stride + run.pre * s.H,
                     products.stride, g.w_hh(d) + run.gate * s.H * s.P, s.P, to, s.P, more);
  };
  for (int64_t i = s.T - 1; i >= 0; --i) {
    const int64_t t = g.step(d, i), row = g.row(t), count = g.count(t);
    if (s.projection) {
      if (g.extended)
        g.check(g.kernels.projected_states_backward(outer, extras, t, count, dh_rows, stream));
      else
        g.check(g.kernels.add_rows(dh_rows + row * s.P, s.P, dh, s.P, dy ? dy + row * y_stride : nullptr, y_stride,
                                   count, s.P, stream));
      g.device.product(false, false, count, s.H, s.P, dh_rows + row * s.P, s.P, g.w_hr(d), s.H, scan.dh, s.H, false);
    }
    if (g.extended)
      g.check(g.steps_of.row_backward(scan, extras, t, count, stream));
    else
      g.check(g.steps_of.streaming_backward(scan, row, count, g.uniform && !s.projection && i == s.T - 1,
                                            g.before(d, t), stream));

    const bool between = g.sees || g.truncates(d, t);  // whether something stands between W_hh and the state
    A* const to = between ? pointer<A>(seen) : dh;
    bool more = !between && (g.extended || !s.projection);  // adds to what bypassed W_hh
    size_t early = products.runs.size();
    if (g.cell.resets_before) {
      product(products.runs[--early], row, count, pointer<A>(dreset_h), false);
      if (between) seen.zero_();
      g.check(g.steps_of.reset_backward(scan, extras, t, count, pointer<A>(dreset_h), to, pointer<T>(gradients.reset_h),
                                        stream));
      more = true;
    }
    const bool none = g.truncates_all(d, t);
    for (size_t k = 0; k < early && !none; ++k) {
      product(products.runs[k], row, count, to, more);
      more = true;
    }
    if (between)
      g.check(g.kernels.seen_states_backward(scan.steps, extras, t, count, s.P, none ? nullptr : to, dh, stream));
  }
}

// The gradients of x and of the weights of a direction.
template <class T>
void weight_gradients(const ScanGradients<T>& gradients, int64_t d, const Tensor& x, const Tensor& y,
                      const Tensor& h_cell, const Tensor& dx, const Tensor* dw) {
  const CudaLayer<T>& g = gradients.g;
  const LayerShape& s = g.s;
  const ProductGradients<T> ih = gradients.of_ih(), hh = gradients.of_hh();
  bool more = d > 0;
  for (const Run& run : ih.runs) {
    const T* part = ih.of + run.pre * s.H;
    const int64_t width = run.count * s.H, row = run.gate * s.H;
    if (T* to = pointer<T>(dx))
      g.device.product(false, false, s.N, s.I, width, part, ih.stride, g.w_ih(d) + row * s.I, s.I, to, s.I, more);
    if (T* to = pointer<T>(dw[s.at.w_ih]))
      g.device.product(true, false, width, s.I, s.N, part, ih.stride, pointer<T>(x), s.I, to + row * s.I, s.I, false);
    more = true;
  }
  if (T* to = pointer<T>(dw[s.at.w_hh])) {
    // of `count` rows from `row` on, with the states that W_hh saw there
    const auto product = [&](const Run& run, int64_t row, int64_t count, const T* states, int64_t stride, bool more) {
      g.device.product(true, false, run.count * s.H, s.P, count, hh.of + row * hh.stride + run.pre * s.H, hh.stride,
                       states, stride, to + run.gate * s.H * s.P, s.P, more);
    };
    const T* const y_d = pointer<T>(y) + d * s.P;
    const int64_t y_stride = s.D * s.P, later = s.N - s.B;
    Tensor h_prev;
    if (!g.uniform) {
      h_prev = g.buffer({s.N, s.P}, type_of<T>());
      g.check(g.kernels.previous_states(g.steps(d), g.extras(d), s.P, y_d, y_stride, g.hx(0, d), pointer<T>(h_prev),
                                        g.device.stream()));
    }
    for (const Run& run : hh.runs) {
      if (g.uniform) {
        product(run, d == 1 ? later : 0, s.B, g.hx(0, d), s.P, false);
        if (later) product(run, d == 1 ? 0 : s.B, later, d == 1 ? y_d + s.B * y_stride : y_d, y_stride, true);
      } else {
        product(run, 0, s.N, pointer<T>(g.cell.resets_before && run.gate > 0 ? gradients.reset_h : h_prev), s.P, false);
      }
    }
  }
  const auto type = type_of<Acc<T>>();
  if (s.bias && (dw[s.at.b_ih].numel() || dw[s.at.b_hh].numel())) {
    const Tensor sums = at::sum(gradients.dgates, {0}, false, type);  // [pre, H]
    const auto gather = [&](const Tensor& to, const std::vector<Run>& list) {
      for (const Run& run : list)
        if (to.numel())
          to.narrow(0, run.gate * s.H, run.count * s.H).copy_(sums.narrow(0, run.pre, run.count).flatten());
    };
    gather(dw[s.at.b_ih], runs(g.cell, g.cell.ih));
    gather(dw[s.at.b_hh], runs(g.cell, g.cell.hh));
  }
  if (s.projection)
    if (T* to = pointer<T>(dw[s.at.w_hr]))
      g.device.product(true, false, s.P, s.H, s.N, pointer<T>(gradients.dh_rows), s.P, pointer<T>(h_cell, d), s.H, to,
                       s.H, false);
  // What each sequence has summed up.
  const auto store = [&](const Tensor& to, const Tensor& sums) {
    if (to.numel()) to.copy_(at::sum(sums, {0}).view_as(to));
  };
  if (gradients.dw_ch.defined()) store(dw[s.at.w_ch], gradients.dw_ch);
  for (int64_t k = 0; k < 2 && gradients.dln.defined(); ++k) store(dw[s.at.ln_ih + k], gradients.dln.select(1, k));
  for (int64_t k = 0; k < 2 && gradients.dln_c.defined(); ++k) store(dw[s.at.ln_c + k], gradients.dln_c.select(1, k));
}

template <class T>
void backward_layer(const Layer& layer, const Outputs& grads, const Tensor& y, const Saved& saved,
                    const Gradients& out) {
  using A = Acc<T>;
  constexpr bool kExact = std::is_same_v<A, T>;
  const std::string name = std::string(layer.cell.name) + "_backward";
  const CudaLayer<T> g(name.c_str(), layer);
  const LayerShape& s = g.s;
  const Plan plan = g.plan(true);
  const Tensor* dw = out.dweights.data();

  Tensor dh_cell;
  if (s.projection) dh_cell = g.buffer({s.B, s.H}, type_of<A>());

  Directions<BackwardScan<T>> directions{int(s.D), {}};
  Tensor mail[2];
  std::vector<ScanGradients<T>> gradients;
  for (int64_t d = 0; d < s.D; ++d) {
    gradients.emplace_back(g, dw + d * s.at.count);
    BackwardScan<T>& scan = directions.of[d];
    const T* dy = grads.y.defined() ? pointer<T>(grads.y) + d * s.P : nullptr;
    const T* y_d = pointer<T>(y) + d * s.P;
    scan.steps = g.steps(d);
    scan.H = s.H;
    scan.w_hh = g.w_hh(d);
    scan.h_0 = g.hx(0, d);
    if (!s.projection) {
      scan.y = y_d, scan.y_stride = s.D * s.P, scan.dy = dy;
      scan.dh_n = pointer<T>(grads.h_n, d), scan.dh_0 = pointer<T>(out.dh_0, d);
    } else {
      scan.dh = pointer<A>(dh_cell);
    }
    scan.gates = pointer<T>(saved.gates, d);
    if (g.cell.has_c) {
      scan.c_0 = g.hx(1, d);
      scan.kept_c = pointer<T>(saved.c, d);
      scan.dc_n = pointer<T>(grads.c_n, d), scan.dc_0 = pointer<T>(out.dc_0, d);
    }
    scan.dgates = pointer<T>(gradients[d].dgates);
    scan.choice = layer.choice;
    scan.w_ch = g.weight(d, s.at.w_ch);
    scan.dw_ch = pointer<A>(gradients[d].dw_ch);
    if (plan.tier != Tier::kGrid) continue;
    scan.mail = scan.dgates, scan.mail_width = g.mail_width();
    if (scan.mail_width != s.H) {
      mail[d] = g.buffer({s.N, g.cell.pre, scan.mail_width}, type_of<T>());
      scan.mail = pointer<T>(mail[d]);
    }
    g.clear_mail(scan.mail, scan.mail_width, s.N * g.cell.pre);
  }
  const bool streams = plan.tier == Tier::kStreaming || !g.scan(directions, plan);

  // Gradients of the states in full precision, between steps: where that is T's own, the outputs themselves.
  Tensors state;
  for (size_t k = 0; streams && k < layer.hx.size(); ++k) {
    const Tensor& to = out.state(k);
    state.push_back(kExact ? to : g.buffer(to.sizes(), type_of<A>()));
    if (g.uniform && !s.projection) continue;
    if (grads.state(k).defined())
      state[k].copy_(grads.state(k));
    else
      state[k].zero_();
  }
  for (int64_t d = 0; d < s.D && streams; ++d) {
    if (!s.projection) directions.of[d].dh = pointer<A>(state[0], d);
    if (g.cell.has_c) directions.of[d].dc = pointer<A>(state[1], d);
    BackwardExtras<T> extras{g.extras(d), nullptr, s.D * s.H, g.b_ih(d), g.b_hh(d), nullptr, nullptr, nullptr};
    if (grads.all_c.defined()) extras.dall_c = pointer<T>(grads.all_c) + d * s.H;
    extras.dproducts = pointer<T>(gradients[d].dproducts);
    extras.dln = pointer<A>(gradients[d].dln), extras.dln_c = pointer<A>(gradients[d].dln_c);
    const T* dy = grads.y.defined() ? pointer<T>(grads.y) + d * s.P : nullptr;
    stream_backward(gradients[d], d, directions.of[d], extras, pointer<A>(state[0], d), dy, pointer<T>(y) + d * s.P);
  }

  const Tensor x = g.x_of_steps();
  for (int64_t d = 0; d < s.D; ++d) weight_gradients(gradients[d], d, x, y, saved.h_cell, out.dx, dw + d * s.at.count);
  for (size_t k = 0; k < state.size() && !kExact; ++k) out.state(k).copy_(state[k]);
}

}  // namespace
}  // namespace adl
