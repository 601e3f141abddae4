// The gradients of x, of the weights and of the initial state, once the backward scan has left those of
// the pre-activations: products over all rows, as tasks dealt out to the threads in turn. A task owns
// what it writes, and sums over rows in an order of its own.
#pragma once

#include "cpu/backward.h"

namespace adl {
namespace {

template <class Cell, class T>
struct Gradients {
  using L = Layout<Cell>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns;

  BackwardScan<Cell, T> scan;
  const Backward<T>& p = scan.p;
  const Sequence& s = p.sequence;
  const Weights<T>& w = p.weights;
  const int64_t J = scan.J, QI = blocks(w.I, kPanel), QP = scan.QP, QH = scan.QH;
  const Split split_ih{J, QI, s.threads}, split_hh{J, QP, s.threads};
  const int64_t packed_panels = at_least(split_ih.panels, split_hh.panels);
  const int64_t packed_rows = at_most(kPackedRows, s.N);
  const int64_t dw_rows = scan.direct ? 0 : packed_panels * split_ih.units * kColumns;
  const int64_t buffer_rows = at_least(at_least(dw_rows, kTaskRows), padded(w.P));

  T* w_ih;    // [QI, J, G, U, 64]
  T* packed;  // [threads, packed_panels, packed_rows, 64]
  T* buffer;  // [threads, buffer_rows, 64]

  explicit Gradients(const Backward<T>& params) : scan(params) {}

  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    scan.take(arena);
    w_ih = arena.take<T>(p.dx && !scan.direct ? QI * J * kColumns * kPanel : 0);
    packed = arena.take<T>(s.threads * packed_panels * packed_rows * kPanel);
    buffer = arena.take<T>(s.threads * buffer_rows * kPanel);
    return arena.used;
  }

  void run() {
    in_team(s.threads, scan.barrier, [this](int index, int threads) {
      for (int64_t q = index; p.dx && !scan.direct && q < QI; q += threads)
        pack_transposed<T, Cell::kGates, kUnits>(w.w_ih, w.H, w.I, q, Cell::kIh, L::kFirstIh,
                                                 w_ih + q * J * kColumns * kPanel);
      scan.run(index, threads);
      scan.barrier.meet();
      Worker{*this, packed + index * packed_panels * packed_rows * kPanel, buffer + index * buffer_rows * kPanel,
             threads, index}
          .finish();
    });
  }

  struct Worker {
    Gradients& f;
    T* packed;
    T* buffer;
    const int64_t threads;
    int64_t next;  // task, counted from the first of the current kind

    template <class Task>
    void deal(int64_t tasks, Task task) {
      for (; next < tasks; next += threads) task(next);
      next -= tasks;
    }

    void finish() {
      const Backward<T>& p = f.p;
      deal(f.s.B, [&](int64_t b) { write_initial(b); });
      if (p.dx) deal(blocks(f.s.N, kTaskRows), [&](int64_t k) { write_dx(k * kTaskRows); });
      if (p.dw_ih) {
        const auto x = [&](int64_t row) { return p.x + row * f.w.I; };
        deal(f.split_ih.tasks(),
             [&](int64_t k) { write_dw(f.split_ih.task(k), x, f.w.I, Cell::kIh, L::kFirstIh, p.dw_ih); });
      }
      if (p.dw_hh) {
        const auto h = [&](int64_t row) { return f.scan.h_prev[row]; };
        deal(f.split_hh.tasks(),
             [&](int64_t k) { write_dw(f.split_hh.task(k), h, f.w.P, Cell::kHh, L::kFirstHh, p.dw_hh); });
      }
      if (p.dw_hr) deal(f.QH, [&](int64_t q) { write_dw_hr(q); });
      if (p.db_ih || p.db_hh) deal(f.J, [&](int64_t j) { write_db(j); });
    }

    void write_initial(int64_t b) {
      const Weights<T>& w = f.w;
      std::memcpy(f.p.dh_0 + b * w.P, f.scan.dh + b * f.scan.ldh, w.P * sizeof(T));
      if constexpr (Cell::kHasC)
        for (int64_t unit = 0; unit < w.H; ++unit)
          f.p.dc_0[b * w.H + unit] = f.scan.dc[(unit / kUnits * f.s.B + b) * kUnits + unit % kUnits];
    }

    void write_dx(int64_t row) {
      const int64_t count = at_most(kTaskRows, f.s.N - row), I = f.w.I;
      for (int64_t q = 0; q < f.QI; ++q) {
        std::memset(buffer, 0, count * kPanel * sizeof(T));
        f.scan.times_transposed(row, count, f.w.w_ih, I, q, f.w_ih, Cell::kIh, L::kFirstIh, buffer, kPanel);
        const int64_t n = at_most(kPanel, I - q * kPanel);
        for (int64_t r = 0; r < count; ++r) {
          T* dx = f.p.dx + (row + r) * I + q * kPanel;
          const T* sum = buffer + r * kPanel;
          if (f.p.accumulate_dx)
            for (int64_t k = 0; k < n; ++k) dx[k] += sum[k];
          else
            std::memcpy(dx, sum, n * sizeof(T));
        }
      }
    }

