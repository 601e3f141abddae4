// The forward scan of one direction: input projection in chunks of steps, then per step one block product
// and the cell, block of units by block of units.
#pragma once

#include "cpu/plan.h"

namespace adl {
namespace {

template <class Cell, class T>
struct ForwardScan {
  using L = Layout<Cell>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns;

  const Forward<T>& p;
  const Sequence& s = p.sequence;
  const Weights<T>& w = p.weights;
  const int64_t J = blocks(w.H, kUnits);               // blocks of units
  const int64_t Q = w.w_hr ? blocks(w.P, kPanel) : 0;  // panels of the projection
  const int64_t ldh = padded(at_least(w.H, w.P));
  const bool direct = s.N <= kFewRows;  // weights are used as they are, not packed
  const int64_t gate_rows = p.gates ? s.N : at_most(chunk_steps(s), s.T) * s.B;

  T* w_ih;      // [J, I, G, U]
  T* w_hh;      // [J, P, G, U]
  T* w_hr;      // [Q, H, 64]
  T* bias;      // [J, pre, U]
  T* gates;     // [J, gate_rows, pre, U]
  T* state[2];  // [B, ldh] h_{t-1} and h_t in turn
  T* c;         // [J, B, U]
  T* h_cell;    // [B, ldh] h before the projection

  Barrier barrier;

  explicit ForwardScan(const Forward<T>& params) : p(params) {}

  // Lays out the scratch memory; returns its size.
  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    w_ih = arena.take<T>(direct ? 0 : J * w.I * kColumns);
    w_hh = arena.take<T>(direct ? 0 : J * w.P * kColumns);
    w_hr = arena.take<T>(direct ? 0 : Q * w.H * kPanel);
    bias = arena.take<T>(J * kRow);
    gates = p.gates ? p.gates : arena.take<T>(J * gate_rows * kRow);
    state[0] = arena.take<T>(s.B * ldh);
    state[1] = arena.take<T>(s.B * ldh);
    c = arena.take<T>(Cell::kHasC ? J * s.B * kUnits : 0);
    h_cell = arena.take<T>(w.w_hr ? s.B * ldh : 0);
    return arena.used;
  }

  void run() {
    in_team(s.threads, barrier, [this](int index, int threads) {
      prepare(index, threads);
      barrier.meet();
      Worker worker{*this, splits_rows(s, threads), {0, s.B}, {0, J}, {0, Q}};
      if (worker.by_rows) {
        worker.rows = share_rows(s, index, threads);
      } else {
        worker.units = share(J, index, threads);
        worker.panels = share(Q, index, threads);
      }
      worker.scan();
    });
  }

  void prepare(int index, int threads) {
    for (int64_t j = index; j < J; j += threads) pack_bias(j, bias + j * kRow);
    for (int64_t j = index; j < J && !direct; j += threads) {
      pack_units<T, Cell::kGates, kUnits>(w.w_ih, w.H, w.I, j, Cell::kIh, L::kFirstIh, w_ih + j * w.I * kColumns);
      pack_units<T, Cell::kGates, kUnits>(w.w_hh, w.H, w.P, j, Cell::kHh, L::kFirstHh, w_hh + j * w.P * kColumns);
    }
    for (int64_t q = index; q < Q && !direct; q += threads)
      pack_units<T, 1, kPanel>(w.w_hr, w.P, w.H, q, {0}, 0, w_hr + q * w.H * kPanel);
    for (int64_t b = index; b < s.B; b += threads) {
      for (T* h : state) {
        std::memcpy(h + b * ldh, p.h_0 + b * w.P, w.P * sizeof(T));
        std::memset(h + b * ldh + w.P, 0, (ldh - w.P) * sizeof(T));
      }
      if constexpr (Cell::kHasC) {
        for (int64_t unit = 0; unit < J * kUnits; ++unit)
          c[(unit / kUnits * s.B + b) * kUnits + unit % kUnits] = unit < w.H ? p.c_0[b * w.H + unit] : T(0);
      }
    }
  }

  void pack_bias(int64_t j, T* out) {
    std::memset(out, 0, kRow * sizeof(T));
    if (!w.b_ih) return;
    for (int g = 0; g < Cell::kGates; ++g) {
      for (int64_t u = 0; u < kUnits && j * kUnits + u < w.H; ++u) {
        out[Cell::kIh[g] * kUnits + u] += w.b_ih[g * w.H + j * kUnits + u];
        out[Cell::kHh[g] * kUnits + u] += w.b_hh[g * w.H + j * kUnits + u];
      }
    }
  }

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

    // Row of step t in the gates. In a buffer for one chunk, which starts at t0, each sequence has a place
    // of its own: threads that split the batch may be in different chunks.
    int64_t gate_row(int64_t t, int64_t t0) const { return f.p.gates ? f.s.offsets[t] : (t - t0) * f.s.B; }

    int64_t active(int64_t t) const { return at_most(rows.end, f.s.batch_sizes[t]) - rows.begin; }

