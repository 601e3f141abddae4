// A forward step in phases, for cells and layers that look at the whole row before they go on: a layer norm of the
// products and of c, a product that waits for a gate. Threads that share a row meet after each phase.
#pragma once

#include "recurrent/cpu/forward_cell.h"

namespace adl {
namespace {

template <class Cell, class Io, class Mul>
struct ForwardPhases {
  using L = Layout<Cell>;
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  using UnitBlock = typename ForwardLoops<Cell, Io, Mul>::UnitBlock;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns, kFirst = L::kFirstGates;

  ForwardWorker<Io, Mul>& k;
  ForwardScan<Io, Mul>& f = k.f;

  T* gh(int64_t j, int64_t b) const { return f.gh + (j * f.s.B + b) * kColumns; }
  T* made(int64_t j, int64_t b) const { return f.made + (j * f.s.B + b) * (kRow + kUnits); }
  T* second(int64_t j, int64_t b) const { return f.second + b * f.ldh + j * kUnits; }
  const Norm<T>& norm(NormKind kind, int64_t b) const { return k.norms[kind * f.s.B + b]; }

  static void run(ForwardWorker<Io, Mul>& k, int64_t t, int64_t t0, const Mul* h_prev, Mul* h_next) {
    ForwardPhases{k}.step(t, t0, h_prev, h_next);
  }

  void step(int64_t t, int64_t t0, const Mul* h_prev, Mul* h_next) {
    const int64_t count = k.active(t), begin = k.rows.begin, row = f.s.offsets[t] + begin;
    k.look_at_rows(t, count);
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
        k.put_sum(kOfH, j, begin + r, gh(j, begin + r), kFirst, kUnits);
        k.keep(j, row + r, kColumns, gh(j, begin + r), kFirst * kUnits);
      }
    }
    if (f.normed) k.find_norms(kOfH, count, kFirst, kUnits, [&](int64_t j, int64_t b) { return gh(j, b); });
    if constexpr (Cell::kResetsBefore) second_product(t, t0, count, h_next);
    cells(t, t0, count, h_next);
    if constexpr (Cell::kHasC)
      if (f.normed) emit(count, h_next);
    k.finish_step(t, count, h_next);
  }

  // The pre-activations of a register of units, with the products of h of the first `gates` gates.
  void load_pre(int64_t j, int64_t b, const T* gx, const Norm<T>* of_x, int gates, int u, V* v) const {
    if (!f.normed) {
      for (int p = 0; p < Cell::kPre; ++p) v[p] = V::load(gx + p * kUnits + u);
      if (gates > kFirst) v[Cell::kHh[kFirst]] = v[Cell::kHh[kFirst]] + V::load(second(j, b) + u);
      return;
    }
    const auto normed = [&](const T* value, const Norm<T>& n, int side, int g) {
      return f.numbers.template gain<Cell>(j, side, g, u) * ((V::load(value + u) - V(n.mean)) * V(n.scale));
    };
    for (int p = 0; p < Cell::kPre; ++p) v[p] = V::load(f.numbers.bias + j * kRow + p * kUnits + u);
    for (int g = 0; g < Cell::kGates; ++g) {
      const int to = Cell::kIh[g];
      v[to] = v[to] + normed(gx + (to - L::kFirstIh) * kUnits, *of_x, 0, g);
    }
    for (int g = 0; g < gates; ++g) {
      const int to = Cell::kHh[g];
      v[to] = v[to] + (g < kFirst ? normed(gh(j, b) + (to - L::kFirstHh) * kUnits, norm(kOfH, b), 1, g)
                                  : normed(second(j, b), norm(kOfSecond, b), 1, g));
    }
  }

