// Backpropagation through time of one direction: the scan runs the steps in the opposite order and leaves
// the gradients of all pre-activations; gradients.h makes those of x and of the weights from them.
#pragma once

#include "cpu/plan.h"

namespace adl {
namespace {

// Number types as in ForwardScan.
template <class Cell, class Io, class Mul>
struct BackwardScan {
  using L = Layout<Cell>;
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns, kPack = Operand<Mul>::kPack;

  const Backward<Io>& p;
  const Sequence& s = p.sequence;
  const Weights<Io>& w = p.weights;
  const int64_t J = blocks(w.H, kUnits);  // blocks of units
  const int64_t QP = blocks(w.P, kPanel), QH = blocks(w.H, kPanel);
  const int64_t ldh = padded(at_least(w.H, w.P)), ldp = QP * kPanel;
  const int64_t EP = blocks(w.P, kPack);  // in elements
  const bool direct = s.N <= kFewRows;    // weights are used as they are, not packed

  E* w_hh;            // [QP, J, G, U, 64]
  E* w_hr;            // [QH, P, 64]
  Mul* dgates;        // [J, N, pre, U]
  T* dh;              // [B, ldh] dL/dh_t on the way to dL/dh_{t-1}
  T* dh_cell;         // [B, ldh] dL/dh before the projection; == dh without one
  Mul* dh_all;        // [N, ldp] dL/dh_t of every row, where there is a projection
  Io* c_0;            // [J, B, U]
  T* dc;              // [J, B, U]
  const Io** h_prev;  // [N] where h_{t-1} of each row is

  Barrier barrier;

  explicit BackwardScan(const Backward<Io>& params) : p(params) {}

  void take(Arena& arena) {
    w_hh = arena.take<E>(direct ? 0 : QP * J * kColumns / kPack * kPanel);
    w_hr = arena.take<E>(w.w_hr ? QH * EP * kPanel : 0);
    dgates = arena.take<Mul>(J * s.N * kRow);
    dh = arena.take<T>(s.B * ldh);
    dh_cell = w.w_hr ? arena.take<T>(s.B * ldh) : dh;
    dh_all = arena.take<Mul>(w.w_hr ? s.N * ldp : 0);
    c_0 = arena.take<Io>(Cell::kHasC ? J * s.B * kUnits : 0);
    dc = arena.take<T>(Cell::kHasC ? J * s.B * kUnits : 0);
    h_prev = arena.take<const Io*>(s.N);
  }

  void run(int index, int threads) {
    prepare(index, threads);
    barrier.meet();
    Worker worker{*this, splits_rows(s, threads, QP, QP * panel() * sizeof(E)), {0, s.B}, {0, J}, {0, QH}, {0, QP}};
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
      pack_transposed<Mul, Cell::kGates, kUnits>(w.w_hh, w.H, w.P, q, Cell::kHh, L::kFirstHh, w_hh + q * panel());
    for (int64_t q = index; w.w_hr && q < QH; q += threads) {
      const int64_t columns = w.H - q * kPanel;
      for (int64_t k = 0; k < w.P; k += kPack) {
        const Io* row = w.w_hr + k * w.H + q * kPanel;
        pack_row<Mul>(row, kPack == 2 && k + 1 < w.P ? row + w.H : nullptr, columns,
                      w_hr + q * EP * kPanel + k / kPack * panel_width(columns));
      }
    }
    for (int64_t b = index; b < s.B; b += threads) {
      convert_row(p.dh_n + b * w.P, p.dh_n ? w.P : 0, dh + b * ldh, ldh);
      for (int64_t j = 0; j < J && Cell::kHasC; ++j) {
        const int64_t first = b * w.H + j * kUnits, n = at_most(kUnits, w.H - j * kUnits);
        const int64_t at = (j * s.B + b) * kUnits;
        convert_row(p.c_0 + first, n, c_0 + at, kUnits);
        convert_row(p.dc_n + first, p.dc_n ? n : 0, dc + at, kUnits);
      }
    }
    for (int64_t t = index; t < s.T; t += threads) {
      for (int64_t b = 0; b < s.batch_sizes[t]; ++b) {
        const int64_t before = row_before(s, t, b);
        h_prev[s.offsets[t] + b] = before < 0 ? p.h_0 + b * w.P : p.y + before * p.y_stride;
      }
    }
  }

  // Elements of a panel of a transposed weight.
  int64_t panel() const { return J * kColumns / kPack * kPanel; }

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
        for (int64_t j = units.begin; j < units.end; ++j) cells(t, j, count);
        if (!by_rows) f.barrier.meet();
        T* dh = f.dh + rows.begin * f.ldh;
        for (int64_t q = panels_p.begin; q < panels_p.end; ++q)
          f.times_transposed(row, count, f.w.w_hh, f.w.P, q, f.w_hh, Cell::kHh, L::kFirstHh, dh + q * kPanel, f.ldh,
                             dh + q * kPanel, f.ldh);
      }
    }

