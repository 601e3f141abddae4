// The way back of forward_phases.h: a step in phases, after each of which threads that share a row meet.
//
// With layer norm forward kept the products alone; gates and all else are made again from them.
#pragma once

#include "recurrent/cpu/backward_cell.h"

namespace adl {
namespace {

template <class Cell, class Io, class Mul>
struct BackwardPhases {
  using L = Layout<Cell>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  using N = BackwardNorms<T>;
  using UnitBlock = typename BackwardLoops<Cell, Io, Mul>::UnitBlock;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns, kFirst = L::kFirstGates;
  static constexpr int kGates = Cell::kGates, kPre = Cell::kPre;

  BackwardWorker<Io, Mul>& k;
  BackwardScan<Io, Mul>& f = k.f;
  BackwardNorms<T>& n = f.norms;

  int64_t units_of(int64_t j) const { return min_of(kUnits, f.w.H - j * kUnits); }
  T* made(int64_t j, int64_t b) const { return n.made + (j * f.s.B + b) * (kRow + 2 * kUnits); }
  // f(j, r, block) for all of this thread's at a step.
  template <class Body>
  void each(int64_t count, Body body) {
    for (int64_t j = k.units.begin; j < k.units.end; ++j)
      for (int64_t r = 0; r < count; ++r) body(j, k.rows.begin + r, UnitBlock(f, k.facts[r], j, k.rows.begin + r));
  }

  // As BackwardScan::normed_product.
  V normed(int64_t j, int64_t row, int side, int g, int u) const {
    const int place = side == 0 ? Cell::kIh[g] - L::kFirstIh : kGates + Cell::kHh[g] - L::kFirstHh;
    const Norm<T>& m = f.norm(side == 0 ? kOfX : g < kFirst ? kOfH : kOfSecond, row);
    const Io* products = f.p.gates + (j * f.p.kept_rows + row) * 2 * kColumns;
    return (V::load(products + place * kUnits + u) - V(m.mean)) * V(m.scale);
  }

  void load_pre(int64_t j, int64_t row, int u, V* v) const {
    for (int p = 0; p < kPre; ++p) v[p] = V::load(f.numbers.bias + j * kRow + p * kUnits + u);
    for (int g = 0; g < kGates; ++g) {
      v[Cell::kIh[g]] = v[Cell::kIh[g]] + f.numbers.template gain<Cell>(j, 0, g, u) * normed(j, row, 0, g, u);
      v[Cell::kHh[g]] = v[Cell::kHh[g]] + f.numbers.template gain<Cell>(j, 1, g, u) * normed(j, row, 1, g, u);
    }
  }

  static void run(BackwardWorker<Io, Mul>& k, int64_t t, int64_t count) { BackwardPhases{k}.step(t, count); }

  void step(int64_t t, int64_t count) {
    if constexpr (Cell::kHasC) {
      remake(count);
      emit_backward(count);
      remember_backward(count);
    } else {
      backward(count);
    }
    if constexpr (Cell::kResetsBefore) second_backward(t, count);
    if (f.normed) norms_backward<0, kFirst>(t, count, true);
    k.meet();
  }

  // Gates and c once more.
  void remake(int64_t count) {
    each(count, [&](int64_t j, int64_t b, const UnitBlock& block) {
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V v[kPre], peep[Cell::kPeepholes + 1], c = V::load(block.c_prev + u);
        load_pre(j, block.row, u, v);
        f.numbers.template load_peepholes<Cell>(j, u, peep);
        Cell::remember(v, c, peep, f.choice);
        for (int p = 0; p < kPre; ++p) v[p].store(made(j, b) + p * kUnits + u);
        c.store(made(j, b) + kRow + u);
        block.put_candidate(u, c);
      }
      n.sums.put(N::kSumC, j, b, lane_sum<T>(made(j, b) + kRow, 1, kUnits, units_of(j)));
    });
    k.meet();
    Norm<T>* norms = n.of_c + k.index * f.s.B;
    const int64_t end = k.rows.begin + count;
    for (int64_t b = k.rows.begin; b < end; ++b) {
      norms[b].mean = n.sums.total(N::kSumC, b) / T(f.w.H);
      for (int64_t j = k.units.begin; j < k.units.end; ++j)
        n.sums.put(N::kSquaresC, j, b, lane_squares<T>(made(j, b) + kRow, 1, kUnits, units_of(j), norms[b].mean));
    }
    k.meet();
    for (int64_t b = k.rows.begin; b < end; ++b) norms[b].scale = norm_scale(n.sums.total(N::kSquaresC, b), f.w.H);
  }

