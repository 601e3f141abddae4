// Backpropagation through time of one direction: the scan runs the steps in the opposite order and leaves
// the gradients of all pre-activations; gradients.h makes those of x and of the weights from them.
#pragma once

#include "recurrent/cpu/backward_phases.h"
#include "recurrent/cpu/plan.h"
#include "recurrent/cpu/unit_numbers.h"

namespace adl {
namespace {

// What a product with gates reads: their gradients [J, N, row], gate g at its place less the first.
template <class Mul>
struct GateGradients {
  const Mul* of;
  int64_t row;  // numbers between two rows
  int first;    // place of the first of a row
};

// Number types as in ForwardScan.
template <class Cell, class Io, class Mul>
struct BackwardScan {
  using L = Layout<Cell>;
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns, kPack = Operand<Mul>::kPack;
  static constexpr int kFirst = L::kFirstGates;

  const Backward<Io>& p;
  const Sequence& s = p.sequence;
  const Weights<Io>& w = p.weights;
  const Extras<Io>& e = p.extras;
  const int64_t J = blocks(w.H, kUnits);  // blocks of units
  const int64_t QP = blocks(w.P, kPanel), QH = blocks(w.H, kPanel);
  const int64_t ldh = padded(max_of(w.H, w.P)), ldp = QP * kPanel;
  const int64_t EP = blocks(w.P, kPack);                                // in elements
  const bool direct = s.N <= kFewRows;                                  // weights are used as they are, not packed
  const bool normed = w.ln_ih, phased = normed || Cell::kResetsBefore;  // a step in phases
  const bool plain = !(Cell::kPeepholes || e.mask || e.zoneout || p.dall_c || s.resets || s.places || s.bptt_steps);

  E* w_hh;                       // [QP, J, first G, U, 64]
  E* w_n;                        // [QP, J, U, 64] the gate whose product waits for the first
  E* w_hr;                       // [QH, P, 64]
  Mul* dgates;                   // [J, N, pre, U]
  Mul* dgx;                      // [J, N, G, U] gradients of W_ih x, where that is normalised; else null
  Mul* dgh;                      // [J, N, G, U] likewise of W_hh h
  Mul* ds;                       // [J, N, 2, U] and of the normalised c, then these times that
  Mul* candidates;               // [J, N, U] c before zoneout, where peepholes look at it; else null
  T* dh;                         // [B, ldh] dL/dh_t on the way to dL/dh_{t-1}
  T* dh_cell;                    // [B, ldh] dL/dh before the projection; == dh without one
  Mul* dh_all;                   // [N, ldp] dL/dh_t of every row, where there is a projection
  T* product;                    // [B, ldh] what comes by way of W_hh, where it is not simply added
  T* around;                     // [B, ldh] what comes by way of r h
  Io* c_0;                       // [J, B, U]
  T* dc;                         // [J, B, U]
  const Io** h_prev;             // [N] where h_{t-1} of each row is
  const Io** operand;            // [N] where what W_hh multiplied is; == h_prev but for masks
  Io* masked;                    // [N, ldh]
  Io* reset_h;                   // [N, ldh] r h
  Io* zeros;                     // [ldh] the state of a sequence that begins anew
  UnitNumbers<Cell, T> numbers;  // where they are asked for
  RowFacts* facts;               // [threads, B]
  BackwardNorms<T> norms;

  Barrier barrier;

  explicit BackwardScan(const Backward<Io>& params) : p(params) {}

