// Gradients of the numbers that a unit has for all rows alike: biases, peepholes, gains and shifts of layer norms. Sums
// over rows, in blocks for the same reason as in a product.
#pragma once

#include "recurrent/cpu/backward.h"

namespace adl {
namespace {

// Of one block of units.
template <class Io, class Mul>
struct ColumnSums {
  using T = Sum<Mul>;
  using V = Simd<T>;

  BackwardScan<Io, Mul>& f;
  int64_t j;
  const GateLayout& l = f.l;
  const int64_t first = j * l.units, units = min_of(l.units, f.w.H - first);
  T sums[GateLayout::kMostRow] = {};  // what the last total() made

  void write() {
    if (f.p.db_ih || f.p.db_hh) write_db();
    if (f.p.dw_ch) write_dw_ch();
    if (!f.normed) return;
    for (int side = 0; side < 2; ++side)
      if (Io* to = side == 0 ? f.p.dln_ih : f.p.dln_hh) write_gains(side, to);
    for (int k = 0; k < 2 && l.has_c; ++k) {
      if (Io* to = k == 0 ? f.p.dln_c_shift : f.p.dln_c) {
        total(l.units, [&](int64_t row, int u) { return V::load(f.ds + ((j * f.s.N + row) * 2 + k) * l.units + u); });
        put(to + first, 0);
      }
    }
  }

  // The sums over all rows of so many numbers; value(row, k): those from k on.
  template <class Value>
  void total(int count, Value value) {
    for (int k = 0; k < count; k += V::kLanes) {
      V all(0);
      for (int64_t row = 0; row < f.s.N; row += kBlock) {
        V part(0);
        for (int64_t r = row; r < min_of(row + kBlock, f.s.N); ++r) part = part + value(r, k);
        all = all + part;
      }
      all.store(sums + k);
    }
  }
  // The units of row `at` of [rows, U].
  void put(Io* to, int at) const { convert_row(sums + at * l.units, units, to, units); }

  V dgates(int64_t row, int k) const { return V::load(f.dgates + (j * f.s.N + row) * l.row + k); }

  void write_db() {
    total(l.row, [&](int64_t row, int k) { return dgates(row, k); });
    for (int g = 0; g < l.gates; ++g) {
      if (f.p.db_ih) put(f.p.db_ih + g * f.w.H + first, l.ih[g]);
      if (f.p.db_hh) put(f.p.db_hh + g * f.w.H + first, l.hh[g]);
    }
  }

  // Gates i [f] o with what they saw: c before, and for o c as the cell made it.
  void write_dw_ch() {
    const Sequence& s = f.s;
    for (int k = 0; k < l.peepholes; ++k) {
      const bool last = k == l.peepholes - 1;
      const int gate = last ? l.gates - 1 : k;
      int64_t t = 0;
      total(l.units, [&](int64_t row, int u) {
        while (row < s.offsets[t]) --t;
        while (row >= s.offsets[t + 1]) ++t;
        return dgates(row, gate * l.units + u) * (last ? made(row, u) : before(row, t, u));
      });
      put(f.p.dw_ch + k * f.w.H + first, 0);
    }
  }
  V made(int64_t row, int u) const {
    return f.candidates ? V::load(f.candidates + (j * f.s.N + row) * l.units + u)
                        : V::load(f.p.c + (j * f.p.kept_rows + row) * l.units + u);
  }
  V before(int64_t row, int64_t t, int u) const {
    const int64_t b = row - f.s.offsets[t], before = row_before(f.s, t, b);
    if (resets(f.s, t, b)) return V(0);
    return before < 0 ? V::load(f.c_0 + (j * f.s.B + b) * l.units + u)
                      : V::load(f.p.c + (j * f.p.kept_rows + before) * l.units + u);
  }

  // Of W_ih x (side 0) or W_hh h.
  void write_gains(int side, Io* to) {
    for (int g = 0; g < l.gates; ++g) {
      const int place = side == 0 ? l.ih[g] : l.hh[g];
      total(l.units, [&](int64_t row, int u) {
        return dgates(row, place * l.units + u) * f.normed_product(j, row, side, g, u);
      });
      put(to + g * f.w.H + first, 0);
    }
  }
};

}  // namespace
}  // namespace adl
