// What a forward scan does for one cell: the loops over its units.
#pragma once

#include "recurrent/cpu/forward.h"

namespace adl {
namespace {

template <class Cell, class Io, class Mul>
struct ForwardLoops {
  using L = Layout<Cell>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  using Scan = ForwardScan<Io, Mul>;
  using Worker = ForwardWorker<Io, Mul>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow;

  // Block j of `count` sequences, whose rows begin at `row`.
  static void cells(Worker& k, int64_t j, int64_t row, int64_t count, const T* pre, Mul* h_next) {
    Scan& f = k.f;
    const Choice choice = f.choice;
    const int64_t width = f.w.H - j * kUnits, at = (j * f.s.B + k.rows.begin) * kUnits;
    Mul* next = (f.w.w_hr ? f.h_cell : h_next) + k.rows.begin * f.ldh + j * kUnits;
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
        cell_forward<Cell, V>(v, hv, cv, nullptr, choice);
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

  // One sequence's units of a block at a step: where its state and all that is kept of it lie.
  struct UnitBlock {
    Scan& f;
    const RowFacts& facts;
    int64_t j, width;
    T *h, *c;
    Mul* next;
    Io *saved, *saved_c;

    UnitBlock(Scan& scan, const RowFacts& facts, int64_t j, int64_t b, Mul* h_next)
        : f(scan),
          facts(facts),
          j(j),
          width(f.w.H - j * kUnits),
          h(f.h + (j * f.s.B + b) * kUnits),
          c(f.c + (j * f.s.B + b) * kUnits),
          next((f.w.w_hr ? f.h_cell : h_next) + b * f.ldh + j * kUnits),
          saved(f.p.gates && !f.normed ? f.p.gates + (j * f.s.N + facts.row) * kRow : nullptr),
          saved_c(f.p.c ? f.p.c + (j * f.s.N + facts.row) * kUnits : nullptr) {}

    V h_before(int u) const { return facts.fresh ? V(0) : V::load(h + u); }
    V c_before(int u) const { return facts.fresh ? V(0) : V::load(c + u); }

    V zoned(V now, V before, const uint8_t* mask, double share, int64_t stride, int u) const {
      if (!f.e.zoneout) return now;
      const V stays = mask ? V::load(mask + facts.place * stride + j * kUnits + u, width - u) : V(T(share));
      return stays * before + (V(1) - stays) * now;  // exactly what was, where all of it stays
    }

    // The state after the step goes where the next one, the output and backward look for it.
    void put_c(int u, V c_made) const {
      const V now = zoned(c_made, c_before(u), f.e.zone_c, f.e.zone[1], f.w.H, u);
      now.store(c + u);
      if (saved_c) now.store(saved_c + u);
      if (f.p.all_c) now.store(f.p.all_c + facts.place * f.p.c_stride + j * kUnits + u, width - u);
    }
    void put_h(int u, V h_made) const {
      if (f.w.w_hr) {
        h_made.store(next + u);
        if (f.p.h_cell) h_made.store(f.p.h_cell + facts.row * f.w.H + j * kUnits + u, width - u);
        return;
      }
      V now = zoned(h_made, h_before(u), f.e.zone_h, f.e.zone[0], f.w.H, u);
      now.store(h + u);
      now.store(f.p.y + facts.place * f.p.y_stride + j * kUnits + u, width - u);
      (facts.fresh_next ? V(0) : masked(now, u)).store(next + u);
    }
    V masked(V h, int u) const {
      return f.e.mask ? h * V::load(f.e.mask + facts.original * f.w.P + j * kUnits + u, width - u) : h;
    }
    void put_gates(int u, const V* v) const {
      if (saved)
        for (int g = 0; g < Cell::kPre; ++g) v[g].store(saved + g * kUnits + u);
    }
  };

  // As `cells`, where more than the cell is asked for.
  static void cells_with_options(Worker& k, int64_t j, int64_t count, const T* pre, Mul* h_next) {
    Scan& f = k.f;
    const Choice choice = f.choice;
    for (int64_t r = 0; r < count; ++r) {
      const UnitBlock block(f, k.facts[r], j, k.rows.begin + r, h_next);
      for (int u = 0; u < kUnits; u += V::kLanes) {
        V v[Cell::kPre], peep[Cell::kPeepholes + 1];
        for (int g = 0; g < Cell::kPre; ++g) v[g] = V::load(pre + r * kRow + g * kUnits + u);
        f.numbers.template load_peepholes<Cell>(j, u, peep);
        V h = block.h_before(u), c = Cell::kHasC ? block.c_before(u) : V(0);
        cell_forward<Cell, V>(v, h, c, peep, choice);
        block.put_gates(u, v);
        if constexpr (Cell::kHasC) block.put_c(u, c);
        block.put_h(u, h);
      }
    }
  }
};

}  // namespace
}  // namespace adl