  void take(Arena& arena) {
    w_hh = arena.take<E>(direct ? 0 : QP * panel<0, kFirst>());
    w_n = arena.take<E>(direct || !Cell::kResetsBefore ? 0 : QP * panel<0, 1>());
    w_hr = arena.take<E>(w.w_hr ? QH * EP * kPanel : 0);
    dgates = arena.take<Mul>(J * s.N * kRow);
    dgx = normed ? arena.take<Mul>(J * s.N * kColumns) : nullptr;
    dgh = normed ? arena.take<Mul>(J * s.N * kColumns) : nullptr;
    ds = normed && Cell::kHasC ? arena.take<Mul>(J * s.N * 2 * kUnits) : nullptr;
    candidates = e.zoneout && p.dw_ch ? arena.take<Mul>(J * s.N * kUnits) : nullptr;
    dh = arena.take<T>(s.B * ldh);
    dh_cell = w.w_hr ? arena.take<T>(s.B * ldh) : dh;
    dh_all = arena.take<Mul>(w.w_hr ? s.N * ldp : 0);
    product = arena.take<T>(e.mask || phased ? s.B * ldh : 0);
    around = arena.take<T>(Cell::kResetsBefore ? s.B * ldh : 0);
    c_0 = arena.take<Io>(Cell::kHasC ? J * s.B * kUnits : 0);
    dc = arena.take<T>(Cell::kHasC ? J * s.B * kUnits : 0);
    h_prev = arena.take<const Io*>(s.N);
    operand = e.mask ? arena.take<const Io*>(s.N) : h_prev;
    masked = arena.take<Io>(e.mask ? s.N * ldh : 0);
    reset_h = arena.take<Io>(Cell::kResetsBefore ? s.N * ldh : 0);
    zeros = arena.take<Io>(max_of(ldh, J * kUnits));
    numbers.take(arena, J, normed);
    facts = arena.take<RowFacts>(plain && !phased ? 0 : s.threads * s.B);
    if (normed) norms.take(arena, Cell::kPre, kUnits, J, s, Cell::kHasC);
  }

  void run(int index, int threads) {
    prepare(index, threads);
    if (normed) BackwardPhases<BackwardScan>::prepare(*this, index, threads);
    barrier.meet();
    const bool by_rows = splits_rows(s, threads, QP, QP * panel<0, Cell::kGates>() * sizeof(E));
    Worker worker{*this, by_rows, {0, s.B}, {0, J}, {0, QH}, {0, QP}, index, facts + index * s.B};
    if (worker.by_rows) {
      worker.rows = share_rows(s, index, threads);
    } else {  // units and columns of dh are owned together, by whole panels: a thread reads its own dh only
      constexpr int64_t kBlocks = kPanel / kUnits;
      worker.panels_h = share(QH, index, threads);
      worker.panels_p = share(QP, index, threads);
      worker.units = {min_of(worker.panels_h.begin * kBlocks, J), min_of(worker.panels_h.end * kBlocks, J)};
    }
    worker.scan();
  }

  void prepare(int index, int threads) {
    for (int64_t q = index; q < QP && !direct; q += threads) {
      pack_transposed<Mul, kFirst, kUnits>(w.w_hh, w.H, w.P, q, L::kHhFirst.of, L::kFirstHh,
                                           w_hh + q * panel<0, kFirst>());
      if constexpr (Cell::kResetsBefore)
        pack_transposed<Mul, 1, kUnits>(w.w_hh + kFirst * w.H * w.P, w.H, w.P, q, {0}, 0, w_n + q * panel<0, 1>());
    }
    for (int64_t q = index; w.w_hr && q < QH; q += threads) {
      const int64_t columns = w.H - q * kPanel;
      for (int64_t k = 0; k < w.P; k += kPack) {
        const Io* row = w.w_hr + k * w.H + q * kPanel;
        pack_row<Mul>(row, kPack == 2 && k + 1 < w.P ? row + w.H : nullptr, columns,
                      w_hr + q * EP * kPanel + k / kPack * panel_width(columns));
      }
    }
    for (int64_t j = index; j < J && (Cell::kPeepholes || normed); j += threads) numbers.pack(w, j);
    if (index == 0) std::memset(zeros, 0, max_of(ldh, J * kUnits) * sizeof(Io));
    for (int64_t b = index; b < s.B; b += threads) {
      const int64_t from = order_of(s, b);
      convert_row(p.dh_n + from * w.P, p.dh_n ? w.P : 0, dh + b * ldh, ldh);
      for (int64_t j = 0; j < J && Cell::kHasC; ++j) {
        const int64_t first = from * w.H + j * kUnits, n = min_of(kUnits, w.H - j * kUnits);
        const int64_t at = (j * s.B + b) * kUnits;
        convert_row(p.c_0 + first, n, c_0 + at, kUnits);
        convert_row(p.dc_n + first, p.dc_n ? n : 0, dc + at, kUnits);
      }
    }
    for (int64_t t = index; t < s.T; t += threads)
      for (int64_t b = 0; b < s.batch_sizes[t]; ++b) prepare_row(t, b);
  }