    void add_dy(int64_t row, int64_t count) {
      const int64_t begin = panels_p.begin * kPanel, end = at_most(panels_p.end * kPanel, f.w.P);
      for (int64_t r = 0; r < count; ++r) {
        T* dh = f.dh + (rows.begin + r) * f.ldh;
        const Io* dy = f.p.dy + (row + r) * f.p.y_stride;
        for (int64_t k = begin; k < end; ++k) dh[k] += convert<T>(dy[k]);
      }
    }

    // dh_cell = dh w_hr; dh is kept for the gradient of w_hr and starts anew.
    void unproject(int64_t row, int64_t count) {
      const int64_t column = panels_p.begin * kPanel, width = (panels_p.end - panels_p.begin) * kPanel;
      for (int64_t r = 0; r < count; ++r) {
        T* dh = f.dh + (rows.begin + r) * f.ldh + column;
        convert_row(dh, width, f.dh_all + (row + r) * f.ldp + column, width);
        std::memset(dh, 0, width * sizeof(T));
      }
      if (!by_rows) f.barrier.meet();
      const Left<E> left{reinterpret_cast<const E*>(f.dh_all + row * f.ldp), f.ldp / kPack, f.EP};
      for (int64_t q = panels_h.begin; q < panels_h.end; ++q)
        panel_product<E, T>(f.w.H - q * kPanel, count, left, f.w_hr + q * f.EP * kPanel, kZeros<T>, 0,
                            f.dh_cell + rows.begin * f.ldh + q * kPanel, f.ldh);
    }

    void cells(int64_t t, int64_t j, int64_t count) {
      const Sequence& s = f.s;
      const int64_t row = s.offsets[t] + rows.begin, width = f.w.H - j * kUnits;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t b = rows.begin + r, before = row_before(s, t, b);
        const Io* gates = f.p.gates + (j * s.N + row + r) * kRow;
        const Io* c = f.p.c + (j * s.N + row + r) * kUnits;
        const Io* c_prev = before < 0 ? f.c_0 + (j * s.B + b) * kUnits : f.p.c + (j * s.N + before) * kUnits;
        Mul* dgates = f.dgates + (j * s.N + row + r) * kRow;
        T* dc = f.dc + (j * s.B + b) * kUnits;
        T* dh = f.dh_cell + b * f.ldh + j * kUnits;
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V d[Cell::kPre], h_prev(0), h(0), dhv = V::load(dh + u), dcv(0), cv(0), cv_prev(0);
          if constexpr (Cell::kSavesGates) {
            for (int g = 0; g < Cell::kPre; ++g) d[g] = V::load(gates + g * kUnits + u);
            // A projected state has another width; no cell that can be projected looks at it.
            if (!f.w.w_hr) h_prev = V::load(f.h_prev[row + r] + j * kUnits + u, width - u);
          } else {
            h = V::load(f.p.y + (row + r) * f.p.y_stride + j * kUnits + u, width - u);
          }
          if constexpr (Cell::kHasC) dcv = V::load(dc + u), cv = V::load(c + u), cv_prev = V::load(c_prev + u);
          const V none[3]{V(0), V(0), V(0)};
          cell_backward<Cell, V>(d, h_prev, h, cv_prev, cv, dhv, dcv, none, f.p.extras.choice);
          for (int g = 0; g < Cell::kPre; ++g) d[g].store(dgates + g * kUnits + u);
          dhv.store(dh + u);
          if constexpr (Cell::kHasC) dcv.store(dc + u);
        }
      }
    }
  };

  // out [count, 64] = init + dgates [count, J G U] times panel q of a transposed weight w [G * H, K].
  void times_transposed(int64_t row, int64_t count, const Io* weight, int64_t K, int64_t q, const E* packed,
                        const int (&place)[Cell::kGates], int first, const T* init, int64_t ldi, T* out, int64_t ldo) {
    if (!direct) {
      const E* d = reinterpret_cast<const E*>(dgates + row * kRow + first * kUnits);
      const Left<E> left{d, kRow / kPack, kColumns / kPack, J, s.N * kRow / kPack};
      return panel_product<E, T>(K - q * kPanel, count, left, packed + q * panel(), init, ldi, out, ldo);
    }
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t n = 0; n < kPanel; ++n) out[m * ldo + n] = init[m * ldi + n];
      for (int64_t j = 0; j < J; ++j) {
        const Mul* d = dgates + (j * s.N + row + m) * kRow;
        for (int g = 0; g < Cell::kGates; ++g)
          direct_columns(at_most(kUnits, w.H - j * kUnits), d + place[g] * kUnits, weight + (g * w.H + j * kUnits) * K,
                         K, q * kPanel, out + m * ldo);
      }
    }
  }
};

}  // namespace
}  // namespace adl
