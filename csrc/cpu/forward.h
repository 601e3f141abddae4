// The forward scan of one direction: input projection in chunks of steps, then per step one block product
// and the cell, block of units by block of units.
#pragma once

#include "cpu/plan.h"

namespace adl {
namespace {

// Io: the numbers of the tensors; Mul: those that are multiplied. Sums and state are Sum<Mul>.
template <class Cell, class Io, class Mul>
struct ForwardScan {
  using L = Layout<Cell>;
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns, kPack = Operand<Mul>::kPack;

  const Forward<Io>& p;
  const Sequence& s = p.sequence;
  const Weights<Io>& w = p.weights;
  const int64_t J = blocks(w.H, kUnits);               // blocks of units
  const int64_t Q = w.w_hr ? blocks(w.P, kPanel) : 0;  // panels of the projection
  const int64_t ldh = padded(at_least(w.H, w.P));
  const int64_t ldp = w.w_hr ? padded(w.P) : 0;
  const int64_t EI = blocks(w.I, kPack), EP = blocks(w.P, kPack), EH = blocks(w.H, kPack);  // sizes in elements
  const bool direct = s.N <= kFewRows;  // weights are used as they are, not packed
  const bool converts = !direct && (!__is_same(Io, Mul) || w.I % kPack);
  const int64_t gate_rows = at_most(chunk_steps(s), s.T) * s.B;

  E* w_ih;        // [J, I, G, U]
  E* w_hh;        // [J, P, G, U]
  E* w_hr;        // [Q, H, 64]
  T* bias;        // [J, pre, U]
  T* gates;       // [J, gate_rows, pre, U]
  Mul* x;         // [N, kPack EI], where it cannot be used as it is
  Mul* state[2];  // [B, ldh] h_{t-1} and h_t in turn, as the product wants them
  T* h;           // [J, B, U]
  T* c;           // [J, B, U]
  Mul* h_cell;    // [B, ldh] h before the projection
  T* projected;   // [B, ldp] and after it

  Barrier barrier;

  explicit ForwardScan(const Forward<Io>& params) : p(params) {}

  // Lays out the scratch memory; returns its size.
  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    w_ih = arena.take<E>(direct ? 0 : J * EI * kColumns);
    w_hh = arena.take<E>(direct ? 0 : J * EP * kColumns);
    w_hr = arena.take<E>(direct ? 0 : Q * EH * kPanel);
    bias = arena.take<T>(J * kRow);
    gates = arena.take<T>(J * gate_rows * kRow);
    x = arena.take<Mul>(converts ? s.N * EI * kPack : 0);
    state[0] = arena.take<Mul>(s.B * ldh);
    state[1] = arena.take<Mul>(s.B * ldh);
    h = arena.take<T>(J * s.B * kUnits);
    c = arena.take<T>(Cell::kHasC ? J * s.B * kUnits : 0);
    h_cell = arena.take<Mul>(w.w_hr ? s.B * ldh : 0);
    projected = arena.take<T>(s.B * ldp);
    return arena.used;
  }

  void run() {
    in_team(s.threads, barrier, [this](int index, int threads) {
      prepare(index, threads);
      barrier.meet();
      Worker worker{*this, splits_rows(s, threads, J, J * EP * kColumns * sizeof(E)), {0, s.B}, {0, J}, {0, Q}};
      if (worker.by_rows) {
        worker.rows = share_rows(s, index, threads);
      } else {
        worker.units = share(J, index, threads);
        worker.panels = share(Q, index, threads);
      }
      worker.scan();
      worker.write_final();
    });
  }

  void prepare(int index, int threads) {
    for (int64_t j = index; j < J; j += threads) pack_bias(j, bias + j * kRow);
    for (int64_t j = index; j < J && !direct; j += threads) {
      pack_units<Mul, Cell::kGates, kUnits>(w.w_ih, w.H, w.I, j, Cell::kIh, L::kFirstIh, w_ih + j * EI * kColumns);
      pack_units<Mul, Cell::kGates, kUnits>(w.w_hh, w.H, w.P, j, Cell::kHh, L::kFirstHh, w_hh + j * EP * kColumns);
    }
    for (int64_t q = index; q < Q && !direct; q += threads)
      pack_units<Mul, 1, kPanel>(w.w_hr, w.P, w.H, q, {0}, 0, w_hr + q * EH * kPanel);
    for (int64_t b = index; b < s.B; b += threads) {
      for (Mul* to : state) convert_row(p.h_0 + b * w.P, w.P, to + b * ldh, ldh);
      for (int64_t j = 0; j < J; ++j) {
        const int64_t first = j * kUnits, n = at_most(kUnits, w.H - first), at = (j * s.B + b) * kUnits;
        // A projected state has another width; no cell that can be projected looks at it.
        convert_row(p.h_0 + b * w.P + first, w.w_hr ? 0 : n, h + at, kUnits);
        if constexpr (Cell::kHasC) convert_row(p.c_0 + b * w.H + first, n, c + at, kUnits);
      }
      if (w.w_hr) convert_row(p.h_0, 0, h_cell + b * ldh, ldh);
    }
    const Range rows = share(s.N, index, threads);
    for (int64_t row = rows.begin; row < rows.end && converts; ++row)
      convert_row(p.x + row * w.I, w.I, x + row * EI * kPack, EI * kPack);
  }

