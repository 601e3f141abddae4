// One unit of one sequence at one step: what every tier does around its product.
//
// `row` is the same for all threads of a block, `column` counts on from there: so the compiler keeps one address for
// all, and 32 bits of a thread's own.
#pragma once

#include "common/cuda/real.cuh"
#include "recurrent/cells/cells.h"
#include "recurrent/cuda/params.h"

namespace adl {

__device__ __forceinline__ int64_t step_of(const Steps& s, int64_t i) { return s.reverse ? s.T - 1 - i : i; }

__device__ __forceinline__ int64_t row_of(const Steps& s, int64_t t) { return s.offsets ? s.offsets[t] : t * s.B; }

// Sequences that are under way at step t; they are the first ones.
__device__ __forceinline__ int64_t count_of(const Steps& s, int64_t t) {
  return s.offsets ? s.offsets[t + 1] - s.offsets[t] : s.B;
}

__device__ __forceinline__ Before before(const Steps& s, int64_t t) {
  const int64_t other = s.reverse ? t + 1 : t - 1;
  if (other < 0 || other >= s.T) return {0, 0};
  return {row_of(s, other), count_of(s, other)};
}

// A sequence at a step.
struct At {
  int64_t b, row;
  int64_t previous;  // the row of the step before, in the order of the scan; -1: that is the initial state
  bool active;       // the sequence has this step
  bool fresh;        // a new sequence begins here: the state before is zero
  bool cut;          // gradients do not pass to the step before

  __device__ __forceinline__ At(const Steps& s, int64_t t, int64_t sequence) : b(sequence) {
    const int64_t length = s.lengths ? s.lengths[b] : s.T;
    const int64_t boundary = s.reverse ? t + 1 : t;  // lies between this step and the one before
    const bool inside = boundary < s.T && boundary < length && b < count_of(s, boundary);
    const bool begun = inside && boundary > 0;
    row = row_of(s, t) + b;
    previous = begun ? row_of(s, s.reverse ? t + 1 : t - 1) + b : -1;
    active = t < length;
    fresh = inside && s.reset && s.reset[boundary * s.B + b];
    cut = fresh || (begun && s.bptt_steps && boundary % s.bptt_steps == 0);
  }
};

// The state before a step, from where the step before left it or from the initial one; both with rows of `width`
// numbers, those of `states` stride apart.
template <class T>
__device__ __forceinline__ Acc<T> state_before(const At& at, const T* states, int64_t stride, const T* initial,
                                               int64_t width, unsigned u) {
  if (at.fresh) return 0;
  return to_acc(at.previous < 0 ? initial[at.b * width + u] : states[at.previous * stride + u]);
}

// The maps kIh and kHh of a cell. Device code has no arrays of a class, but numbers: four bits for each gate.
template <int n>
constexpr unsigned digits(const int (&map)[n]) {
  unsigned code = 0;
  for (int k = 0; k < n; ++k) code |= unsigned(map[k]) << 4 * k;
  return code;
}
template <class Cell>
__device__ __forceinline__ int ih(int gate) {
  constexpr unsigned code = digits(Cell::kIh);
  return code >> 4 * gate & 15;
}
template <class Cell>
__device__ __forceinline__ int hh(int gate) {
  constexpr unsigned code = digits(Cell::kHh);
  return code >> 4 * gate & 15;
}

// The biases of a unit, for each of its pre-activations.
template <class Cell, class T>
__device__ __forceinline__ void load_bias(const T* b_ih, const T* b_hh, int64_t H, int64_t u,
                                          Acc<T> (&bias)[Cell::kPre]) {
#pragma unroll
  for (int p = 0; p < Cell::kPre; ++p) bias[p] = 0;
  if (!b_ih || u >= H) return;
#pragma unroll
  for (int k = 0; k < Cell::kGates; ++k) {
    bias[ih<Cell>(k)] += to_acc(b_ih[k * H + u]);
    bias[hh<Cell>(k)] += to_acc(b_hh[k * H + u]);
  }
}

// The peepholes of a unit: zero where there are none.
template <class Cell, class T>
struct Peepholes {
  Real<Acc<T>> of[Cell::kPeepholes > 0 ? Cell::kPeepholes : 1];

