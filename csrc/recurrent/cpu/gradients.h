// The gradients of x, of the weights and of the initial state, once the backward scan has left those of
// the pre-activations: products over all rows, as tasks dealt out to the threads in turn. A task owns
// what it writes, and sums over rows in an order of its own.
#pragma once

#include "recurrent/cpu/backward.h"
#include "recurrent/cpu/column_sums.h"

namespace adl {
namespace {

// Number types as in ForwardScan.
template <class Io, class Mul>
struct Gradients {
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  static constexpr int kPack = Operand<Mul>::kPack;
  // Rows packed at once for a weight gradient: one block of a product, so that the panels of all columns stay in L2.
  static constexpr int64_t kPackedRows = kBlock * kPack;

  BackwardScan<Io, Mul> scan;
  const GateLayout& l = scan.l;
  const Backward<Io>& p = scan.p;
  const Sequence& s = p.sequence;
  const Weights<Io>& w = p.weights;
  const int64_t J = scan.J, QI = blocks(w.I, kPanel), QP = scan.QP, QH = scan.QH;
  const Split split_ih{J, QI, s.threads}, split_hh{J, QP, s.threads};
  const int64_t packed_panels = max_of(split_ih.panels, split_hh.panels);
  const int64_t packed_rows = blocks(min_of(kPackedRows, s.N), kPack);
  const int64_t dw_rows = scan.direct ? 0 : packed_panels * split_ih.units * l.columns;
  const int64_t buffer_rows = max_of(max_of(dw_rows, task_rows(s)), padded(w.P));
  const int64_t pair_columns = kPack == 1 ? 0 : max_of(l.columns, scan.ldp);

  E* w_ih;    // [QI, J, G, U, 64]
  E* packed;  // [threads, packed_panels, packed_rows, 64]
  E* pairs;   // [threads, packed_rows, pair_columns]
  T* buffer;  // [threads, buffer_rows, 64]

  Gradients(const Backward<Io>& params, const BackwardCell<Io, Mul>& cell) : scan(params, cell) {}

  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    scan.take(arena);
    w_ih = arena.take<E>(p.dx && !scan.direct ? QI * panel() : 0);
    packed = arena.take<E>(s.threads * packed_panels * packed_rows * kPanel);
    pairs = arena.take<E>(s.threads * packed_rows * pair_columns);
    buffer = arena.take<T>(s.threads * buffer_rows * kPanel);
    return arena.used;
  }

  int64_t panel() const { return scan.panel(l.gates); }

  void run() {
    in_team(s.threads, scan.barrier, [this](int index, int threads) { run(index, threads); });
  }

  ADL_NOINLINE void run(int index, int threads) {
    for (int64_t q = index; p.dx && !scan.direct && q < QI; q += threads)
      pack_transposed<Mul>(w.w_ih, w.H, w.I, q, l.gates, l.units, l.ih, l.first_ih, w_ih + q * panel());
    scan.run(index, threads);
    scan.barrier.meet();
    Worker{*this,
           l,
           packed + index * packed_panels * packed_rows * kPanel,
           pairs + index * packed_rows * pair_columns,
           buffer + index * buffer_rows * kPanel,
           threads,
           index}
        .finish();
  }

  struct Worker {
    Gradients& f;
    const GateLayout& l;
    E* packed;
    E* pairs;
    T* buffer;
    const int64_t threads;
    int64_t next;  // task, counted from the first of the current kind

    template <class Task>
    void deal(int64_t tasks, Task task) {
      for (; next < tasks; next += threads) task(next);
      next -= tasks;
    }

