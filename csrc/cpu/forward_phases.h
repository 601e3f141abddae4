// A forward step in phases, for cells and layers that look at the whole row before they go on: a layer norm of the
// products and of c, a product that waits for a gate. Threads that share a row meet after each phase.
#pragma once

#include "cpu/norm.h"

namespace adl {
namespace {

template <class Scan>
struct ForwardPhases;

template <template <class, class, class> class Scan, class Cell, class Io, class Mul>
struct ForwardPhases<Scan<Cell, Io, Mul>> {
  using F = Scan<Cell, Io, Mul>;
  using L = Layout<Cell>;
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  using Worker = typename F::Worker;
  using Site = typename Worker::Site;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns, kFirst = L::kFirstGates;

  Worker& k;
  F& f = k.f;

  int64_t units_of(int64_t j) const { return at_most(kUnits, f.w.H - j * kUnits); }
  T* gh(int64_t j, int64_t b) const { return f.gh + (j * f.s.B + b) * kColumns; }
  T* made(int64_t j, int64_t b) const { return f.made + (j * f.s.B + b) * (kRow + kUnits); }
  T* second(int64_t j, int64_t b) const { return f.second + b * f.ldh + j * kUnits; }
  Moments<T>& moments_h(NormKind kind, int64_t j, int64_t b) const {
    return f.moments_h[((kind - kOfH) * f.J + j) * f.s.B + b];
  }
  const Norm<T>& norm(NormKind kind, int64_t b) const { return k.norms[kind * f.s.B + b]; }

  // W_ih x of some rows as it is, for backward and to be normalised; its moments.
  void project(int64_t j, int64_t row, int64_t count, int64_t at, T* out) {
    if (f.direct) std::memset(out, 0, count * kRow * sizeof(T));
    k.project(j, row, count, Cell::kIh, kZeros<T>, out - L::kFirstIh * kUnits, out, kRow);
    for (int64_t r = 0; r < count; ++r) {
      f.moments_x[j * f.gate_rows + at + r] = moments<kUnits, T>(out + r * kRow, Cell::kGates, units_of(j));
      keep(j, row + r, 0, out + r * kRow, kColumns);
    }
  }

  // Products [gates, U] of a row, from column `first` on of what backward finds of it.
  void keep(int64_t j, int64_t row, int64_t first, const T* products, int64_t count) {
    if (f.p.gates) convert_row(products, count, f.p.gates + (j * f.s.N + row) * 2 * kColumns + first, count);
  }

  void step(int64_t t, int64_t t0, const Mul* h_prev, Mul* h_next) {
    const int64_t count = k.active(t), begin = k.rows.begin, row = f.s.offsets[t] + begin;
    for (int64_t j = k.units.begin; j < k.units.end && count > 0; ++j) {
      const Mul* h = h_prev + begin * f.ldh;
      if (!f.normed) {
        T* pre = k.gates(j, t, t0);
        k.times_h(j, count, h, pre, pre + L::kFirstHh * kUnits, kRow);
        continue;
      }
      T* sums = gh(j, begin);
      std::memset(sums, 0, count * kColumns * sizeof(T));
      k.times_h(j, count, h, sums - L::kFirstHh * kUnits, sums, kColumns);
      for (int64_t r = 0; r < count; ++r) {
        moments_h(kOfH, j, begin + r) = moments<kUnits, T>(gh(j, begin + r), kFirst, units_of(j));
        keep(j, row + r, kColumns, gh(j, begin + r), kFirst * kUnits);
      }
    }
    if (f.normed) {
      k.meet();
      const Moments<T>* of_x = f.moments_x + k.chunk_row(t, t0);
      for (int64_t r = 0; r < count; ++r) {
        k.norms[begin + r] =
            norm_of<kUnits, T>(f.w.H, Cell::kGates, [&](int64_t j) { return of_x[j * f.gate_rows + r]; });
        find_norm(kOfH, begin + r, kFirst);
      }
    }
    if constexpr (Cell::kResetsBefore) second_product(t, t0, count, h_next);
    cells(t, t0, count, h_next);
    if constexpr (Cell::kHasC)
      if (f.normed) emit(t, count, h_next);
    k.finish_step(t, count, h_next);
  }

  void find_norm(NormKind kind, int64_t b, int gates) {
    k.norms[kind * f.s.B + b] = norm_of<kUnits, T>(f.w.H, gates, [&](int64_t j) { return moments_h(kind, j, b); });
  }