  void prepare_row(int64_t t, int64_t b) {
    const int64_t before = row_before(s, t, b), row = s.offsets[t] + b;
    const Io* h = before < 0 ? p.h_0 + order_of(s, b) * w.P : p.y + place_of(s, before) * p.y_stride;
    const bool fresh = resets(s, t, b);
    h_prev[row] = fresh ? zeros : h;
    if (!e.mask) return;
    const Io* mask = e.mask + order_of(s, b) * w.P;
    for (int64_t k = 0; k < w.P; ++k)
      masked[row * ldh + k] = fresh ? Io{} : convert<Io>(convert<T>(h[k]) * convert<T>(mask[k]));
    operand[row] = masked + row * ldh;
  }

  // Elements of a panel of a transposed weight, of its gates from kBegin to kEnd.
  template <int kBegin, int kEnd>
  int64_t panel() const {
    return J * (kEnd - kBegin) * kUnits / kPack * kPanel;
  }

  GateGradients<Mul> of_x() const {
    return normed ? GateGradients<Mul>{dgx, kColumns, 0} : GateGradients<Mul>{dgates, kRow, L::kFirstIh};
  }
  GateGradients<Mul> of_h() const {
    return normed ? GateGradients<Mul>{dgh, kColumns, 0} : GateGradients<Mul>{dgates, kRow, L::kFirstHh};
  }

  // One thread's share: its sequences; its blocks of units and the panels they make; its panels of h.
  struct Worker {
    BackwardScan& f;
    bool by_rows;
    Range rows, units, panels_h, panels_p;
    int index;
    RowFacts* facts;  // [B] of the rows of a step

    void meet() {
      if (!by_rows) f.barrier.meet();
    }

    void scan() {
      for (int64_t k = f.s.T - 1; k >= 0; --k) {
        const int64_t t = step_at(f.s, k), row = f.s.offsets[t] + rows.begin;
        const int64_t count = max_of(min_of(rows.end, f.s.batch_sizes[t]) - rows.begin, 0);
        if (!f.plain || f.phased)
          for (int64_t r = 0; r < count; ++r) facts[r] = RowFacts(f.s, t, rows.begin + r);
        if (f.p.dy) add_dy(row, count);
        if (f.w.w_hr) unproject(row, count);
        if (f.phased) {
          BackwardPhases<BackwardScan>{*this}.step(t, count);
        } else {
          for (int64_t j = units.begin; j < units.end; ++j) {
            if (!f.plain)
              cells_with_options(j, count);
            else if constexpr (Cell::kPeepholes == 0)
              cells(t, j, count);
          }
          meet();
        }
        add_product(row, count);
      }
    }