    // dw [G * H, K] = dgates^T values, some blocks of units by some panels of columns.
    template <class Rows>
    void write_dw(Split::Task task, Rows values, int64_t K, const int (&place)[Cell::kGates], int first, T* dw) {
      const Range units = task.units, panels = task.panels;
      if (f.scan.direct) return write_few(units, panels, values, K, place, dw);
      const int64_t Q = panels.end - panels.begin;
      const auto sums = [&](int64_t j, int64_t q) {
        return buffer + ((j - units.begin) * Q + q - panels.begin) * kColumns * kPanel;
      };
      std::memset(buffer, 0, (units.end - units.begin) * Q * kColumns * kPanel * sizeof(T));
      for (int64_t row = 0; row < f.s.N; row += kPackedRows) {
        const int64_t count = at_most(kPackedRows, f.s.N - row);
        for (int64_t q = 0; q < Q; ++q)
          for (int64_t r = 0; r < count; ++r)
            pack_row(values(row + r), (panels.begin + q) * kPanel, K, packed + (q * f.packed_rows + r) * kPanel);
        for (int64_t j = units.begin; j < units.end; ++j)
          for (int64_t q = 0; q < Q; ++q)
            product<T, kPanel, true>(kColumns, count, f.scan.dgates + (j * f.s.N + row) * kRow + first * kUnits, kRow,
                                     packed + q * f.packed_rows * kPanel, sums(j, panels.begin + q), kPanel);
      }
      for (int64_t j = units.begin; j < units.end; ++j) {
        for (int g = 0; g < Cell::kGates; ++g) {
          for (int64_t u = 0; u < kUnits && j * kUnits + u < f.w.H; ++u) {
            T* row = dw + (g * f.w.H + j * kUnits + u) * K;
            for (int64_t q = panels.begin; q < panels.end; ++q)
              std::memcpy(row + q * kPanel, sums(j, q) + ((place[g] - first) * kUnits + u) * kPanel,
                          at_most(kPanel, K - q * kPanel) * sizeof(T));
          }
        }
      }
    }

    // The same straight into dw: every element is a sum over few rows.
    template <class Rows>
    void write_few(Range units, Range panels, Rows values, int64_t K, const int (&place)[Cell::kGates], T* dw) {
      const int64_t begin = panels.begin * kPanel, end = at_most(panels.end * kPanel, K);
      for (int64_t unit = units.begin * kUnits; unit < at_most(units.end * kUnits, f.w.H); ++unit) {
        for (int g = 0; g < Cell::kGates; ++g) {
          T* row = dw + (g * f.w.H + unit) * K;
          std::memset(row + begin, 0, (end - begin) * sizeof(T));
          for (int64_t r = 0; r < f.s.N; ++r) {
            const T d = f.scan.dgates[(unit / kUnits * f.s.N + r) * kRow + place[g] * kUnits + unit % kUnits];
            const T* value = values(r);
            for (int64_t k = begin; k < end; ++k) row[k] += d * value[k];
          }
        }
      }
    }

    // dw_hr [P, H] = dh_all^T h_cell, one panel of its columns.
    void write_dw_hr(int64_t q) {
      const int64_t H = f.w.H, ld = f.QP * kPanel;
      std::memset(buffer, 0, ld * kPanel * sizeof(T));
      for (int64_t row = 0; row < f.s.N; row += kPackedRows) {
        const int64_t count = at_most(kPackedRows, f.s.N - row);
        for (int64_t r = 0; r < count; ++r) pack_row(f.p.h_cell + (row + r) * H, q * kPanel, H, packed + r * kPanel);
        product<T, kPanel, true>(f.w.P, count, f.scan.dh_all + row * ld, ld, packed, buffer, kPanel);
      }
      const int64_t n = at_most(kPanel, H - q * kPanel);
      for (int64_t k = 0; k < f.w.P; ++k)
        std::memcpy(f.p.dw_hr + k * H + q * kPanel, buffer + k * kPanel, n * sizeof(T));
    }

    // Column sums, in blocks of rows for the same reason as in a product.
    void write_db(int64_t j) {
      T total[kRow] = {};
      for (int64_t row = 0; row < f.s.N; row += kBlock) {
        T part[kRow] = {};
        for (int64_t r = row; r < at_most(row + kBlock, f.s.N); ++r)
          for (int k = 0; k < kRow; ++k) part[k] += f.scan.dgates[(j * f.s.N + r) * kRow + k];
        for (int k = 0; k < kRow; ++k) total[k] += part[k];
      }
      for (int g = 0; g < Cell::kGates; ++g) {
        for (int64_t u = 0; u < kUnits && j * kUnits + u < f.w.H; ++u) {
          const int64_t at = g * f.w.H + j * kUnits + u;
          if (f.p.db_ih) f.p.db_ih[at] = total[Cell::kIh[g] * kUnits + u];
          if (f.p.db_hh) f.p.db_hh[at] = total[Cell::kHh[g] * kUnits + u];
        }
      }
    }
  };
};

}  // namespace
}  // namespace adl
