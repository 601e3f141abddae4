// Backpropagation through time of one direction: the scan runs the steps in the opposite order and leaves
// the gradients of all pre-activations; gradients.h makes those of x and of the weights from them. Compiled once for
// all cells, as forward.h.
#pragma once

#include "recurrent/cpu/direct.h"
#include "recurrent/cpu/norm.h"
#include "recurrent/cpu/plan.h"
#include "recurrent/cpu/unit_numbers.h"

namespace adl {
namespace {

template <class Io, class Mul>
struct BackwardWorker;

template <class Io, class Mul>
struct BackwardCell {
  using Worker = BackwardWorker<Io, Mul>;

  GateLayout layout;
  // Block j of the active sequences at step t: the cell alone, null if that is never all; or with what else a call may
  // ask for.
  void (*cells)(Worker&, int64_t t, int64_t j, int64_t count);
  void (*cells_with_options)(Worker&, int64_t j, int64_t count);
  // All of a step in phases, see backward_phases.h.
  void (*step_in_phases)(Worker&, int64_t t, int64_t count);
  Choice (*chosen)(const Choice&);  // as of ForwardCell
};

// What a product with gates reads: their gradients [J, N, row], gate g at its place less the first.
template <class Mul>
struct GateGradients {
  const Mul* of;
  int64_t row;  // numbers between two rows
  int first;    // place of the first of a row
};

// What a backward scan with layer norm holds.
template <class T>
struct BackwardNorms {
  Norm<T>* of_products;  // [3, N] of W_ih x, W_hh h, the second product
  Norm<T>* of_c;         // [threads, B]
  T* made;               // [J, B, pre + 2, U] gates and c of a step, dL/d(normalised c)
  LaneSums<T> sums;      // kinds as below, B

  // Of c and its squares; of e = dL/d(what is normalised), for W_ih x, the products with h and c, plain and times that.
  enum { kSumC, kSquaresC, kOfEX, kOfEH = kOfEX + 2, kOfEC = kOfEH + 2, kKinds = kOfEC + 2 };

  void take(Arena& arena, const GateLayout& l, int64_t J, const Sequence& s) {
    of_products = arena.take<Norm<T>>(3 * s.N);
    of_c = arena.take<Norm<T>>(l.has_c ? s.threads * s.B : 0);
    made = arena.take<T>(l.has_c ? J * s.B * (l.row + 2 * l.units) : 0);
    sums = {arena.take<T>(LaneSums<T>::size(kKinds, J, s.B)), J, s.B};
  }
};

// Number types as in ForwardScan.
template <class Io, class Mul>
struct BackwardScan {
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  static constexpr int kPack = Operand<Mul>::kPack;

  const Backward<Io>& p;
  const BackwardCell<Io, Mul>& cell;
  const GateLayout& l = cell.layout;
  const Sequence& s = p.sequence;
  const Weights<Io>& w = p.weights;
  const Extras<Io>& e = p.extras;
  const Choice choice = cell.chosen(e.choice);
  const int64_t J = blocks(w.H, l.units);  // blocks of units
  const int64_t QP = blocks(w.P, kPanel), QH = blocks(w.H, kPanel);
  const int64_t ldh = padded(max_of(w.H, w.P)), ldp = QP * kPanel;
  const int64_t EP = blocks(w.P, kPack);                            // in elements
  const bool direct = s.N <= kFewRows;                              // weights are used as they are, not packed
  const bool normed = w.ln_ih, phased = normed || l.resets_before;  // a step in phases
  const bool plain = cell.cells && !(e.mask || e.zoneout || p.dall_c || s.resets || s.places || s.bptt_steps);