    // dh of the step before: what W_hh carries there is added to what bypassed it.
    void add_product(int64_t row, int64_t count) {
      T* dh = f.dh + rows.begin * f.ldh;
      const bool cut = f.s.bptt_steps && all_severed(count);
      for (int64_t q = panels_p.begin; q < panels_p.end; ++q) {
        T* out = dh + q * kPanel;
        if (!f.e.mask && !Cell::kResetsBefore) {
          if (!cut) f.times_h(row, count, q, out, f.ldh, out);
        } else {
          T* product = f.product + rows.begin * f.ldh + q * kPanel;
          const T* around = Cell::kResetsBefore ? f.around + rows.begin * f.ldh + q * kPanel : kZeros<T>;
          f.times_h(row, count, q, around, Cell::kResetsBefore ? f.ldh : 0, product);
          for (int64_t r = 0; r < count; ++r) {
            const Io* mask = f.e.mask ? f.e.mask + order_of(f.s, rows.begin + r) * f.w.P + q * kPanel : nullptr;
            for (int64_t k = 0; k < min_of(kPanel, f.w.P - q * kPanel); ++k)
              out[r * f.ldh + k] += mask ? product[r * f.ldh + k] * convert<T>(mask[k]) : product[r * f.ldh + k];
          }
        }
        for (int64_t r = 0; r < count && !f.plain; ++r)
          if (facts[r].severed) std::memset(out + r * f.ldh, 0, kPanel * sizeof(T));
      }
    }

    bool all_severed(int64_t count) const {
      for (int64_t r = 0; r < count; ++r)
        if (!facts[r].severed) return false;
      return true;
    }

    void add_dy(int64_t row, int64_t count) {
      const int64_t begin = panels_p.begin * kPanel, end = min_of(panels_p.end * kPanel, f.w.P);
      for (int64_t r = 0; r < count; ++r) {
        T* dh = f.dh + (rows.begin + r) * f.ldh;
        const Io* dy = f.p.dy + place_of(f.s, row + r) * f.p.y_stride;
        for (int64_t k = begin; k < end; ++k) dh[k] += convert<T>(dy[k]);
      }
    }

    // dh_cell = dh w_hr; dh is kept for the gradient of w_hr and starts anew, with what zoneout left as it was.
    void unproject(int64_t row, int64_t count) {
      const int64_t column = panels_p.begin * kPanel, width = (panels_p.end - panels_p.begin) * kPanel;
      for (int64_t r = 0; r < count; ++r) {
        T* dh = f.dh + (rows.begin + r) * f.ldh + column;
        Mul* all = f.dh_all + (row + r) * f.ldp + column;
        const uint8_t* zone = f.e.zone_h ? f.e.zone_h + place_of(f.s, row + r) * f.w.P + column : nullptr;
        const int64_t n = f.e.zoneout ? min_of(width, f.w.P - column) : 0;
        for (int64_t k = 0; k < n; ++k) {
          const T stays = zone ? T(zone[k]) : T(f.e.zone[0]), whole = dh[k];
          all[k] = convert<Mul>(whole - stays * whole);
          dh[k] = stays * whole;
        }
        convert_row(dh + n, width - n, all + n, width - n);
        std::memset(dh + n, 0, (width - n) * sizeof(T));
      }
      meet();
      const Left<E> left{reinterpret_cast<const E*>(f.dh_all + row * f.ldp), f.ldp / kPack, f.EP};
      for (int64_t q = panels_h.begin; q < panels_h.end; ++q)
        panel_product<E, T>(f.w.H - q * kPanel, count, left, f.w_hr + q * f.EP * kPanel, kZeros<T>, 0,
                            f.dh_cell + rows.begin * f.ldh + q * kPanel, f.ldh);
    }

    void cells(int64_t t, int64_t j, int64_t count) {
      const Sequence& s = f.s;
      const int64_t row = s.offsets[t] + rows.begin, width = f.w.H - j * kUnits;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t b = rows.begin + r, before = row_before(s, t, b);
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
          cell_backward<Cell, V>(d, h_prev, h, cv_prev, cv, dhv, dcv, nullptr, f.e.choice);
          for (int g = 0; g < Cell::kPre; ++g) d[g].store(dgates + g * kUnits + u);
          dhv.store(dh + u);
          if constexpr (Cell::kHasC) dcv.store(dc + u);
        }
      }
    }