  void pack_bias(int64_t j, T* out) {
    std::memset(out, 0, kRow * sizeof(T));
    if (!w.b_ih) return;
    for (int g = 0; g < Cell::kGates; ++g) {
      for (int64_t u = 0; u < kUnits && j * kUnits + u < w.H; ++u) {
        out[Cell::kIh[g] * kUnits + u] += convert<T>(w.b_ih[g * w.H + j * kUnits + u]);
        out[Cell::kHh[g] * kUnits + u] += convert<T>(w.b_hh[g * w.H + j * kUnits + u]);
      }
    }
  }

  Left<E> x_rows(int64_t row) const {
    if (converts) return {reinterpret_cast<const E*>(x) + row * EI, EI, EI};
    return {reinterpret_cast<const E*>(p.x + row * w.I), EI, EI};
  }
  Left<E> state_rows(const Mul* rows, int64_t K) const { return {reinterpret_cast<const E*>(rows), ldh / kPack, K}; }

  // One thread's share: its sequences, its blocks of units, its panels of the projection.
  struct Worker {
    ForwardScan& f;
    bool by_rows;
    Range rows, units, panels;

    void scan() {
      const int64_t steps = chunk_steps(f.s);
      for (int64_t first = 0; first < f.s.T; first += steps) {
        const int64_t last = at_most(first + steps, f.s.T) - 1;
        const int64_t t0 = step_at(f.s, f.s.reverse ? last : first), t1 = t0 + last - first;
        for (int64_t j = units.begin; j < units.end; ++j) project_input(j, t0, t1);
        for (int64_t k = first; k <= last; ++k) step(step_at(f.s, k), t0, f.state[k & 1], f.state[(k + 1) & 1]);
      }
    }

    bool whole() const { return rows.begin == 0 && rows.end == f.s.B; }

    // Rows of step t in the gates of the chunk that starts at t0: without gaps, but where threads split the batch, who
    // may be in different chunks, each sequence has a place of its own.
    T* gates(int64_t j, int64_t t, int64_t t0) const {
      const int64_t row = whole() ? f.s.offsets[t] - f.s.offsets[t0] : (t - t0) * f.s.B + rows.begin;
      return f.gates + (j * f.gate_rows + row) * kRow;
    }

    int64_t active(int64_t t) const { return at_most(rows.end, f.s.batch_sizes[t]) - rows.begin; }

    // gates = W_ih x + b for the steps t0..t1.
    void project_input(int64_t j, int64_t t0, int64_t t1) {
      const int64_t* offsets = f.s.offsets;
      if (whole()) return project_rows(j, offsets[t0], offsets[t1 + 1] - offsets[t0], gates(j, t0, t0));
      for (int64_t t = t0; t <= t1; ++t) project_rows(j, offsets[t] + rows.begin, active(t), gates(j, t, t0));
    }

    void project_rows(int64_t j, int64_t row, int64_t count, T* out) {
      const T* bias = f.bias + j * kRow;
      const int from = f.direct ? kRow : L::kFirstIh * kUnits, to = f.direct ? kRow : from + kColumns;
      for (int64_t r = 0; r < count; ++r) {  // what the product does not write
        for (int k = 0; k < from; ++k) out[r * kRow + k] = bias[k];
        for (int k = to; k < kRow; ++k) out[r * kRow + k] = bias[k];
      }
      if (f.direct)
        direct_units<T, Cell::kGates, kUnits>(f.w.w_ih, f.w.H, f.w.I, j, Cell::kIh, count, f.p.x + row * f.w.I, f.w.I,
                                              out, kRow);
      else
        product<E, T, kColumns>(count, f.x_rows(row), f.w_ih + j * f.EI * kColumns, bias + from, 0, out + from, kRow);
    }