  // The pre-activations of a register of units, with the products of h of the first `gates` gates.
  void load_pre(int64_t j, int64_t b, const T* gx, int gates, int u, V* v) const {
    if (!f.normed) {
      for (int p = 0; p < Cell::kPre; ++p) v[p] = V::load(gx + p * kUnits + u);
      if (gates > kFirst) v[Cell::kHh[kFirst]] = v[Cell::kHh[kFirst]] + V::load(second(j, b) + u);
      return;
    }
    const auto normed = [&](const T* value, NormKind kind, int side, int g) {
      const Norm<T>& n = norm(kind, b);
      const V gain = V::load(f.gains + ((j * 2 + side) * Cell::kGates + g) * kUnits + u);
      return gain * ((V::load(value + u) - V(n.mean)) * V(n.scale));
    };
    for (int p = 0; p < Cell::kPre; ++p) v[p] = V::load(f.bias + j * kRow + p * kUnits + u);
    for (int g = 0; g < Cell::kGates; ++g) {
      const int to = Cell::kIh[g];
      v[to] = v[to] + normed(gx + (to - L::kFirstIh) * kUnits, kOfX, 0, g);
    }
    for (int g = 0; g < gates; ++g) {
      const int to = Cell::kHh[g];
      v[to] = v[to] + (g < kFirst ? normed(gh(j, b) + (to - L::kFirstHh) * kUnits, kOfH, 1, g)
                                  : normed(second(j, b), kOfSecond, 1, g));
    }
  }

  // U_n (r h), which waits for r.
  void second_product(int64_t t, int64_t t0, int64_t count, Mul* h_next) {
    const int64_t begin = k.rows.begin, row = f.s.offsets[t] + begin;
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      const T* gx = k.gates(j, t, t0);
      for (int64_t r = 0; r < count; ++r) {
        const Site site(f, t, j, begin + r, h_next);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre];
          load_pre(j, begin + r, gx + r * kRow, kFirst, u, v);
          (Cell::reset(v) * site.masked(site.h_before(u), u)).store(f.h_cell + (begin + r) * f.ldh + j * kUnits + u);
        }
      }
    }
    k.meet();
    for (int64_t q = k.panels_n.begin; q < k.panels_n.end && count > 0; ++q) {
      T* out = f.second + begin * f.ldh + q * kPanel;
      const Mul* h = f.h_cell + begin * f.ldh;
      if (f.direct) {
        for (int64_t r = 0; r < count; ++r) std::memset(out + r * f.ldh, 0, kPanel * sizeof(T));
        direct_units<T, 1, kPanel>(f.w.w_hh + kFirst * f.w.H * f.w.P, f.w.H, f.w.P, q, {0}, count, h, f.ldh, out,
                                   f.ldh);
      } else {
        product<E, T, kPanel>(count, f.state_rows(h, f.EP), f.w_n + q * f.EP * kPanel, kZeros<T>, 0, out, f.ldh);
      }
    }
    if (!f.normed) return;
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      for (int64_t r = 0; r < count; ++r) {
        moments_h(kOfSecond, j, begin + r) = moments<kUnits, T>(second(j, begin + r), 1, units_of(j));
        keep(j, row + r, kColumns + kFirst * kUnits, second(j, begin + r), kUnits);
      }
    }
    k.meet();
    for (int64_t r = 0; r < count; ++r) find_norm(kOfSecond, begin + r, 1);
  }

  // All of the cell, or of one with c that is normalised what comes before.
  void cells(int64_t t, int64_t t0, int64_t count, Mul* h_next) {
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      const T* gx = k.gates(j, t, t0);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t b = k.rows.begin + r;
        const Site site(f, t, j, b, h_next);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre], peep[Cell::kPeepholes + 1];
          load_pre(j, b, gx + r * kRow, Cell::kGates, u, v);
          site.load_peepholes(u, peep);
          V h = site.h_before(u), c = Cell::kHasC ? site.c_before(u) : V(0);
          if constexpr (Cell::kResetsBefore) Cell::reset(v);
          if constexpr (Cell::kHasC) {
            Cell::remember(v, c, peep, f.e.choice);
            for (int p = 0; p < Cell::kPre; ++p) v[p].store(made(j, b) + p * kUnits + u);
            c.store(made(j, b) + kRow + u);
            site.put_c(u, c);
          } else {
            Cell::forward(v, h);
            site.put_gates(u, v);
            site.put_h(u, h);
          }
        }
        if constexpr (Cell::kHasC) moments_h(kOfC, j, b) = moments<kUnits, T>(made(j, b) + kRow, 1, units_of(j));
      }
    }
  }

  // h from the normalised c.
  void emit(int64_t t, int64_t count, Mul* h_next) {
    k.meet();
    for (int64_t r = 0; r < count; ++r) find_norm(kOfC, k.rows.begin + r, 1);
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      const T *gain = f.gains_c + j * 2 * kUnits, *shift = gain + kUnits;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t b = k.rows.begin + r;
        const Site site(f, t, j, b, h_next);
        const Norm<T>& n = norm(kOfC, b);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre];
          for (int p = 0; p < Cell::kPre; ++p) v[p] = V::load(made(j, b) + p * kUnits + u);
          const V c = (V::load(made(j, b) + kRow + u) - V(n.mean)) * V(n.scale);
          site.put_h(u, Cell::emit(v, V::load(gain + u) * c + V::load(shift + u), f.e.choice));
        }
      }
    }
  }
};

}  // namespace
}  // namespace adl