    // gates = W_ih x + b for the steps t0..t1: one product when their rows lie together.
    void project_input(int64_t j, int64_t t0, int64_t t1) {
      const int64_t* offsets = f.s.offsets;
      const bool whole = rows.begin == 0 && rows.end == f.s.B;
      if (whole && (f.p.gates || f.s.batch_sizes[t1] == f.s.B))
        return project_rows(j, offsets[t0], offsets[t1 + 1] - offsets[t0], gate_row(t0, t0));
      for (int64_t t = t0; t <= t1; ++t)
        project_rows(j, offsets[t] + rows.begin, active(t), gate_row(t, t0) + rows.begin);
    }

    void project_rows(int64_t j, int64_t row, int64_t count, int64_t gate_row) {
      T* out = f.gates + (j * f.gate_rows + gate_row) * kRow;
      for (int64_t r = 0; r < count; ++r) std::memcpy(out + r * kRow, f.bias + j * kRow, kRow * sizeof(T));
      const T* x = f.p.x + row * f.w.I;
      if (f.direct)
        direct_units<T, Cell::kGates, kUnits>(f.w.w_ih, f.w.H, f.w.I, j, Cell::kIh, count, x, f.w.I, out, kRow);
      else
        product<T, kColumns>(count, f.w.I, x, f.w.I, f.w_ih + j * f.w.I * kColumns, out + L::kFirstIh * kUnits, kRow);
    }

    void step(int64_t t, int64_t t0, const T* h_prev, T* h_next) {
      const int64_t count = active(t);
      for (int64_t j = units.begin; j < units.end && count > 0; ++j) {
        T* gates = f.gates + (j * f.gate_rows + gate_row(t, t0) + rows.begin) * kRow;
        const T* h = h_prev + rows.begin * f.ldh;
        if (f.direct)
          direct_units<T, Cell::kGates, kUnits>(f.w.w_hh, f.w.H, f.w.P, j, Cell::kHh, count, h, f.ldh, gates, kRow);
        else
          product<T, kColumns>(count, f.w.P, h, f.ldh, f.w_hh + j * f.w.P * kColumns, gates + L::kFirstHh * kUnits,
                               kRow);
        for (int64_t r = 0; r < count; ++r) cell(t, rows.begin + r, j, gates + r * kRow, h_prev, h_next);
      }
      if (f.w.w_hr) {
        if (!by_rows) f.barrier.meet();
        if (count > 0) project_output(t, count, h_next);
      }
      if (!by_rows) f.barrier.meet();
    }

    void cell(int64_t t, int64_t b, int64_t j, T* gates, const T* h_prev, T* h_next) {
      const bool projected = f.w.w_hr;
      const int64_t row = f.s.offsets[t] + b;
      T* c = f.c + (j * f.s.B + b) * kUnits;
      T* h = (projected ? f.h_cell : h_next) + b * f.ldh + j * kUnits;
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V pre[Cell::kPre];
        for (int g = 0; g < Cell::kPre; ++g) pre[g] = V::load(gates + g * kUnits + u);
        // A projected state has another width; no cell that can be projected looks at it.
        V hv = projected ? V(0) : V::load(h_prev + b * f.ldh + j * kUnits + u);
        V cv = Cell::kHasC ? V::load(c + u) : V(0);
        Cell::forward(pre, hv, cv);
        hv.store(h + u);
        if constexpr (Cell::kHasC) cv.store(c + u);
        if (f.p.gates)
          for (int g = 0; g < Cell::kPre; ++g) pre[g].store(gates + g * kUnits + u);
        if (f.p.c) cv.store(f.p.c + (j * f.s.N + row) * kUnits + u);
      }
      const int64_t n = at_most(kUnits, f.w.H - j * kUnits);
      const bool ends = row_after(f.s, t, b) < 0;
      if (f.p.h_cell) std::memcpy(f.p.h_cell + row * f.w.H + j * kUnits, h, n * sizeof(T));
      if (!projected) write_h(row, b, j * kUnits, n, h, ends);
      if (Cell::kHasC && ends) std::memcpy(f.p.c_n + b * f.w.H + j * kUnits, c, n * sizeof(T));
    }

    void project_output(int64_t t, int64_t count, T* h_next) {
      for (int64_t q = panels.begin; q < panels.end; ++q) {
        T* out = h_next + rows.begin * f.ldh + q * kPanel;
        for (int64_t r = 0; r < count; ++r) std::memset(out + r * f.ldh, 0, kPanel * sizeof(T));
        const T* h = f.h_cell + rows.begin * f.ldh;
        if (f.direct)
          direct_units<T, 1, kPanel>(f.w.w_hr, f.w.P, f.w.H, q, {0}, count, h, f.ldh, out, f.ldh);
        else
          product<T, kPanel>(count, f.w.H, h, f.ldh, f.w_hr + q * f.w.H * kPanel, out, f.ldh);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t b = rows.begin + r;
          write_h(f.s.offsets[t] + b, b, q * kPanel, at_most(kPanel, f.w.P - q * kPanel), out + r * f.ldh,
                  row_after(f.s, t, b) < 0);
        }
      }
    }

    void write_h(int64_t row, int64_t b, int64_t column, int64_t n, const T* h, bool ends) {
      std::memcpy(f.p.y + row * f.p.y_stride + column, h, n * sizeof(T));
      if (ends) std::memcpy(f.p.h_n + b * f.w.P + column, h, n * sizeof(T));
    }
  };
};

}  // namespace
}  // namespace adl
