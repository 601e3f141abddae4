// What a backward scan does for one cell: the loops over its units.
#pragma once

#include "recurrent/cpu/backward.h"

namespace adl {
namespace {

template <class Cell, class Io, class Mul>
struct BackwardLoops {
  using L = Layout<Cell>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  using Scan = BackwardScan<Io, Mul>;
  using Worker = BackwardWorker<Io, Mul>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow;

  static void cells(Worker& k, int64_t t, int64_t j, int64_t count) {
    Scan& f = k.f;
    const Sequence& s = f.s;
    const Choice choice = f.choice;
    const int64_t row = s.offsets[t] + k.rows.begin, width = f.w.H - j * kUnits;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t b = k.rows.begin + r, before = row_before(s, t, b);
      const Io* gates = f.p.gates + (j * f.p.kept_rows + row + r) * kRow;
      const Io* c = f.p.c + (j * f.p.kept_rows + row + r) * kUnits;
      const Io* c_prev = before < 0 ? f.c_0 + (j * s.B + b) * kUnits : f.p.c + (j * f.p.kept_rows + before) * kUnits;
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
        cell_backward<Cell, V>(d, h_prev, h, cv_prev, cv, dhv, dcv, nullptr, choice);
        for (int g = 0; g < Cell::kPre; ++g) d[g].store(dgates + g * kUnits + u);
        dhv.store(dh + u);
        if constexpr (Cell::kHasC) dcv.store(dc + u);
      }
    }
  }

  // One sequence's units of a block at a step: where what forward left and the gradients lie.
  struct UnitBlock {
    Scan& f;
    const RowFacts& facts;
    int64_t j, width, row;
    const Io *c_prev, *h_prev;
    T *dc, *dh;
    Mul* dgates;

    UnitBlock(Scan& scan, const RowFacts& facts, int64_t j, int64_t b)
        : f(scan),
          facts(facts),
          j(j),
          width(f.w.H - j * kUnits),
          row(facts.row),
          c_prev(facts.fresh        ? f.zeros + j * kUnits
                 : facts.before < 0 ? f.c_0 + (j * f.s.B + b) * kUnits
                                    : f.p.c + (j * f.p.kept_rows + facts.before) * kUnits),
          h_prev(f.h_prev[row] + j * kUnits),
          dc(f.dc + (j * f.s.B + b) * kUnits),
          dh(f.dh_cell + b * f.ldh + j * kUnits),
          dgates(f.dgates + (j * f.s.N + row) * kRow) {}

    V stays(const uint8_t* mask, double share, int u) const {
      return mask ? V::load(mask + facts.place * f.w.H + j * kUnits + u, width - u) : V(T(share));
    }
    void put_candidate(int u, V c) const {
      if (f.candidates) c.store(f.candidates + (j * f.s.N + row) * kUnits + u);
    }

    // What the state before keeps of dh and dc by zoneout; they become the gradients of what the cell made.
    void split(int u, V& dhv, V& dcv, V& dh_stays, V& dc_stays) const {
      dhv = V::load(dh + u), dcv = V(0), dh_stays = V(0), dc_stays = V(0);
      if constexpr (Cell::kHasC) {
        dcv = V::load(dc + u);
        if (f.p.dall_c) dcv = dcv + V::load(f.p.dall_c + facts.place * f.p.c_stride + j * kUnits + u, width - u);
      }
      if (!f.e.zoneout) return;
      if (!f.w.w_hr) dh_stays = stays(f.e.zone_h, f.e.zone[0], u) * dhv, dhv = dhv - dh_stays;
      if constexpr (Cell::kHasC) dc_stays = stays(f.e.zone_c, f.e.zone[1], u) * dcv, dcv = dcv - dc_stays;
    }

    void put(int u, const V* d, V dhv, V dcv) const {
      for (int g = 0; g < Cell::kPre; ++g) d[g].store(dgates + g * kUnits + u);
      dhv.store(dh + u);
      if constexpr (Cell::kHasC) (facts.severed ? V(0) : dcv).store(dc + u);
    }
  };

  // As `cells`, where more than the cell is asked for.
  static void cells_with_options(Worker& k, int64_t j, int64_t count) {
    Scan& f = k.f;
    const Choice choice = f.choice;
    for (int64_t r = 0; r < count; ++r) {
      const UnitBlock block(f, k.facts[r], j, k.rows.begin + r);
      const Io* gates = f.p.gates + (j * f.p.kept_rows + block.row) * kRow;
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V d[Cell::kPre], peep[Cell::kPeepholes + 1], h_prev(0), h(0), c(0), c_prev(0), dh, dc, dh_stays, dc_stays;
        f.numbers.template load_peepholes<Cell>(j, u, peep);
        block.split(u, dh, dc, dh_stays, dc_stays);
        if (f.p.gates)
          for (int g = 0; g < Cell::kPre; ++g) d[g] = V::load(gates + g * kUnits + u);
        if constexpr (Cell::kHasC) {
          c_prev = V::load(block.c_prev + u);
          // What zoneout left as it was is not what the cell made.
          c = f.e.zoneout ? Cell::candidate(d, c_prev, choice)
                          : V::load(f.p.c + (j * f.p.kept_rows + block.row) * kUnits + u);
          block.put_candidate(u, c);
        } else if constexpr (Cell::kSavesGates) {
          h_prev = V::load(block.h_prev + u, block.width - u);
        } else {
          h = f.p.gates ? d[0] : V::load(f.p.y + block.facts.place * f.p.y_stride + j * kUnits + u, block.width - u);
        }
        cell_backward<Cell, V>(d, h_prev, h, c_prev, c, dh, dc, peep, choice);
        block.put(u, d, dh + dh_stays, dc + dc_stays);
      }
    }
  }
};

}  // namespace
}  // namespace adl