  __device__ __forceinline__ Peepholes(const T* w_ch, unsigned H, unsigned u) {
#pragma unroll
    for (int k = 0; k < Cell::kPeepholes; ++k) of[k] = Real<Acc<T>>(w_ch ? to_acc(w_ch[k * H + u]) : Acc<T>(0));
  }
};

// Adds what a step of sequence b gives to the gradients of its peepholes; dgates: of the pre-activations.
template <class Cell, class T>
__device__ __forceinline__ void add_to_dw_ch(const BackwardScan<T>& s, int64_t b, unsigned u,
                                             const Real<Acc<T>> (&dgates)[Cell::kPre], Acc<T> c_prev, Acc<T> c) {
  if constexpr (Cell::kPeepholes > 0) {
    if (!s.dw_ch) return;
    const unsigned H = s.H;
    Acc<T>* sums = s.dw_ch + b * (Cell::kPeepholes * s.H) + u;
    sums[0] += dgates[Cell::I].v * c_prev;
    if constexpr (Cell::kLearned) sums[H] += dgates[Cell::F].v * c_prev;
    sums[(Cell::kPeepholes - 1) * H] += dgates[Cell::O].v * c;
  }
}

template <class Cell, class T>
__device__ __forceinline__ void load_gx(const ForwardScan<T>& s, int64_t row, unsigned column, unsigned u,
                                        Acc<T> (&gx)[Cell::kGates]) {
  const Acc<T>* from = s.gx + (row - s.gx_first) * s.gx_stride;
  const unsigned H = s.H, at = column * unsigned(s.gx_stride) + u;
#pragma unroll
  for (int k = 0; k < Cell::kGates; ++k) gx[k] = from[at + k * H];
}

// The state of a unit before a scan, or a part of it that is not the first.
template <class Cell, class T>
__device__ __forceinline__ void load_state(const ForwardScan<T>& s, bool first, int64_t at, Acc<T>& h, Acc<T>& c) {
  h = first ? to_acc(s.h_0[at]) : s.h ? s.h[at] : Acc<T>(0);
  if (Cell::kHasC) c = first ? to_acc(s.c_0[at]) : s.c[at];
}

// The same after it.
template <class Cell, class T>
__device__ __forceinline__ void store_state(const ForwardScan<T>& s, bool last, int64_t at, Acc<T> h, Acc<T> c) {
  if (last)
    s.h_n[at] = from_acc<T>(h);
  else if (s.h)
    s.h[at] = h;
  if (!Cell::kHasC) return;
  if (last)
    s.c_n[at] = from_acc<T>(c);
  else
    s.c[at] = c;
}

// The gradients of the state after a scan.
template <class Cell, class T>
__device__ __forceinline__ void load_state(const BackwardScan<T>& s, int64_t at, Acc<T>& dh, Acc<T>& dc) {
  dh = s.dh_n ? to_acc(s.dh_n[at]) : Acc<T>(0);
  if (Cell::kHasC) dc = s.dc_n ? to_acc(s.dc_n[at]) : Acc<T>(0);
}

// Those of the state before it.
template <class Cell, class T>
__device__ __forceinline__ void store_state(const BackwardScan<T>& s, int64_t at, Acc<T> dh, Acc<T> dc) {
  s.dh_0[at] = from_acc<T>(dh);
  if (Cell::kHasC) s.dc_0[at] = from_acc<T>(dc);
}

// gx: W_ih x; gh: W_hh h. h and c: the state, in at t - 1, out at t. pre: what backward needs of the gates.
template <class Cell, class T>
__device__ __forceinline__ void forward_cell(const ForwardScan<T>& s, unsigned u, const Acc<T> (&bias)[Cell::kPre],
                                             const Acc<T> (&gx)[Cell::kGates], const Acc<T> (&gh)[Cell::kGates],
                                             Acc<T>& h, Acc<T>& c, Acc<T> (&pre)[Cell::kPre]) {
  using V = Real<Acc<T>>;
  V gates[Cell::kPre], h_v(h), c_v(c);
#pragma unroll
  for (int p = 0; p < Cell::kPre; ++p) gates[p] = V(bias[p]);
#pragma unroll
  for (int k = 0; k < Cell::kGates; ++k) {
    gates[ih<Cell>(k)].v += gx[k];
    gates[hh<Cell>(k)].v += gh[k];
  }
  const Peepholes<Cell, T> p_c(s.w_ch, unsigned(s.H), u);
  cell_forward<Cell>(gates, h_v, c_v, p_c.of, s.choice);
  h = h_v.v, c = c_v.v;
#pragma unroll
  for (int p = 0; p < Cell::kPre; ++p) pre[p] = gates[p].v;
}

// The same, and stores what it leaves.
template <class Cell, class T>
__device__ __forceinline__ void forward_unit(const ForwardScan<T>& s, int64_t row, unsigned column, unsigned u,
                                             const Acc<T> (&bias)[Cell::kPre], const Acc<T> (&gx)[Cell::kGates],
                                             const Acc<T> (&gh)[Cell::kGates], Acc<T>& h, Acc<T>& c) {
  Acc<T> pre[Cell::kPre];
  forward_cell<Cell>(s, u, bias, gx, gh, h, c, pre);
  const unsigned H = s.H;
  T* y = s.y + row * s.y_stride;
  y[column * unsigned(s.y_stride) + u] = from_acc<T>(h);
  if (Cell::kSavesGates && s.gates) {
    T* gates = s.gates + row * (Cell::kPre * s.H);
#pragma unroll
    for (int p = 0; p < Cell::kPre; ++p) gates[(column * Cell::kPre + p) * H + u] = from_acc<T>(pre[p]);
  }
  if (Cell::kHasC && s.kept_c) (s.kept_c + row * s.H)[column * H + u] = from_acc<T>(c);
}

// What backward reads of a unit at a step.
template <class Cell, class T>
struct Kept {
  Acc<T> gates[Cell::kPre], h_prev, h, c_prev, c, dy;
};

// `first` + `column` is the sequence.
template <class Cell, class T>
__device__ __forceinline__ void load_kept(const BackwardScan<T>& s, int64_t first, int64_t row, unsigned column,
                                          const Before& before, unsigned u, Kept<Cell, T>& kept) {
  const unsigned H = s.H, y_stride = s.y_stride, at = column * H + u, at_y = column * y_stride + u;
  const bool begun = first + column < before.count;
  if constexpr (Cell::kSavesGates) {
    const T* gates = s.gates + row * (Cell::kPre * s.H);
#pragma unroll
    for (int p = 0; p < Cell::kPre; ++p) kept.gates[p] = to_acc(gates[(column * Cell::kPre + p) * H + u]);
  }
  if constexpr (Cell::kHasC) {
    kept.c = to_acc((s.kept_c + row * s.H)[at]);
    kept.c_prev = to_acc((begun ? s.kept_c + (before.row + first) * s.H : s.c_0 + first * s.H)[at]);
  } else {
    kept.h = to_acc((s.y + row * s.y_stride)[at_y]);
    kept.h_prev = to_acc(begun ? (s.y + (before.row + first) * s.y_stride)[at_y] : (s.h_0 + first * s.H)[at]);
  }
  kept.dy = s.dy ? to_acc((s.dy + row * s.y_stride)[at_y]) : Acc<T>(0);
}

template <class Cell, class T>
__device__ __forceinline__ void load_kept(const BackwardScan<T>& s, const At& at, unsigned u, Kept<Cell, T>& kept) {
  const unsigned H = s.H;
  if constexpr (Cell::kSavesGates)
#pragma unroll
    for (int p = 0; p < Cell::kPre; ++p) kept.gates[p] = to_acc(s.gates[at.row * (Cell::kPre * s.H) + p * H + u]);
  if constexpr (Cell::kHasC) {
    kept.c = to_acc(s.kept_c[at.row * s.H + u]);
    kept.c_prev = state_before(at, s.kept_c, s.H, s.c_0, s.H, u);
  } else {
    kept.h = to_acc(s.y[at.row * s.y_stride + u]);
    kept.h_prev = state_before(at, s.y, s.y_stride, s.h_0, s.H, u);
  }
  kept.dy = s.dy ? to_acc(s.dy[at.row * s.y_stride + u]) : Acc<T>(0);
}

// dh and dc: in dL/dh_t without dy, and dL/dc_t; out the part of dL/dh_{t-1} that bypasses W_hh, and dL/dc_{t-1}.
// Leaves the gradients of the pre-activations in kept.gates. `b` is the sequence.
template <class Cell, class T>
__device__ __forceinline__ void backward_cell(const BackwardScan<T>& s, int64_t b, unsigned u, Kept<Cell, T>& kept,
                                              Acc<T>& dh, Acc<T>& dc) {
  using V = Real<Acc<T>>;
  V gates[Cell::kPre], dh_v(dh + kept.dy), dc_v(dc);
#pragma unroll
  for (int p = 0; p < Cell::kPre; ++p) gates[p] = V(kept.gates[p]);
  const Peepholes<Cell, T> p_c(s.w_ch, unsigned(s.H), u);
  cell_backward<Cell>(gates, V(kept.h_prev), V(kept.h), V(kept.c_prev), V(kept.c), dh_v, dc_v, p_c.of, s.choice);
  dh = dh_v.v, dc = dc_v.v;
  add_to_dw_ch<Cell>(s, b, u, gates, kept.c_prev, kept.c);
#pragma unroll
  for (int p = 0; p < Cell::kPre; ++p) kept.gates[p] = gates[p].v;
}

// The same, and stores them. `first` + `column` is the sequence.
template <class Cell, class T>
__device__ __forceinline__ void backward_unit(const BackwardScan<T>& s, int64_t first, int64_t row, unsigned column,
                                              unsigned u, Kept<Cell, T>& kept, Acc<T>& dh, Acc<T>& dc) {
  backward_cell(s, first + column, u, kept, dh, dc);
  const unsigned H = s.H;
  T* dgates = s.dgates + row * (Cell::kPre * s.H);
#pragma unroll
  for (int p = 0; p < Cell::kPre; ++p) dgates[(column * Cell::kPre + p) * H + u] = from_acc<T>(kept.gates[p]);
}

}  // namespace adl