  E* w_hh;                    // [QP, J, first G, U, 64]
  E* w_n;                     // [QP, J, U, 64] the gate whose product waits for the first
  E* w_hr;                    // [QH, P, 64]
  Mul* dgates;                // [J, N, pre, U]
  Mul* dgx;                   // [J, N, G, U] gradients of W_ih x, where that is normalised; else null
  Mul* dgh;                   // [J, N, G, U] likewise of W_hh h
  Mul* ds;                    // [J, N, 2, U] and of the normalised c, then these times that
  Mul* candidates;            // [J, N, U] c before zoneout, where peepholes look at it; else null
  T* dh;                      // [B, ldh] dL/dh_t on the way to dL/dh_{t-1}
  T* dh_cell;                 // [B, ldh] dL/dh before the projection; == dh without one
  Mul* dh_all;                // [N, ldp] dL/dh_t of every row, where there is a projection
  T* product;                 // [B, ldh] what comes by way of W_hh, where it is not simply added
  T* around;                  // [B, ldh] what comes by way of r h
  Io* c_0;                    // [J, B, U]
  T* dc;                      // [J, B, U]
  const Io** h_prev;          // [N] where h_{t-1} of each row is
  const Io** operand;         // [N] where what W_hh multiplied is; == h_prev but for masks
  Io* masked;                 // [N, ldh]
  Io* reset_h;                // [N, ldh] r h
  Io* zeros;                  // [ldh] the state of a sequence that begins anew
  UnitNumbers<T> numbers{l};  // where they are asked for
  RowFacts* facts;            // [threads, B]
  BackwardNorms<T> norms;

  Barrier barrier;

  BackwardScan(const Backward<Io>& params, const BackwardCell<Io, Mul>& cell) : p(params), cell(cell) {}

  void take(Arena& arena) {
    w_hh = arena.take<E>(direct ? 0 : QP * panel(l.first_gates));
    w_n = arena.take<E>(direct || !l.resets_before ? 0 : QP * panel(1));
    w_hr = arena.take<E>(w.w_hr ? QH * EP * kPanel : 0);
    dgates = arena.take<Mul>(J * s.N * l.row);
    dgx = normed ? arena.take<Mul>(J * s.N * l.columns) : nullptr;
    dgh = normed ? arena.take<Mul>(J * s.N * l.columns) : nullptr;
    ds = normed && l.has_c ? arena.take<Mul>(J * s.N * 2 * l.units) : nullptr;
    candidates = e.zoneout && p.dw_ch ? arena.take<Mul>(J * s.N * l.units) : nullptr;
    dh = arena.take<T>(s.B * ldh);
    dh_cell = w.w_hr ? arena.take<T>(s.B * ldh) : dh;
    dh_all = arena.take<Mul>(w.w_hr ? s.N * ldp : 0);
    product = arena.take<T>(e.mask || phased ? s.B * ldh : 0);
    around = arena.take<T>(l.resets_before ? s.B * ldh : 0);
    c_0 = arena.take<Io>(l.has_c ? J * s.B * l.units : 0);
    dc = arena.take<T>(l.has_c ? J * s.B * l.units : 0);
    h_prev = arena.take<const Io*>(s.N);
    operand = e.mask ? arena.take<const Io*>(s.N) : h_prev;
    masked = arena.take<Io>(e.mask ? s.N * ldh : 0);
    reset_h = arena.take<Io>(l.resets_before ? s.N * ldh : 0);
    zeros = arena.take<Io>(max_of(ldh, J * l.units));
    numbers.take(arena, J, normed, plain && !phased);
    facts = arena.take<RowFacts>(plain && !phased ? 0 : s.threads * s.B);
    if (normed) norms.take(arena, l, J, s);
  }

  void run(int index, int threads) {
    prepare(index, threads);
    if (normed) measure_products(index, threads);
    barrier.meet();
    const bool by_rows = splits_rows(s, threads, QP, QP * panel(l.gates) * sizeof(E));
    BackwardWorker<Io, Mul> worker{*this, by_rows, {0, s.B}, {0, J}, {0, QH}, {0, QP}, index, facts + index * s.B};
    if (worker.by_rows) {
      worker.rows = share_rows(s, index, threads);
    } else {  // units and columns of dh are owned together, by whole panels: a thread reads its own dh only
      const int64_t blocks = kPanel / l.units;
      worker.panels_h = share(QH, index, threads);
      worker.panels_p = share(QP, index, threads);
      worker.units = {min_of(worker.panels_h.begin * blocks, J), min_of(worker.panels_h.end * blocks, J)};
    }
    worker.scan();
  }

