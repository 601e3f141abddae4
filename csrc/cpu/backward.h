// Backpropagation through time of one direction: the scan runs the steps in the opposite order and leaves
// the gradients of all pre-activations; gradients.h makes those of x and of the weights from them.
#pragma once

#include "cpu/plan.h"

namespace adl {
namespace {

template <class Cell, class T>
struct BackwardScan {
  using L = Layout<Cell>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns;

  const Backward<T>& p;
  const Sequence& s = p.sequence;
  const Weights<T>& w = p.weights;
  const int64_t J = blocks(w.H, kUnits);  // blocks of units
  const int64_t QP = blocks(w.P, kPanel), QH = blocks(w.H, kPanel);
  const int64_t ldh = padded(at_least(w.H, w.P));
  const bool direct = s.N <= kFewRows;  // weights are used as they are, not packed

  T* w_hh;           // [QP, J, G, U, 64]
  T* w_hr;           // [QH, P, 64]
  T* dgates;         // [J, N, pre, U]
  T* dh;             // [B, ldh] dL/dh_t on the way to dL/dh_{t-1}
  T* dh_cell;        // [B, ldh] dL/dh before the projection; == dh without one
  T* dh_all;         // [N, 64 QP] dL/dh_t of every row, for dL/dw_hr
  T* c_0;            // [J, B, U]
  T* dc;             // [J, B, U]
  const T** h_prev;  // [N] where h_{t-1} of each row is

  Barrier barrier;

  explicit BackwardScan(const Backward<T>& params) : p(params) {}

  void take(Arena& arena) {
    w_hh = arena.take<T>(direct ? 0 : QP * J * kColumns * kPanel);
    w_hr = arena.take<T>(w.w_hr ? QH * w.P * kPanel : 0);
    dgates = arena.take<T>(J * s.N * kRow);
    dh = arena.take<T>(s.B * ldh);
    dh_cell = w.w_hr ? arena.take<T>(s.B * ldh) : dh;
    dh_all = arena.take<T>(w.w_hr ? s.N * QP * kPanel : 0);
    c_0 = arena.take<T>(Cell::kHasC ? J * s.B * kUnits : 0);
    dc = arena.take<T>(Cell::kHasC ? J * s.B * kUnits : 0);
    h_prev = arena.take<const T*>(s.N);
  }

  void run(int index, int threads) {
    prepare(index, threads);
    barrier.meet();
    Worker worker{*this, splits_rows(s, threads), {0, s.B}, {0, J}, {0, QH}, {0, QP}};
    if (worker.by_rows) {
      worker.rows = share_rows(s, index, threads);
    } else {  // units and columns of dh are owned together, by whole panels: a thread reads its own dh only
      constexpr int64_t kBlocks = kPanel / kUnits;
      worker.panels_h = share(QH, index, threads);
      worker.panels_p = share(QP, index, threads);
      worker.units = {at_most(worker.panels_h.begin * kBlocks, J), at_most(worker.panels_h.end * kBlocks, J)};
    }
    worker.scan();
  }

  void prepare(int index, int threads) {
    for (int64_t q = index; q < QP && !direct; q += threads)
      pack_transposed<T, Cell::kGates, kUnits>(w.w_hh, w.H, w.P, q, Cell::kHh, L::kFirstHh,
                                               w_hh + q * J * kColumns * kPanel);
    for (int64_t q = index; w.w_hr && q < QH; q += threads)
      for (int64_t k = 0; k < w.P; ++k) pack_row(w.w_hr + k * w.H, q * kPanel, w.H, w_hr + (q * w.P + k) * kPanel);
    for (int64_t b = index; b < s.B; b += threads) {
      std::memset(dh + b * ldh, 0, ldh * sizeof(T));
      if (p.dh_n) std::memcpy(dh + b * ldh, p.dh_n + b * w.P, w.P * sizeof(T));
      if constexpr (Cell::kHasC) {
        for (int64_t unit = 0; unit < J * kUnits; ++unit) {
          const int64_t at = (unit / kUnits * s.B + b) * kUnits + unit % kUnits;
          c_0[at] = unit < w.H ? p.c_0[b * w.H + unit] : T(0);
          dc[at] = unit < w.H && p.dc_n ? p.dc_n[b * w.H + unit] : T(0);
        }
      }
    }
    for (int64_t t = index; t < s.T; t += threads) {
      for (int64_t b = 0; b < s.batch_sizes[t]; ++b) {
        const int64_t before = row_before(s, t, b);
        h_prev[s.offsets[t] + b] = before < 0 ? p.h_0 + b * w.P : p.y + before * p.y_stride;
      }
    }
  }

  // One thread's share: its sequences; its blocks of units and the panels they make; its panels of h.
  struct Worker {
    BackwardScan& f;
    bool by_rows;
    Range rows, units, panels_h, panels_p;