    void finish() {
      const Backward<Io>& p = f.p;
      deal(f.s.B, [&](int64_t b) { write_initial(b); });
      if (p.dx) deal(blocks(f.s.N, task_rows(f.s)), [&](int64_t k) { write_dx(k * task_rows(f.s)); });
      if (p.dw_ih) {
        const auto write = [&](auto x) {
          deal(f.split_ih.tasks(), [&](int64_t k) {
            write_dw(0, l.gates, f.split_ih.task(k), f.scan.of_x(), x, f.w.I, l.ih, l.first_ih, p.dw_ih);
          });
        };
        // Not place_of: a choice per row becomes masked loads from null, on which emulators of processors fault.
        if (f.s.places) {
          write([&](int64_t row) { return p.x + f.s.places[row] * f.w.I; });
        } else {
          write([&](int64_t row) { return p.x + row * f.w.I; });
        }
      }
      if (p.dw_hh) {
        const auto h = [&](int64_t row) { return f.scan.operand[row]; };
        deal(f.split_hh.tasks(), [&](int64_t k) {
          write_dw(0, l.first_gates, f.split_hh.task(k), f.scan.of_h(), h, f.w.P, l.hh, l.first_hh, p.dw_hh);
        });
        if (l.resets_before) {
          const auto reset_h = [&](int64_t row) { return f.scan.reset_h + row * f.scan.ldh; };
          deal(f.split_hh.tasks(), [&](int64_t k) {
            write_dw(l.first_gates, l.gates, f.split_hh.task(k), f.scan.of_h(), reset_h, f.w.P, l.hh, l.first_hh,
                     p.dw_hh);
          });
        }
      }
      if (p.dw_hr) deal(f.QH, [&](int64_t q) { write_dw_hr(q); });
      if (p.db_ih || p.db_hh || p.dw_ch || f.scan.normed)
        deal(f.J, [&](int64_t j) { ColumnSums<Io, Mul>{f.scan, j}.write(); });
    }

    void write_initial(int64_t b) {
      const Weights<Io>& w = f.w;
      const int64_t to = order_of(f.s, b);
      convert_row(f.scan.dh + b * f.scan.ldh, w.P, f.p.dh_0 + to * w.P, w.P);
      for (int64_t j = 0; j < f.J && l.has_c; ++j) {
        const int64_t n = min_of(l.units, w.H - j * l.units);
        convert_row(f.scan.dc + (j * f.s.B + b) * l.units, n, f.p.dc_0 + to * w.H + j * l.units, n);
      }
    }

    void write_dx(int64_t row) {
      const int64_t count = min_of(task_rows(f.s), f.s.N - row), I = f.w.I;
      for (int64_t q = 0; q < f.QI; ++q) {
        f.scan.times_transposed(0, l.gates, f.scan.of_x(), row, count, f.w.w_ih, I, q, f.w_ih, l.ih, l.first_ih,
                                kZeros<T>, 0, buffer, kPanel);
        const int64_t n = min_of(kPanel, I - q * kPanel);
        for (int64_t r = 0; r < count; ++r) {
          Io* dx = f.p.dx + place_of(f.s, row + r) * I + q * kPanel;
          const T* sum = buffer + r * kPanel;
          for (int64_t k = 0; k < n; ++k) dx[k] = convert<Io>(f.p.accumulate_dx ? convert<T>(dx[k]) + sum[k] : sum[k]);
        }
      }
    }

    // Transposed rows of a matrix [count, ld], as the left operand of a product: in pairs where Mul goes by pairs.
    Left<E> transposed(const Mul* rows, int64_t ld, int64_t count, int64_t columns) {
      if constexpr (kPack == 1) {
        return {rows, ld, count};
      } else {
        for (int64_t r = 0; r < count; r += kPack)
          for (int64_t k = 0; k < columns; ++k)
            pairs[r / kPack * columns + k] =
                Operand<Mul>::element(rows[r * ld + k], r + 1 < count ? rows[(r + 1) * ld + k] : Mul{});
        return {pairs, columns, blocks(count, kPack)};
      }
    }

    // values(row), values(row + 1).. as a panel of the right operand; their first column is that of panel q.
    template <class Rows>
    void pack_values(Rows values, int64_t count, int64_t q, int64_t K, E* out) {
      const int64_t columns = K - q * kPanel;
      for (int64_t r = 0; r < count; r += kPack)
        pack_row<Mul>(values(r) + q * kPanel, kPack == 2 && r + 1 < count ? values(r + 1) + q * kPanel : nullptr,
                      columns, out + r / kPack * panel_width(columns));
    }