  V normed_c(int64_t j, int64_t b, int u) const {
    const Norm<T>& m = n.of_c[k.index * f.s.B + b];
    return (V::load(made(j, b) + kRow + u) - V(m.mean)) * V(m.scale);
  }

  void emit_backward(int64_t count) {
    each(count, [&](int64_t j, int64_t b, const UnitBlock& block) {
      const T *gain = f.numbers.gains_c + j * 2 * kUnits, *shift = gain + kUnits;
      Mul* kept = f.ds + (j * f.s.N + block.row) * 2 * kUnits;
      T* e = made(j, b) + kRow + kUnits;
      V plain(0), weighted(0);
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V v[kPre], dh, dc, dh_stays, dc_stays;
        for (int p = 0; p < kPre; ++p) v[p] = V::load(made(j, b) + p * kUnits + u);
        block.split(u, dh, dc, dh_stays, dc_stays);
        const V c = normed_c(j, b, u);
        const V ds = Cell::emit_backward(v, V::load(gain + u) * c + V::load(shift + u), dh, f.choice);
        ds.store(kept + u);
        (ds * c).store(kept + kUnits + u);
        const V of_c = ds * V::load(gain + u);  // zero beyond the units that there are, where the gain is
        of_c.store(e + u);
        plain = plain + of_c, weighted = weighted + of_c * c;
        for (int p = 0; p < kPre; ++p) v[p].store(made(j, b) + p * kUnits + u);
      }
      n.sums.put(N::kOfEC, j, b, plain);
      n.sums.put(N::kOfEC + 1, j, b, weighted);
    });
    k.meet();
  }

