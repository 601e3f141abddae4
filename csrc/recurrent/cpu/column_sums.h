// Gradients of the numbers that a unit has for all rows alike: biases, peepholes, gains and shifts of layer norms. Sums
// over rows, in blocks for the same reason as in a product.
#pragma once

#include "recurrent/cpu/backward.h"

namespace adl {
namespace {

// Of one block of units.
template <class Scan>
struct ColumnSums;

template <class Cell, class Io, class Mul>
struct ColumnSums<BackwardScan<Cell, Io, Mul>> {
  using L = Layout<Cell>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kGates = Cell::kGates;

  BackwardScan<Cell, Io, Mul>& f;
  int64_t j;
  const int64_t first = j * kUnits, units = min_of(kUnits, f.w.H - first);

  void write() {
    if (f.p.db_ih || f.p.db_hh) write_db();
    if constexpr (Cell::kPeepholes > 0)
      if (f.p.dw_ch) write_dw_ch();
    if (!f.normed) return;
    for (int side = 0; side < 2; ++side)
      if (Io* to = side == 0 ? f.p.dln_ih : f.p.dln_hh) write_gains(side, to);
    if (Cell::kHasC)
      for (int k = 0; k < 2; ++k)
        if (Io* to = k == 0 ? f.p.dln_c_shift : f.p.dln_c)
          total<1>([&](int64_t row, T* part) {
            const Mul* ds = f.ds + ((j * f.s.N + row) * 2 + k) * kUnits;
            for (int u = 0; u < kUnits; u += V::kLanes) (V::load(part + u) + V::load(ds + u)).store(part + u);
          }).put(to + first, units);
  }

  template <int kRows>
  struct Totals {
    T of[kRows * kUnits];
    void put(Io* to, int64_t n, int row = 0) const { convert_row(of + row * kUnits, n, to, n); }
  };

  // add(row, part) adds what a row has to part [kRows, U].
  template <int kRows, class Add>
  Totals<kRows> total(Add add) {
    Totals<kRows> all{};
    for (int64_t row = 0; row < f.s.N; row += kBlock) {
      Totals<kRows> part{};
      for (int64_t r = row; r < min_of(row + kBlock, f.s.N); ++r) add(r, part.of);
      for (int k = 0; k < kRows * kUnits; ++k) all.of[k] += part.of[k];
    }
    return all;
  }

  const Mul* dgates(int64_t row) const { return f.dgates + (j * f.s.N + row) * kRow; }

  void write_db() {
    const auto sums = total<Cell::kPre>([&](int64_t row, T* part) {
      for (int k = 0; k < kRow; k += V::kLanes) (V::load(part + k) + V::load(dgates(row) + k)).store(part + k);
    });
    for (int g = 0; g < kGates; ++g) {
      if (f.p.db_ih) sums.put(f.p.db_ih + g * f.w.H + first, units, Cell::kIh[g]);
      if (f.p.db_hh) sums.put(f.p.db_hh + g * f.w.H + first, units, Cell::kHh[g]);
    }
  }

  // Gates i [f] o with what they saw: c before, and for o c as the cell made it.
  void write_dw_ch() {
    constexpr int kSeeing = Cell::kPeepholes;
    const Sequence& s = f.s;
    int64_t t = 0;
    const auto sums = total<kSeeing>([&](int64_t row, T* part) {
      while (row >= s.offsets[t + 1]) ++t;
      const int64_t b = row - s.offsets[t], before = row_before(s, t, b);
      const Io* c_prev = resets(s, t, b) ? f.zeros
                         : before < 0    ? f.c_0 + (j * s.B + b) * kUnits
                                         : f.p.c + (j * f.p.kept_rows + before) * kUnits;
      for (int u = 0; u < kUnits; u += V::kLanes) {
        const V made = f.candidates ? V::load(f.candidates + (j * s.N + row) * kUnits + u)
                                    : V::load(f.p.c + (j * f.p.kept_rows + row) * kUnits + u);
        for (int k = 0; k < kSeeing; ++k) {
          const int gate = k == kSeeing - 1 ? Cell::O : k == 0 ? Cell::I : Cell::F;
          const V seen = k == kSeeing - 1 ? made : V::load(c_prev + u);
          T* to = part + k * kUnits + u;
          (V::load(to) + V::load(dgates(row) + gate * kUnits + u) * seen).store(to);
        }
      }
    });
    for (int k = 0; k < kSeeing; ++k) sums.put(f.p.dw_ch + k * f.w.H + first, units, k);
  }

  // Of W_ih x (side 0) or W_hh h.
  void write_gains(int side, Io* to) {
    using Phases = BackwardPhases<BackwardScan<Cell, Io, Mul>>;
    const auto sums = total<kGates>([&](int64_t row, T* part) {
      for (int g = 0; g < kGates; ++g) {
        const int place = side == 0 ? Cell::kIh[g] : Cell::kHh[g];
        for (int u = 0; u < kUnits; u += V::kLanes) {
          T* sum = part + g * kUnits + u;
          (V::load(sum) + V::load(dgates(row) + place * kUnits + u) * Phases::normed(f, j, row, side, g, u)).store(sum);
        }
      }
    });
    for (int g = 0; g < kGates; ++g) sums.put(to + g * f.w.H + first, units, g);
  }
};

}  // namespace
}  // namespace adl