    // Rows of gates begin.. of dw [G * H, K] = dgates^T values, some blocks of units by some panels of columns.
    template <class Rows>
    void write_dw(int begin, int end, Split::Task task, GateGradients<Mul> dgates, Rows values, int64_t K,
                  const int* place, int first_place, Io* dw) {
      const int width = (end - begin) * l.units;
      const Range units = task.units, panels = task.panels;
      const auto at = [&](int g) { return place[g] - first_place + dgates.first; };
      if (f.scan.direct) return write_few(begin, end, units, panels, dgates, values, K, at, dw);
      const int first = first_of(begin, end, at);
      const int64_t Q = panels.end - panels.begin;
      const auto sums = [&](int64_t j, int64_t q) {
        return buffer + ((j - units.begin) * Q + q - panels.begin) * width * kPanel;
      };
      for (int64_t row = 0; row < f.s.N; row += kPackedRows) {
        const int64_t count = min_of(kPackedRows, f.s.N - row);
        for (int64_t q = panels.begin; q < panels.end; ++q)
          pack_values([&](int64_t r) { return values(row + r); }, count, q, K,
                      packed + (q - panels.begin) * f.packed_rows * kPanel);
        for (int64_t j = units.begin; j < units.end; ++j) {
          const Left<E> left =
              transposed(dgates.of + (j * f.s.N + row) * dgates.row + first * l.units, dgates.row, count, width);
          for (int64_t q = panels.begin; q < panels.end; ++q)
            panel_product<E, T, true>(K - q * kPanel, width, left, packed + (q - panels.begin) * f.packed_rows * kPanel,
                                      row ? sums(j, q) : kZeros<T>, row ? kPanel : 0, sums(j, q), kPanel);
        }
      }
      for (int64_t j = units.begin; j < units.end; ++j) {
        for (int g = begin; g < end; ++g) {
          for (int64_t u = 0; u < l.units && j * l.units + u < f.w.H; ++u) {
            Io* row = dw + (g * f.w.H + j * l.units + u) * K;
            for (int64_t q = panels.begin; q < panels.end; ++q) {
              const int64_t n = min_of(kPanel, K - q * kPanel);
              convert_row(sums(j, q) + ((at(g) - first) * l.units + u) * kPanel, n, row + q * kPanel, n);
            }
          }
        }
      }
    }

    // The same straight into dw: every element is a sum over few rows.
    template <class Rows, class At>
    void write_few(int begin, int end, Range units, Range panels, GateGradients<Mul> dgates, Rows values, int64_t K,
                   At at, Io* dw) {
      const int64_t column = panels.begin * kPanel, n = min_of(panels.end * kPanel, K) - column;
      const int64_t N = f.s.N, H = f.w.H, U = l.units, last = min_of(units.end * U, H);
      decltype(values(0)) from[kFewRows];
      for (int64_t r = 0; r < N; ++r) from[r] = values(r) + column;
      for (int g = begin; g < end; ++g) {
        for (int64_t first = units.begin * U; first < last; first += U) {
          const Mul* of = dgates.of + first / U * N * dgates.row + at(g) * U;
          const int64_t count = min_of(U, last - first);
          for (int64_t u = 0; u < count; ++u) {
            T d[kFewRows];
            for (int64_t r = 0; r < N; ++r) d[r] = convert<T>(of[r * dgates.row + u]);
            Io* row = dw + (g * H + first + u) * K + column;
            for (int64_t k = 0; k < n; k += V::kLanes) {
              V sum(0);
              for (int64_t r = 0; r < N; ++r) sum = sum + V(d[r]) * V::load(from[r] + k, n - k);
              sum.store(row + k, n - k);
            }
          }
        }
      }
    }

    // dw_hr [P, H] = dh_all^T h_cell, one panel of its columns.
    void write_dw_hr(int64_t q) {
      const int64_t H = f.w.H, P = f.w.P, ld = f.scan.ldp;
      for (int64_t row = 0; row < f.s.N; row += kPackedRows) {
        const int64_t count = min_of(kPackedRows, f.s.N - row);
        pack_values([&](int64_t r) { return f.p.h_cell + (row + r) * H; }, count, q, H, packed);
        panel_product<E, T, true>(H - q * kPanel, P, transposed(f.scan.dh_all + row * ld, ld, count, ld), packed,
                                  row ? buffer : kZeros<T>, row ? kPanel : 0, buffer, kPanel);
      }
      const int64_t n = min_of(kPanel, H - q * kPanel);
      for (int64_t k = 0; k < P; ++k) convert_row(buffer + k * kPanel, n, f.p.dw_hr + k * H + q * kPanel, n);
    }
  };
};

}  // namespace
}  // namespace adl