    // One sequence's units of a block at a step: where what forward left and the gradients lie.
    struct UnitBlock {
      BackwardScan& f;
      const RowFacts& facts;
      int64_t j, width, row;
      const Io *c_prev, *h_prev;
      T *dc, *dh;
      Mul* dgates;

      UnitBlock(BackwardScan& scan, const RowFacts& facts, int64_t j, int64_t b)
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
    void cells_with_options(int64_t j, int64_t count) {
      for (int64_t r = 0; r < count; ++r) {
        const UnitBlock block(f, facts[r], j, rows.begin + r);
        const Io* gates = f.p.gates + (j * f.p.kept_rows + block.row) * kRow;
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V d[Cell::kPre], peep[Cell::kPeepholes + 1], h_prev(0), h(0), c(0), c_prev(0), dh, dc, dh_stays, dc_stays;
          f.numbers.load_peepholes(j, u, peep);
          block.split(u, dh, dc, dh_stays, dc_stays);
          if (f.p.gates)
            for (int g = 0; g < Cell::kPre; ++g) d[g] = V::load(gates + g * kUnits + u);
          if constexpr (Cell::kHasC) {
            c_prev = V::load(block.c_prev + u);
            // What zoneout left as it was is not what the cell made.
            c = f.e.zoneout ? Cell::candidate(d, c_prev)
                            : V::load(f.p.c + (j * f.p.kept_rows + block.row) * kUnits + u);
            block.put_candidate(u, c);
          } else if constexpr (Cell::kSavesGates) {
            h_prev = V::load(block.h_prev + u, block.width - u);
          } else {
            h = f.p.gates ? d[0] : V::load(f.p.y + block.facts.place * f.p.y_stride + j * kUnits + u, block.width - u);
          }
          cell_backward<Cell, V>(d, h_prev, h, c_prev, c, dh, dc, peep, f.e.choice);
          block.put(u, d, dh + dh_stays, dc + dc_stays);
        }
      }
    }
  };

  // out [count, 64] = init + gradients of W_hh h of the gates that read h, times panel q of W_hh.
  void times_h(int64_t row, int64_t count, int64_t q, const T* init, int64_t ldi, T* out) {
    times_transposed<0, kFirst>(of_h(), row, count, w.w_hh, w.P, q, w_hh, Cell::kHh, init, ldi, out, ldh);
  }

  // out [count, 64] = init + the gradients of gates kBegin.. times panel q of a transposed weight w [G * H, K].
  template <int kBegin, int kEnd>
  void times_transposed(GateGradients<Mul> dgates, int64_t row, int64_t count, const Io* weight, int64_t K, int64_t q,
                        const E* packed, const int (&place)[Cell::kGates], const T* init, int64_t ldi, T* out,
                        int64_t ldo) {
    // Normalised products stand in the order of a product, without the pre-activations that are not of it.
    const auto at = [&](int g) { return place[g] - L::first(place) + dgates.first; };
    const Mul* of = dgates.of + row * dgates.row;
    if (!direct) {
      constexpr int kWidth = (kEnd - kBegin) * kUnits;
      const E* d = reinterpret_cast<const E*>(of + L::template first_of<kBegin, kEnd>(at) * kUnits);
      const Left<E> left{d, dgates.row / kPack, kWidth / kPack, J, s.N * dgates.row / kPack};
      return panel_product<E, T>(K - q * kPanel, count, left, packed + q * panel<kBegin, kEnd>(), init, ldi, out, ldo);
    }
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t n = 0; n < kPanel; ++n) out[m * ldo + n] = init[m * ldi + n];
      for (int64_t j = 0; j < J; ++j) {
        const Mul* d = of + (j * s.N + m) * dgates.row;
        for (int g = kBegin; g < kEnd; ++g)
          direct_columns(min_of(kUnits, w.H - j * kUnits), d + at(g) * kUnits, weight + (g * w.H + j * kUnits) * K, K,
                         q * kPanel, out + m * ldo);
      }
    }
  }
};

}  // namespace
}  // namespace adl