    void step(int64_t t, int64_t t0, const Mul* h_prev, Mul* h_next) {
      const int64_t count = active(t);
      const Mul* h = h_prev + rows.begin * f.ldh;
      for (int64_t j = units.begin; j < units.end && count > 0; ++j) {
        T* pre = gates(j, t, t0);
        T* sums = pre + L::kFirstHh * kUnits;
        if (f.direct)
          direct_units<T, Cell::kGates, kUnits>(f.w.w_hh, f.w.H, f.w.P, j, Cell::kHh, count, h, f.ldh, pre, kRow);
        else
          product<E, T, kColumns>(count, f.state_rows(h, f.EP), f.w_hh + j * f.EP * kColumns, sums, kRow, sums, kRow);
        cells(j, f.s.offsets[t] + rows.begin, count, pre, h_next);
      }
      if (f.w.w_hr) {
        if (!by_rows) f.barrier.meet();
        if (count > 0) project_output(f.s.offsets[t] + rows.begin, count, h_next);
      }
      if (!by_rows) f.barrier.meet();
    }

    // Block j of `count` sequences, whose rows begin at `row`.
    void cells(int64_t j, int64_t row, int64_t count, const T* pre, Mul* h_next) {
      const int64_t width = f.w.H - j * kUnits, at = (j * f.s.B + rows.begin) * kUnits;
      Mul* next = (f.w.w_hr ? f.h_cell : h_next) + rows.begin * f.ldh + j * kUnits;
      Io* y = f.w.w_hr ? nullptr : f.p.y + row * f.p.y_stride + j * kUnits;
      Io* h_cell = f.p.h_cell ? f.p.h_cell + row * f.w.H + j * kUnits : nullptr;
      Io* saved = f.p.gates ? f.p.gates + (j * f.s.N + row) * kRow : nullptr;
      Io* saved_c = f.p.c ? f.p.c + (j * f.s.N + row) * kUnits : nullptr;
      for (int64_t r = 0; r < count; ++r) {
        T* h = f.h + at + r * kUnits;
        T* c = f.c + at + r * kUnits;
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre];
          for (int g = 0; g < Cell::kPre; ++g) v[g] = V::load(pre + r * kRow + g * kUnits + u);
          V hv = V::load(h + u), cv = Cell::kHasC ? V::load(c + u) : V(0);
          const V none[3]{V(0), V(0), V(0)};
          cell_forward<Cell, V>(v, hv, cv, none, f.p.extras.choice);
          hv.store(h + u);
          hv.store(next + r * f.ldh + u);
          if constexpr (Cell::kHasC) cv.store(c + u);
          if (y) hv.store(y + r * f.p.y_stride + u, width - u);
          if (h_cell) hv.store(h_cell + r * f.w.H + u, width - u);
          if (saved)
            for (int g = 0; g < Cell::kPre; ++g) v[g].store(saved + r * kRow + g * kUnits + u);
          if (saved_c) cv.store(saved_c + r * kUnits + u);
        }
      }
    }

    void project_output(int64_t row, int64_t count, Mul* h_next) {
      const Mul* h = f.h_cell + rows.begin * f.ldh;
      for (int64_t q = panels.begin; q < panels.end; ++q) {
        const int64_t columns = at_most(kPanel, f.w.P - q * kPanel);
        T* out = f.projected + rows.begin * f.ldp + q * kPanel;
        if (f.direct) {
          for (int64_t r = 0; r < count; ++r) std::memset(out + r * f.ldp, 0, kPanel * sizeof(T));
          direct_units<T, 1, kPanel>(f.w.w_hr, f.w.P, f.w.H, q, {0}, count, h, f.ldh, out, f.ldp);
        } else {
          product<E, T, kPanel>(count, f.state_rows(h, f.EH), f.w_hr + q * f.EH * kPanel, kZeros<T>, 0, out, f.ldp);
        }
        for (int64_t r = 0; r < count; ++r) {
          convert_row(out + r * f.ldp, columns, h_next + (rows.begin + r) * f.ldh + q * kPanel, kPanel);
          convert_row(out + r * f.ldp, columns, f.p.y + (row + r) * f.p.y_stride + q * kPanel, columns);
        }
      }
    }

    // Every sequence's last output and last c: no step after its end has touched them.
    void write_final() {
      for (int64_t b = rows.begin; b < rows.end; ++b) {
        const int64_t row = last_row(f.s, b);
        const int64_t first = f.w.w_hr ? panels.begin * kPanel : units.begin * kUnits;
        const int64_t last = at_most(f.w.w_hr ? panels.end * kPanel : units.end * kUnits, f.w.P);
        convert_row(f.p.y + row * f.p.y_stride + first, last - first, f.p.h_n + b * f.w.P + first, last - first);
        for (int64_t j = units.begin; j < units.end && Cell::kHasC; ++j) {
          const int64_t n = at_most(kUnits, f.w.H - j * kUnits);
          convert_row(f.c + (j * f.s.B + b) * kUnits, n, f.p.c_n + b * f.w.H + j * kUnits, n);
        }
      }
    }
  };
};

}  // namespace
}  // namespace adl
