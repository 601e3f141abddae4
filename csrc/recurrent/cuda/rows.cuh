// A step of the streaming tier for layers that ask for more than torch.nn's own, and of cells that reset before the
// product: a block has a sequence, so that it can sum over its units. That one block of a multiprocessor is enough is
// said in the launch bounds: else ptxas, to fit another, spills in double.
#pragma once

#include "recurrent/cuda/norm.cuh"

namespace adl {

// Of pointers that may be null.
template <class T>
__device__ __forceinline__ T* at_row(T* p, int64_t row, int64_t width) {
  return p ? p + row * width : nullptr;
}

template <class Cell, class T>
__device__ __forceinline__ void load_bias(const T* b_ih, const T* b_hh, int64_t H, unsigned u,
                                          Real<Acc<T>> (&pre)[Cell::kPre]) {
  Acc<T> bias[Cell::kPre];
  load_bias<Cell>(b_ih, b_hh, H, u, bias);
#pragma unroll
  for (int p = 0; p < Cell::kPre; ++p) pre[p].v = bias[p];
}

// Until h_t without c, or c_t; h and c: in at t - 1. What stands between the products and the state.
template <class Cell, class T, class From>
__device__ __forceinline__ void begin_unit(const Products<Cell, T, From>& products, const T* b_ih, const T* b_hh,
                                           const T* w_ch, const Choice& choice, unsigned u,
                                           Real<Acc<T>> (&pre)[Cell::kPre], Real<Acc<T>>& h, Real<Acc<T>>& c) {
  load_bias<Cell>(b_ih, b_hh, products.H, u, pre);
  products.add_to(pre, u);
  if constexpr (Cell::kResetsBefore) Cell::reset(pre);
  if constexpr (Cell::kHasC)
    Cell::remember(pre, c, Peepholes<Cell, T>(w_ch, products.H, u).of, choice);
  else
    Cell::forward(pre, h, choice);
}

// gh [B, G, H]: W_hh h.
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    row_forward(const ForwardScan<T> s, const ForwardExtras<T> x, int64_t t, const Acc<T>* gh) {
  using A = Acc<T>;
  using V = Real<A>;
  const At at(s.steps, t, blockIdx.x);
  const unsigned H = s.H;
  const int64_t state = at.b * s.H;
  if (!at.active) {  // what backward multiplies by zero must not be NaN
    for (unsigned u = threadIdx.x; u < H; u += blockDim.x) {
      s.y[at.row * s.y_stride + u] = from_acc<T>(0);
      if (Cell::kHasC && s.kept_c) s.kept_c[at.row * s.H + u] = from_acc<T>(0);
    }
    return;
  }
  const Products<Cell, T, A> products(x, s.H, s.gx + (at.row - s.gx_first) * s.gx_stride,
                                      gh + at.b * (Cell::kGates * s.H), true);
  const auto before = [&](const A* states, unsigned u) { return V(!states || at.fresh ? A(0) : states[state + u]); };
  const auto begin = [&](unsigned u, V(&pre)[Cell::kPre], V& h, V& c) {
    h = before(s.h, u);
    if (Cell::kHasC) c = before(s.c, u);
    begin_unit(products, s.b_ih, s.b_hh, s.w_ch, s.choice, u, pre, h, c);
  };
  V pre[Cell::kPre], h, c;
  Moments<A> of_c;
  if constexpr (Cell::kHasC)
    if (x.ln_c)
      of_c = moments<A>(H, [&](unsigned u) {
        begin(u, pre, h, c);
        return c.v;
      });

  for (unsigned u = threadIdx.x; u < H; u += blockDim.x) {
    begin(u, pre, h, c);
    if constexpr (Cell::kHasC)
      h = Cell::emit(pre, x.ln_c ? V(of_c(c.v) * to_acc(x.ln_c[u]) + to_acc(x.ln_c_shift[u])) : c, s.choice);
    if (s.gates && x.ln_ih) {
      T* kept = s.gates + at.row * (2 * Cell::kGates * s.H) + u;
#pragma unroll
      for (unsigned k = 0; k < Cell::kGates; ++k) {
        kept[k * H] = from_acc<T>(products.gx[k * H + u]);
        kept[(Cell::kGates + k) * H] = from_acc<T>(products.gh[k * H + u]);
      }
    } else if (s.gates) {
      T* kept = s.gates + at.row * (Cell::kPre * s.H) + u;
#pragma unroll
      for (unsigned p = 0; p < Cell::kPre; ++p) kept[p * H] = from_acc<T>(pre[p].v);
    }
    if constexpr (Cell::kHasC) {
      if (x.zoneout) c.v = mixed(share(x, x.zone_c, 1, at.row * s.H + u), before(s.c, u).v, c.v);
      s.c[state + u] = c.v;
      if (s.kept_c) s.kept_c[at.row * s.H + u] = from_acc<T>(c.v);
      if (x.all_c) x.all_c[at.row * x.c_stride + u] = from_acc<T>(c.v);
    }
    finish_h(s, x, at, u, h.v);
  }
}

// The same backward, without W_hh. Leaves in s.dh the part of dL/dh_{t-1} that bypasses W_hh. For cells that reset
// before the product, reset_backward has to follow: until then dgates hold r at the place of its gradient.
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    row_backward(const BackwardScan<T> s, const BackwardExtras<T> x, int64_t t) {
  using A = Acc<T>;
  using V = Real<A>;
  constexpr unsigned kGates = Cell::kGates, kPre = Cell::kPre;
  const At at(s.steps, t, blockIdx.x);
  const unsigned H = s.H;
  const int64_t state = at.b * s.H;
  T* const dgates = s.dgates + at.row * (kPre * s.H);
  T* const dproducts = at_row(x.dproducts, at.row, 2 * kGates * s.H);
  if (!at.active) {
    for (unsigned i = threadIdx.x; i < kPre * H; i += blockDim.x) dgates[i] = from_acc<T>(0);
    for (unsigned i = threadIdx.x; dproducts && i < 2 * kGates * H; i += blockDim.x) dproducts[i] = from_acc<T>(0);
    return;
  }
  const T* const kept = at_row(s.gates, at.row, (x.ln_ih ? 2 * kGates : kPre) * s.H);
  const Products<Cell, T, T> products(x, s.H, kept, x.ln_ih ? kept + kGates * s.H : nullptr, true);

  // What forward had: the gates, the state before the step, what the cell made of it.
  V gates[kPre], h_prev, h, c_prev, c;
  const auto load = [&](unsigned u) {
    if constexpr (Cell::kHasC)
      c_prev = c = V(state_before(at, s.kept_c, s.H, s.c_0, s.H, u));
    else
      h_prev = h = V(state_before(at, s.y, s.y_stride, s.h_0, s.H, u));
    if (x.ln_ih) {
      begin_unit(products, x.b_ih, x.b_hh, s.w_ch, s.choice, u, gates, h, c);
      return;
    }
    if (kept)
#pragma unroll
      for (unsigned p = 0; p < kPre; ++p) gates[p].v = to_acc(kept[p * H + u]);
    if constexpr (Cell::kHasC)
      c = x.zoneout ? Cell::candidate(gates, c_prev, s.choice) : V(to_acc(s.kept_c[at.row * s.H + u]));
    else if constexpr (!Cell::kSavesGates)
      h = kept ? gates[0] : V(to_acc(s.y[at.row * s.y_stride + u]));
  };

  // Back through the layer norm of c: the gradient of c is scale (gain ds - mean - normed slope).
  Moments<A> of_c;
  A mean = 0, slope = 0, around;
  const auto normed_c = [&](unsigned u) {
    return x.ln_c ? V(of_c(c.v) * to_acc(x.ln_c[u]) + to_acc(x.ln_c_shift[u])) : c;
  };
  if constexpr (Cell::kHasC)
    if (x.ln_c) {
      of_c = moments<A>(H, [&](unsigned u) {
        load(u);
        return c.v;
      });
      for (unsigned u = threadIdx.x; u < H; u += blockDim.x) {
        load(u);
        const V dh(finish_h_backward(s, x, at, u, around));
        const A v = to_acc(x.ln_c[u]) * Cell::emit_backward(gates, normed_c(u), dh, s.choice).v;
        mean += v, slope += v * of_c(c.v);
      }
      mean = block_sum(mean) / A(H), slope = block_sum(slope) / A(H);
    }

  for (unsigned u = threadIdx.x; u < H; u += blockDim.x) {
    load(u);
    V dh(finish_h_backward(s, x, at, u, around));
    if constexpr (Cell::kHasC) {
      A dc = s.dc[state + u] + (x.dall_c ? to_acc(x.dall_c[at.row * x.c_stride + u]) : A(0));
      const A dc_around = share(x, x.zone_c, 1, at.row * s.H + u) * dc;
      A ds = Cell::emit_backward(gates, normed_c(u), dh, s.choice).v;
      if (x.ln_c) {
        const A normed = of_c(c.v);
        A* const sums = x.dln_c + 2 * state + u;
        sums[0] += ds * normed, sums[H] += ds;
        ds = of_c.scale * (to_acc(x.ln_c[u]) * ds - mean - normed * slope);
      }
      V dc_v(dc - dc_around + ds);
      Cell::remember_backward(gates, c_prev, dc_v, Peepholes<Cell, T>(s.w_ch, H, u).of, s.choice);
      s.dc[state + u] = at.cut ? A(0) : dc_v.v + dc_around;
      s.dh[state + u] = around;
      add_to_dw_ch<Cell>(s, at.b, u, gates, c_prev.v, c.v);
    } else {
      Cell::backward(gates, h_prev, h, dh, s.choice);
      s.dh[state + u] = dh.v + around;
    }
#pragma unroll
    for (unsigned p = 0; p < kPre; ++p) dgates[p * H + u] = from_acc<T>(gates[p].v);
  }

  if (!x.ln_ih) return;
  A* const sums = x.dln + 2 * kGates * state;
  const auto d_h = [&](int k, unsigned u) { return to_acc(dgates[hh<Cell>(k) * H + u]); };
  if constexpr (Cell::kResetsBefore) {
    norm_backward(products.of_late, products.gh, x.ln_hh, products.kFirst, kGates, H, d_h, dproducts + kGates * H,
                  sums + kGates * H);
  } else {
    const auto d_x = [&](int k, unsigned u) { return to_acc(dgates[ih<Cell>(k) * H + u]); };
    norm_backward(products.of_x, products.gx, x.ln_ih, 0, kGates, H, d_x, dproducts, sums);
    norm_backward(products.of_h, products.gh, x.ln_hh, 0, kGates, H, d_h, dproducts + kGates * H, sums + kGates * H);
  }
}

// Between the products of a cell that resets before the second: out [B, H] = r h, with h as W_hh sees it.
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    reset_forward(const ForwardScan<T> s, const ForwardExtras<T> x, int64_t t, const Acc<T>* gh, T* out) {
  using A = Acc<T>;
  const At at(s.steps, t, blockIdx.x);
  const unsigned H = s.H;
  const int64_t state = at.b * s.H;
  const Products<Cell, T, A> products(x, s.H, s.gx + (at.row - s.gx_first) * s.gx_stride,
                                      gh + at.b * (Cell::kGates * s.H), false);
  for (unsigned u = threadIdx.x; u < H; u += blockDim.x) {
    Real<A> pre[Cell::kPre];
    load_bias<Cell>(s.b_ih, s.b_hh, s.H, u, pre);
    pre[0].v += products.x(0, u) + products.h(0, u);
    const A h = masked(x, at, s.H, u, at.fresh ? A(0) : s.h[state + u]);
    out[state + u] = from_acc<T>(Cell::reset(pre).v * h);
  }
}

// d [B, H]: dL/d(r h). Adds the part of the gradient of h that came this way to dh, and leaves r h in reset_h [N, H].
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads, 1) reset_backward(const BackwardScan<T> s, const BackwardExtras<T> x,
                                                                  int64_t t, const Acc<T>* d, Acc<T>* dh, T* reset_h) {
  using A = Acc<T>;
  using V = Real<A>;
  constexpr unsigned kGates = Cell::kGates;
  const At at(s.steps, t, blockIdx.x);
  const unsigned H = s.H;
  const int64_t state = at.b * s.H;
  T* const dgates = s.dgates + at.row * (Cell::kPre * s.H);
  if (!at.active) {
    for (unsigned u = threadIdx.x; u < H; u += blockDim.x) reset_h[at.row * s.H + u] = from_acc<T>(0);
    return;
  }
  for (unsigned u = threadIdx.x; u < H; u += blockDim.x) {
    V r[1] = {V(to_acc(dgates[u]))};
    const V h(masked(x, at, s.H, u, state_before(at, s.y, s.y_stride, s.h_0, s.H, u)));
    reset_h[at.row * s.H + u] = from_acc<T>((r[0] * h).v);
    dh[state + u] += Cell::reset_backward(r, h, V(d[state + u])).v;
    dgates[u] = from_acc<T>(r[0].v);
  }
  if (!x.ln_ih) return;
  const T* const kept = s.gates + at.row * (2 * kGates * s.H);
  T* const dproducts = x.dproducts + at.row * (2 * kGates * s.H);
  A* const sums = x.dln + 2 * kGates * state;
  const Products<Cell, T, T> products(x, s.H, kept, kept + kGates * s.H, false);
  const auto gradient = [&](int k, unsigned u) { return to_acc(dgates[k * H + u]); };
  norm_backward(products.of_x, products.gx, x.ln_ih, 0, kGates, H, gradient, dproducts, sums);
  norm_backward(products.of_h, products.gh, x.ln_hh, 0, products.kFirst, H, gradient, dproducts + kGates * H,
                sums + kGates * H);
}

}  // namespace adl