  // U_n (r h), which waits for r.
  void second_product(int64_t t, int64_t t0, int64_t count, Mul* h_next) {
    const int64_t begin = k.rows.begin, row = f.s.offsets[t] + begin;
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      const T* gx = k.gates(j, t, t0);
      for (int64_t r = 0; r < count; ++r) {
        const UnitBlock block(f, k.facts[r], j, begin + r, h_next);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre];
          load_pre(j, begin + r, gx + r * kRow, k.norms_x + k.chunk_row(t, t0) + r, kFirst, u, v);
          (Cell::reset(v) * block.masked(block.h_before(u), u)).store(f.h_cell + (begin + r) * f.ldh + j * kUnits + u);
        }
      }
    }
    k.meet();
    for (int64_t q = k.panels_n.begin; q < k.panels_n.end && count > 0; ++q) {
      T* out = f.second + begin * f.ldh + q * kPanel;
      const Mul* h = f.h_cell + begin * f.ldh;
      if (f.direct) {
        for (int64_t r = 0; r < count; ++r) std::memset(out + r * f.ldh, 0, kPanel * sizeof(T));
        direct_units<T>(f.w.w_hh + kFirst * f.w.H * f.w.P, f.w.H, f.w.P, q, 1, kPanel, kFirstPlace, count, h, f.ldh,
                        out, f.ldh);
      } else {
        product<E, T, kPanel>(count, f.state_rows(h, f.EP), f.w_n + q * f.EP * kPanel, kZeros<T>, 0, out, f.ldh);
      }
    }
    if (!f.normed) return;
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      for (int64_t r = 0; r < count; ++r) {
        k.put_sum(kOfSecond, j, begin + r, second(j, begin + r), 1, kUnits);
        k.keep(j, row + r, kColumns + kFirst * kUnits, second(j, begin + r), kUnits);
      }
    }
    k.find_norms(kOfSecond, count, 1, kUnits, [&](int64_t j, int64_t b) { return second(j, b); });
  }

  // All of the cell, or of one with c that is normalised what comes before.
  void cells(int64_t t, int64_t t0, int64_t count, Mul* h_next) {
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      const T* gx = k.gates(j, t, t0);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t b = k.rows.begin + r;
        const UnitBlock block(f, k.facts[r], j, b, h_next);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre], peep[Cell::kPeepholes + 1];
          load_pre(j, b, gx + r * kRow, k.norms_x + k.chunk_row(t, t0) + r, Cell::kGates, u, v);
          f.numbers.template load_peepholes<Cell>(j, u, peep);
          V h = block.h_before(u), c = Cell::kHasC ? block.c_before(u) : V(0);
          if constexpr (Cell::kResetsBefore) Cell::reset(v);
          if constexpr (Cell::kHasC) {
            Cell::remember(v, c, peep, f.choice);
            for (int p = 0; p < Cell::kPre; ++p) v[p].store(made(j, b) + p * kUnits + u);
            c.store(made(j, b) + kRow + u);
            block.put_c(u, c);
          } else {
            Cell::forward(v, h, f.choice);
            block.put_gates(u, v);
            block.put_h(u, h);
          }
        }
        if constexpr (Cell::kHasC) k.put_sum(kOfC, j, b, made(j, b) + kRow, 1, kUnits);
      }
    }
  }

  // h from the normalised c.
  void emit(int64_t count, Mul* h_next) {
    k.find_norms(kOfC, count, 1, kUnits, [&](int64_t j, int64_t b) { return made(j, b) + kRow; });
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      const T *gain = f.numbers.gains_c + j * 2 * kUnits, *shift = gain + kUnits;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t b = k.rows.begin + r;
        const UnitBlock block(f, k.facts[r], j, b, h_next);
        const Norm<T>& n = norm(kOfC, b);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre];
          for (int p = 0; p < Cell::kPre; ++p) v[p] = V::load(made(j, b) + p * kUnits + u);
          const V c = (V::load(made(j, b) + kRow + u) - V(n.mean)) * V(n.scale);
          block.put_h(u, Cell::emit(v, V::load(gain + u) * c + V::load(shift + u), f.choice));
        }
      }
    }
  }
};

}  // namespace
}  // namespace adl