  void remember_backward(int64_t count) {
    const T share = T(1) / T(f.w.H);
    for (int64_t b = k.rows.begin; b < k.rows.begin + count; ++b) {
      const T scale = n.of_c[k.index * f.s.B + b].scale;
      const T plain = share * n.sums.total(N::kOfEC, b), weighted = share * n.sums.total(N::kOfEC + 1, b);
      for (int64_t j = k.units.begin; j < k.units.end; ++j) {
        const UnitBlock block(f, k.facts[b - k.rows.begin], j, b);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[kPre], peep[Cell::kPeepholes + 1], dh, dc, dh_stays, dc_stays;
          for (int p = 0; p < kPre; ++p) v[p] = V::load(made(j, b) + p * kUnits + u);
          f.numbers.template load_peepholes<Cell>(j, u, peep);
          block.split(u, dh, dc, dh_stays, dc_stays);
          const V e = V::load(made(j, b) + kRow + kUnits + u);
          dc = dc + V(scale) * (e - (V(plain) + normed_c(j, b, u) * V(weighted)));
          Cell::remember_backward(v, V::load(block.c_prev + u), dc, peep, f.choice);
          block.put(u, v, dh_stays, dc + dc_stays);
        }
      }
    }
  }

  // Of a cell without c.
  void backward(int64_t count) {
    each(count, [&](int64_t j, int64_t, const UnitBlock& block) {
      const Io* gates = f.p.gates + (j * f.p.kept_rows + block.row) * kRow;
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V d[kPre], dh, dc, dh_stays, dc_stays, h_prev = V::load(block.h_prev + u, block.width - u), h = h_prev;
        if (f.normed) {
          load_pre(j, block.row, u, d);
          if constexpr (Cell::kResetsBefore) Cell::reset(d);
          if constexpr (!Cell::kHasC) Cell::forward(d, h, f.choice);
        } else {
          for (int p = 0; p < kPre; ++p) d[p] = V::load(gates + p * kUnits + u);
        }
        block.split(u, dh, dc, dh_stays, dc_stays);
        if constexpr (!Cell::kHasC) Cell::backward(d, h_prev, h, dh, f.choice);
        block.put(u, d, dh + dh_stays, dc);
      }
    });
  }

  // Through U_n (r h): r, which `backward` left in the place of its gradient, has it now; `around` is what comes to h.
  void second_backward(int64_t t, int64_t count) {
    if (f.normed) norms_backward<kFirst, kGates>(t, count, false);
    k.meet();
    const int64_t begin = k.rows.begin, row = f.s.offsets[t] + begin;
    for (int64_t q = k.panels_p.begin; q < k.panels_p.end; ++q)
      f.times_transposed(kFirst, kGates, f.of_h(), row, count, f.w.w_hh, f.w.P, q, f.w_n, f.l.hh, f.l.first_hh,
                         kZeros<T>, 0, f.product + begin * f.ldh + q * kPanel, f.ldh);
    each(count, [&](int64_t j, int64_t b, const UnitBlock& block) {
      const int64_t at = b * f.ldh + j * kUnits;
      Io* reset = f.reset_h + block.row * f.ldh + j * kUnits;
      const Io* h = f.operand[block.row] + j * kUnits;
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V d[kPre], hv = V::load(h + u, block.width - u);
        d[0] = V::load(block.dgates + u);
        (d[0] * hv).store(reset + u);
        Cell::reset_backward(d, hv, V::load(f.product + at + u)).store(f.around + at + u);
        d[0].store(block.dgates + u);
      }
    });
  }

  // From the gradients of the pre-activations those of the products of gates kBegin.., and with `of_x` of W_ih x.
  template <int kBegin, int kEnd>
  void norms_backward(int64_t t, int64_t count, bool of_x) {
    constexpr NormKind kind = kBegin == 0 ? kOfH : kOfSecond;
    // e = dL/d(normalised product) of gate g; zero beyond the units that there are, where the gain is.
    const auto e = [&](int64_t j, int64_t row, int side, int g, int u) {
      const int place = side == 0 ? Cell::kIh[g] : Cell::kHh[g];
      return V::load(f.dgates + (j * f.s.N + row) * kRow + place * kUnits + u) *
             f.numbers.template gain<Cell>(j, side, g, u);
    };
    const auto put_sums = [&](int64_t j, int64_t b, int64_t row, int side, int begin, int end) {
      V plain(0), weighted(0);
      for (int g = begin; g < end; ++g) {
        for (int u = 0; u < kUnits; u += V::kLanes) {
          const V value = e(j, row, side, g, u);
          plain = plain + value, weighted = weighted + value * normed(j, row, side, g, u);
        }
      }
      const int to = side == 0 ? N::kOfEX : N::kOfEH;
      n.sums.put(to, j, b, plain);
      n.sums.put(to + 1, j, b, weighted);
    };
    for (int64_t j = k.units.begin; j < k.units.end; ++j) {
      for (int64_t b = k.rows.begin; b < k.rows.begin + count; ++b) {
        put_sums(j, b, f.s.offsets[t] + b, 1, kBegin, kEnd);
        if (of_x) put_sums(j, b, f.s.offsets[t] + b, 0, 0, kGates);
      }
    }
    k.meet();
    for (int64_t b = k.rows.begin; b < k.rows.begin + count; ++b) {
      const int64_t row = f.s.offsets[t] + b;
      const auto put = [&](Mul* to, int side, int begin, int end) {
        const int from = side == 0 ? N::kOfEX : N::kOfEH;
        const T share = T(1) / T((end - begin) * f.w.H), scale = f.norm(side == 0 ? kOfX : kind, row).scale;
        const T plain = share * n.sums.total(from, b), weighted = share * n.sums.total(from + 1, b);
        for (int64_t j = k.units.begin; j < k.units.end; ++j) {
          for (int g = begin; g < end; ++g) {
            const int place = side == 0 ? Cell::kIh[g] - L::kFirstIh : Cell::kHh[g] - L::kFirstHh;
            for (int u = 0; u < kUnits; u += V::kLanes)
              (V(scale) * (e(j, row, side, g, u) - (V(plain) + normed(j, row, side, g, u) * V(weighted))))
                  .store(to + (j * f.s.N + row) * kColumns + place * kUnits + u);
          }
        }
      };
      put(f.dgh, 1, kBegin, kEnd);
      if (of_x) put(f.dgx, 0, 0, kGates);
    }
  }
};

}  // namespace
}  // namespace adl