  void prepare(int index, int threads) {
    for (int64_t q = index; q < QP && !direct; q += threads) {
      pack_transposed<Mul>(w.w_hh, w.H, w.P, q, l.first_gates, l.units, l.hh, l.first_hh,
                           w_hh + q * panel(l.first_gates));
      if (l.resets_before)
        pack_transposed<Mul>(w.w_hh + l.first_gates * w.H * w.P, w.H, w.P, q, 1, l.units, kFirstPlace, 0,
                             w_n + q * panel(1));
    }
    for (int64_t q = index; w.w_hr && q < QH; q += threads) {
      const int64_t columns = w.H - q * kPanel;
      for (int64_t k = 0; k < w.P; k += kPack) {
        const Io* row = w.w_hr + k * w.H + q * kPanel;
        pack_row<Mul>(row, kPack == 2 && k + 1 < w.P ? row + w.H : nullptr, columns,
                      w_hr + q * EP * kPanel + k / kPack * panel_width(columns));
      }
    }
    for (int64_t j = index; j < J && ((l.peepholes && numbers.peepholes) || normed); j += threads) numbers.pack(w, j);
    if (index == 0) std::memset(zeros, 0, max_of(ldh, J * l.units) * sizeof(Io));
    for (int64_t b = index; b < s.B; b += threads) {
      const int64_t from = order_of(s, b);
      convert_row(p.dh_n + from * w.P, p.dh_n ? w.P : 0, dh + b * ldh, ldh);
      for (int64_t j = 0; j < J && l.has_c; ++j) {
        const int64_t first = from * w.H + j * l.units, n = min_of(l.units, w.H - j * l.units);
        const int64_t at = (j * s.B + b) * l.units;
        convert_row(p.c_0 + first, n, c_0 + at, l.units);
        convert_row(p.dc_n + first, p.dc_n ? n : 0, dc + at, l.units);
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

  // Elements of a panel of a transposed weight, of so many of its gates.
  int64_t panel(int gates) const { return J * gates * l.units / kPack * kPanel; }

  GateGradients<Mul> of_x() const {
    return normed ? GateGradients<Mul>{dgx, l.columns, 0} : GateGradients<Mul>{dgates, l.row, l.first_ih};
  }
  GateGradients<Mul> of_h() const {
    return normed ? GateGradients<Mul>{dgh, l.columns, 0} : GateGradients<Mul>{dgates, l.row, l.first_hh};
  }

  // out [count, 64] = init + gradients of W_hh h of the gates that read h, times panel q of W_hh.
  void times_h(int64_t row, int64_t count, int64_t q, const T* init, int64_t ldi, T* out) {
    times_transposed(0, l.first_gates, of_h(), row, count, w.w_hh, w.P, q, w_hh, l.hh, l.first_hh, init, ldi, out, ldh);
  }

  // out [count, 64] = init + the gradients of gates begin.. times panel q of a transposed weight w [G * H, K].
  void times_transposed(int begin, int end, GateGradients<Mul> dgates, int64_t row, int64_t count, const Io* weight,
                        int64_t K, int64_t q, const E* packed, const int* place, int first, const T* init, int64_t ldi,
                        T* out, int64_t ldo) {
    // Normalised products stand in the order of a product, without the pre-activations that are not of it.
    const auto at = [&](int g) { return place[g] - first + dgates.first; };
    const Mul* of = dgates.of + row * dgates.row;
    if (!direct) {
      const int width = (end - begin) * l.units;
      const E* d = reinterpret_cast<const E*>(of + first_of(begin, end, at) * l.units);
      const Left<E> left{d, dgates.row / kPack, width / kPack, J, s.N * dgates.row / kPack};
      return panel_product<E, T>(K - q * kPanel, count, left, packed + q * panel(end - begin), init, ldi, out, ldo);
    }
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t n = 0; n < kPanel; ++n) out[m * ldo + n] = init[m * ldi + n];
      for (int64_t j = 0; j < J; ++j) {
        const Mul* d = of + (j * s.N + m) * dgates.row;
        for (int g = begin; g < end; ++g)
          direct_columns(min_of(l.units, w.H - j * l.units), d + at(g) * l.units, weight + (g * w.H + j * l.units) * K,
                         K, q * kPanel, out + m * ldo);
      }
    }
  }

  // ---- layer norms

  // What forward kept of a row with layer norm: products [2 G, U].
  const Io* products(int64_t j, int64_t row) const { return p.gates + (j * p.kept_rows + row) * 2 * l.columns; }

  const Norm<T>& norm(NormKind kind, int64_t row) const { return norms.of_products[kind * s.N + row]; }

  // A product of gate g, normalised: of x (side 0) or of h.
  V normed_product(int64_t j, int64_t row, int side, int g, int u) const {
    const int place = side == 0 ? l.ih[g] - l.first_ih : l.gates + l.hh[g] - l.first_hh;
    const Norm<T>& m = norm(side == 0 ? kOfX : g < l.first_gates ? kOfH : kOfSecond, row);
    return (V::load(products(j, row) + place * l.units + u) - V(m.mean)) * V(m.scale);
  }

  // What does not depend on the scan: statistics of the products.
  void measure_products(int index, int threads) {
    const Range rows = share(s.N, index, threads);
    const auto find = [&](NormKind kind, int64_t row, int64_t first, int gates) {
      const int64_t count = gates * w.H;
      const auto units = [&](int64_t j) { return min_of(l.units, w.H - j * l.units); };
      V sum(0), squares(0);
      for (int64_t j = 0; j < J; ++j) sum = sum + lane_sum<T>(products(j, row) + first, gates, l.units, units(j));
      const T mean = sum_of(sum) / T(count);
      for (int64_t j = 0; j < J; ++j)
        squares = squares + lane_squares<T>(products(j, row) + first, gates, l.units, units(j), mean);
      norms.of_products[kind * s.N + row] = {mean, norm_scale(sum_of(squares), count)};
    };
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      find(kOfX, row, 0, l.gates);
      find(kOfH, row, l.columns, l.first_gates);
      if (l.resets_before) find(kOfSecond, row, l.columns + l.first_gates * l.units, 1);
    }
  }
};

// One thread's share: its sequences; its blocks of units and the panels they make; its panels of h.
template <class Io, class Mul>
struct BackwardWorker {
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;

  BackwardScan<Io, Mul>& f;
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
        f.cell.step_in_phases(*this, t, count);
      } else {
        for (int64_t j = units.begin; j < units.end; ++j) {
          if (f.plain)
            f.cell.cells(*this, t, j, count);
          else
            f.cell.cells_with_options(*this, j, count);
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
      if (!f.e.mask && !f.l.resets_before) {
        if (!cut) f.times_h(row, count, q, out, f.ldh, out);
      } else {
        T* product = f.product + rows.begin * f.ldh + q * kPanel;
        const T* around = f.l.resets_before ? f.around + rows.begin * f.ldh + q * kPanel : kZeros<T>;
        f.times_h(row, count, q, around, f.l.resets_before ? f.ldh : 0, product);
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
    const Left<E> left{reinterpret_cast<const E*>(f.dh_all + row * f.ldp), f.ldp / f.kPack, f.EP};
    for (int64_t q = panels_h.begin; q < panels_h.end; ++q)
      panel_product<E, T>(f.w.H - q * kPanel, count, left, f.w_hr + q * f.EP * kPanel, kZeros<T>, 0,
                          f.dh_cell + rows.begin * f.ldh + q * kPanel, f.ldh);
  }
};

}  // namespace
}  // namespace adl
