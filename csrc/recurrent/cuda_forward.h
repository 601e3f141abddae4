// The forward ops on a GPU: W_ih x is one product for many steps, then the scan goes by one of the tiers.
#pragma once

#include "recurrent/cuda_layer.h"

namespace adl {
namespace {

// gx = W_ih x of the steps between begin and end of the scan. stride: 0 where gx has these rows alone, else gx is where
// gates are kept, rows so far apart.
template <class T>
void project(const CudaLayer<T>& g, int64_t d, ForwardScan<T>& scan, Acc<T>* gx, int64_t stride) {
  const LayerShape& s = g.s;
  const auto [first, rows] = g.rows(d, scan.steps.begin, scan.steps.end);
  scan.gx = gx;
  scan.gx_first = stride ? 0 : first;
  scan.gx_stride = stride ? stride : g.cell.gates * s.H;
  g.device.product(false, true, rows, g.cell.gates * s.H, s.I, pointer<T>(g.layer.x) + first * s.I, s.I, g.w_ih(d), s.I,
                   gx + (first - scan.gx_first) * scan.gx_stride, scan.gx_stride, false);
}

// h [B, P]: in h_0, out the state after the last step; h_n: the same rounded, what each product reads unless W_hh sees
// something else. Plain layers with a projection have h_n alone. Uniform layers without a projection need neither: a
// product reads h_0 and then y, the kernels begin with h_0 and c_0, and end with h_n and c_n.
template <class T>
void stream_forward(const CudaLayer<T>& g, int64_t d, const ForwardScan<T>& scan, const ForwardExtras<T>& extras,
                    Acc<T>* h, T* h_n, T* y) {
  using A = Acc<T>;
  const LayerShape& s = g.s;
  const int64_t G = g.cell.gates, y_stride = s.D * s.P, early = g.cell.resets_before ? 2 : G;
  const bool from_y = g.uniform && !s.projection;
  const cudaStream_t stream = g.device.stream();
  const Tensor gh = g.buffer({s.B, G * s.H}, type_of<A>());
  Tensor seen, reset_h, projected;
  if (g.sees) seen = g.buffer({s.B, s.P}, type_of<T>());
  if (g.cell.resets_before) reset_h = g.buffer({s.B, s.H}, type_of<T>());
  if (s.projection && g.extended) projected = g.buffer({s.B, s.P}, type_of<A>());
  ForwardScan<T> outer = scan;  // of the projected h
  outer.H = s.P, outer.h = h, outer.h_rounded = std::is_same_v<A, T> ? nullptr : h_n;
  outer.y = y, outer.y_stride = y_stride;

  for (int64_t i = scan.steps.begin; i < scan.steps.end; ++i) {
    const int64_t t = g.step(d, i), row = g.row(t), count = g.count(t);
    if (g.sees) g.check(g.kernels.seen_states(scan.steps, extras, t, count, s.P, h, pointer<T>(seen), stream));
    const bool first = from_y && i == 0, before = from_y && i > 0;
    const T* state = before   ? y + g.row(g.step(d, i - 1)) * y_stride
                     : first  ? g.hx(0, d)
                     : g.sees ? pointer<T>(seen)
                              : h_n;
    g.device.product(false, true, count, early * s.H, s.P, state, before ? y_stride : s.P, g.w_hh(d), s.P,
                     pointer<A>(gh), G * s.H, false);
    if (g.cell.resets_before) {
      g.check(g.steps_of.reset_forward(scan, extras, t, count, pointer<A>(gh), pointer<T>(reset_h), stream));
      g.device.product(false, true, count, (G - early) * s.H, s.H, pointer<T>(reset_h), s.H,
                       g.w_hh(d) + early * s.H * s.P, s.P, pointer<A>(gh) + early * s.H, G * s.H, false);
    }
    if (g.extended)
      g.check(g.steps_of.row_forward(scan, extras, t, count, pointer<A>(gh), stream));
    else
      g.check(g.steps_of.streaming_forward(scan, row, count, first, from_y && i == s.T - 1, pointer<A>(gh), stream));
    if (!s.projection) continue;
    const T* h_cell = scan.y + row * s.H;
    if (g.extended) {
      g.device.product(false, true, count, s.P, s.H, h_cell, s.H, g.w_hr(d), s.H, pointer<A>(projected), s.P, false);
      g.check(g.kernels.projected_states(outer, extras, t, count, pointer<A>(projected), stream));
    } else {
      g.device.product(false, true, count, s.P, s.H, h_cell, s.H, g.w_hr(d), s.H, h_n, s.P, false);
      g.check(g.kernels.copy_rows(y + row * y_stride, y_stride, h_n, s.P, count, s.P, stream));
    }
  }
}

template <class T>
void forward_layer(const Layer& layer, const Outputs& out, const Saved& saved) {
  using A = Acc<T>;
  constexpr bool kExact = std::is_same_v<A, T>;
  const CudaLayer<T> g(layer.cell.name, layer);
  const LayerShape& s = g.s;
  const Plan plan = g.plan(false);
  const Tensor &y = out.y, &gates = saved.gates;
  Tensor h_cell = saved.h_cell;  // h before the projection
  if (s.projection && !h_cell.defined()) h_cell = g.buffer({s.D, s.N, s.H}, type_of<T>());
  const int64_t in_place = kExact && gates.defined() ? layer.saved_per_unit() * s.H : 0;

  int64_t at_once = s.T;
  Tensor projected;
  if (!in_place) {
    const int64_t bytes = s.D * s.B * g.cell.gates * s.H * int64_t(sizeof(A));
    at_once = std::clamp<int64_t>(most_projected() / bytes, 1, s.T);
    const int64_t rows = std::min(s.N, at_once * s.B);
    projected = g.buffer({s.D, rows, g.cell.gates * s.H}, type_of<A>());
  }

  // States in full precision between two launches: where that is T's own, the outputs themselves. A product reads h_n.
  const bool from_y = g.uniform && !s.projection;
  Tensors state(g.cell.states());
  const auto make_states = [&](bool streams) {
    for (size_t k = 0; k < state.size(); ++k) {
      const bool filled = streams && !from_y;
      if (filled) out.state(k).copy_(layer.hx[k]);
      state[k] = kExact   ? out.state(k)
                 : filled ? layer.hx[k].to(type_of<A>())
                          : g.buffer(out.state(k).sizes(), type_of<A>());
    }
  };
  bool streams = plan.tier == Tier::kStreaming;
  if (streams || at_once < s.T) make_states(streams);
  const int64_t width = g.mail_width();
  Tensor mail;
  if (plan.tier == Tier::kGrid && width != s.H) mail = g.buffer({s.D, s.N, width}, type_of<T>());

  for (int64_t begin = 0; begin < s.T; begin += at_once) {
    Directions<ForwardScan<T>> directions{int(s.D), {}};
    for (int64_t d = 0; d < s.D; ++d) {
      ForwardScan<T>& scan = directions.of[d];
      scan.steps = g.steps(d);
      scan.steps.begin = begin, scan.steps.end = std::min(begin + at_once, s.T);
      scan.H = s.H;
      scan.w_hh = g.w_hh(d);
      scan.b_ih = g.b_ih(d), scan.b_hh = g.b_hh(d);
      if (!s.projection) {
        scan.h_0 = g.hx(0, d), scan.h_n = pointer<T>(out.h_n, d);
        scan.y = pointer<T>(y) + d * s.P, scan.y_stride = s.D * s.P;
      } else {
        scan.y = pointer<T>(h_cell, d), scan.y_stride = s.H;
      }
      if (g.cell.has_c) scan.c_0 = g.hx(1, d), scan.c_n = pointer<T>(out.c_n, d);
      scan.gates = pointer<T>(gates, d);
      scan.kept_c = pointer<T>(saved.c, d);
      scan.choice = layer.choice;
      scan.w_ch = g.weight(d, s.at.w_ch);
      project(g, d, scan, in_place ? pointer<A>(gates, d) : pointer<A>(projected, d), in_place);
    }
    const auto set_states = [&] {
      for (int64_t d = 0; d < s.D; ++d) {
        ForwardScan<T>& scan = directions.of[d];
        if (!s.projection && !(streams && from_y && g.cell.has_c)) scan.h = pointer<A>(state[0], d);
        if (!s.projection && !kExact && streams && !from_y) scan.h_rounded = pointer<T>(out.h_n, d);
        if (g.cell.has_c) scan.c = pointer<A>(state[1], d);
      }
    };
    if (state[0].defined()) set_states();
    if (!streams) {
      for (int64_t d = 0; d < s.D; ++d) {
        ForwardScan<T>& scan = directions.of[d];
        scan.mail = mail.defined() ? pointer<T>(mail, d) : scan.y;
        scan.mail_stride = mail.defined() ? width : scan.y_stride;
        if (plan.tier != Tier::kGrid) continue;
        const auto [first, rows] = g.rows(d, begin, scan.steps.end);  // after what project() has written
        g.clear_mail(scan.mail + first * scan.mail_stride, scan.mail_stride, rows);
      }
      if (g.scan(directions, plan)) continue;
      streams = true;
      if (begin == 0) make_states(true);
      if (begin > 0 && !kExact && !from_y) out.h_n.copy_(state[0]);
      set_states();
    }
    for (int64_t d = 0; d < s.D; ++d) {
      ForwardExtras<T> extras{g.extras(d), nullptr, s.D * s.H};
      if (out.all_c.defined()) extras.all_c = pointer<T>(out.all_c) + d * s.H;
      stream_forward(g, d, directions.of[d], extras, pointer<A>(state[0], d), pointer<T>(out.h_n, d),
                     pointer<T>(y) + d * s.P);
    }
  }
  if (g.cell.has_c && !kExact && streams && !from_y) out.c_n.copy_(state[1]);
}

}  // namespace
}  // namespace adl