    void scan() {
      for (int64_t k = f.s.T - 1; k >= 0; --k) {
        const int64_t t = step_at(f.s, k), row = f.s.offsets[t] + rows.begin;
        const int64_t count = at_least(at_most(rows.end, f.s.batch_sizes[t]) - rows.begin, 0);
        if (f.p.dy) add_dy(row, count);
        if (f.w.w_hr) unproject(row, count);
        for (int64_t j = units.begin; j < units.end; ++j)
          for (int64_t r = 0; r < count; ++r) cell(t, rows.begin + r, j);
        if (!by_rows) f.barrier.meet();
        for (int64_t q = panels_p.begin; q < panels_p.end; ++q)
          f.times_transposed(row, count, f.w.w_hh, f.w.P, q, f.w_hh, Cell::kHh, L::kFirstHh,
                             f.dh + rows.begin * f.ldh + q * kPanel, f.ldh);
      }
    }

    void add_dy(int64_t row, int64_t count) {
      const int64_t begin = panels_p.begin * kPanel, end = at_most(panels_p.end * kPanel, f.w.P);
      for (int64_t r = 0; r < count; ++r) {
        T* dh = f.dh + (rows.begin + r) * f.ldh;
        const T* dy = f.p.dy + (row + r) * f.p.y_stride;
        for (int64_t k = begin; k < end; ++k) dh[k] += dy[k];
      }
    }

    // dh_cell = dh w_hr; dh is kept for the gradient of w_hr and starts anew.
    void unproject(int64_t row, int64_t count) {
      const int64_t column = panels_p.begin * kPanel, width = (panels_p.end - panels_p.begin) * kPanel;
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(f.dh_all + (row + r) * f.QP * kPanel + column, f.dh + (rows.begin + r) * f.ldh + column,
                    width * sizeof(T));
      if (!by_rows) f.barrier.meet();
      for (int64_t q = panels_h.begin; q < panels_h.end; ++q) {
        T* out = f.dh_cell + rows.begin * f.ldh + q * kPanel;
        for (int64_t r = 0; r < count; ++r) std::memset(out + r * f.ldh, 0, kPanel * sizeof(T));
        product<T, kPanel>(count, f.w.P, f.dh + rows.begin * f.ldh, f.ldh, f.w_hr + q * f.w.P * kPanel, out, f.ldh);
      }
      if (!by_rows) f.barrier.meet();
      for (int64_t r = 0; r < count; ++r) std::memset(f.dh + (rows.begin + r) * f.ldh + column, 0, width * sizeof(T));
    }

    void cell(int64_t t, int64_t b, int64_t j) {
      const Sequence& s = f.s;
      const int64_t row = s.offsets[t] + b, before = row_before(s, t, b), n = f.w.H - j * kUnits;
      const T* gates = f.p.gates + (j * s.N + row) * kRow;
      const T* c = f.p.c + (j * s.N + row) * kUnits;
      const T* c_prev = before < 0 ? f.c_0 + (j * s.B + b) * kUnits : f.p.c + (j * s.N + before) * kUnits;
      T* dgates = f.dgates + (j * s.N + row) * kRow;
      T* dc = f.dc + (j * s.B + b) * kUnits;
      T* dh = f.dh_cell + b * f.ldh + j * kUnits;
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V d[Cell::kPre], h_prev(0), h(0), dhv = V::load(dh + u), dcv(0), cv(0), cv_prev(0);
        if constexpr (Cell::kSavesGates) {
          for (int g = 0; g < Cell::kPre; ++g) d[g] = V::load(gates + g * kUnits + u);
          // A projected state has another width; no cell that can be projected looks at it.
          if (!f.w.w_hr) h_prev = V::load(f.h_prev[row] + j * kUnits + u, n - u);
        } else {
          h = V::load(f.p.y + row * f.p.y_stride + j * kUnits + u, n - u);
        }
        if constexpr (Cell::kHasC) dcv = V::load(dc + u), cv = V::load(c + u), cv_prev = V::load(c_prev + u);
        Cell::backward(d, h_prev, h, cv_prev, cv, dhv, dcv);
        for (int g = 0; g < Cell::kPre; ++g) d[g].store(dgates + g * kUnits + u);
        dhv.store(dh + u);
        if constexpr (Cell::kHasC) dcv.store(dc + u);
      }
    }
  };

  // out [count, 64] += dgates [count, J G U] times panel q of a transposed weight w [G * H, K].
  void times_transposed(int64_t row, int64_t count, const T* weight, int64_t K, int64_t q, const T* packed,
                        const int (&place)[Cell::kGates], int first, T* out, int64_t ldo) {
    for (int64_t j = 0; j < J; ++j) {
      const T* d = dgates + (j * s.N + row) * kRow;
      if (!direct) {
        product<T, kPanel>(count, kColumns, d + first * kUnits, kRow, packed + (q * J + j) * kColumns * kPanel, out,
                           ldo);
        continue;
      }
      for (int g = 0; g < Cell::kGates; ++g)
        for (int64_t m = 0; m < count; ++m)
          direct_columns(at_most(kUnits, w.H - j * kUnits), d + m * kRow + place[g] * kUnits,
                         weight + (g * w.H + j * kUnits) * K, K, q * kPanel, out + m * ldo);
    }
  }
};

}  // namespace
}  // namespace adl
