// The forward scan of one direction: input projection in chunks of steps, then per step one block product
// and the cell, block of units by block of units. Compiled once for all cells: what it calls for a cell, with registers
// full of its units, is a ForwardCell.
#pragma once

#include "recurrent/cpu/direct.h"
#include "recurrent/cpu/norm.h"
#include "recurrent/cpu/plan.h"
#include "recurrent/cpu/unit_numbers.h"

namespace adl {
namespace {

template <class Io, class Mul>
struct ForwardWorker;

template <class Io, class Mul>
struct ForwardCell {
  using Worker = ForwardWorker<Io, Mul>;
  using T = Sum<Mul>;

  GateLayout layout;
  // Block j of the active sequences, from their pre-activations: the cell alone (`row`: of the first sequence), null if
  // that is never all; or with what else a call may ask for.
  void (*cells)(Worker&, int64_t j, int64_t row, int64_t count, const T* pre, Mul* h_next);
  void (*cells_with_options)(Worker&, int64_t j, int64_t count, const T* pre, Mul* h_next);
  // A whole step in phases, see forward_phases.h.
  void (*step_in_phases)(Worker&, int64_t t, int64_t t0, const Mul* h_prev, Mul* h_next);
  Choice (*chosen)(const Choice&);  // of what the call chooses, where loops are shared
};

// Io: the numbers of the tensors; Mul: those that are multiplied. Sums and state are Sum<Mul>.
template <class Io, class Mul>
struct ForwardScan {
  using E = Element<Mul>;
  using T = Sum<Mul>;
  static constexpr int kPack = Operand<Mul>::kPack;

  const Forward<Io>& p;
  const ForwardCell<Io, Mul>& cell;
  const GateLayout& l = cell.layout;
  const Sequence& s = p.sequence;
  const Weights<Io>& w = p.weights;
  const Extras<Io>& e = p.extras;
  const Choice choice = cell.chosen(e.choice);
  const int64_t J = blocks(w.H, l.units);                        // blocks of units
  const int64_t Q = w.w_hr ? blocks(w.P, kPanel) : 0;            // panels of the projection
  const int64_t QN = l.resets_before ? blocks(w.H, kPanel) : 0;  // and of the second product
  const int64_t ldh = padded(max_of(w.H, w.P));
  const int64_t ldp = w.w_hr ? padded(w.P) : 0;
  const int64_t EI = blocks(w.I, kPack), EP = blocks(w.P, kPack), EH = blocks(w.H, kPack);  // sizes in elements
  const bool direct = s.N <= kFewRows && !p.packed;  // weights are used as they are, not packed
  const bool converts = !direct && (!__is_same(Io, Mul) || w.I % kPack || s.places);
  const int64_t gate_rows = min_of(chunk_steps(s), s.T) * s.B;
  const bool normed = w.ln_ih, phased = normed || l.resets_before;  // a step in phases
  const bool plain = cell.cells && !(e.mask || e.zoneout || p.all_c || s.resets || s.places);
  const int64_t first_columns = l.first_gates * l.units;  // of the gates whose products read h

  E* w_ih;  // [J, I, G, U]
  E* w_hh;  // [J, P, first G, U]
  E* w_n;   // [QN, P, 64]
  E* w_hr;  // [Q, H, 64]
  UnitNumbers<T> numbers{l};
  T* gates;            // [J, gate_rows, pre, U]; where products are normalised, these as they are, [J, gate_rows, G, U]
  Mul* x;              // [N, kPack EI], where it cannot be used as it is
  Mul* state[2];       // [B, ldh] h_{t-1} and h_t in turn, as the product wants them
  T* h;                // [J, B, U]
  T* c;                // [J, B, U]
  Mul* h_cell;         // [B, ldh] h before the projection
  T* projected;        // [B, ldp] and after it
  T* gh;               // [J, B, G, U] products with h, before they are normalised
  T* second;           // [B, ldh] the second product
  T* made;             // [J, B, pre + 1, U] gates and c, before it is normalised
  LaneSums<T> sums_x;  // 2 kinds, rows of a chunk: of W_ih x and of its squares
  LaneSums<T> sums;    // 2 x 3 kinds, B: likewise of both products with h and of c
  Norm<T>* norms_x;    // [threads, gate_rows] what is made of them
  Norm<T>* norms;      // [threads, 4, B]
  RowFacts* facts;     // [threads, B]

  Barrier barrier;

  ForwardScan(const Forward<Io>& params, const ForwardCell<Io, Mul>& cell) : p(params), cell(cell) {}

  // Lays out the packed weights; returns their size.
  int64_t take_weights(void* memory) {
    Arena arena{static_cast<char*>(memory)};
    w_ih = arena.take<E>(J * EI * l.columns);
    w_hh = arena.take<E>(J * EP * first_columns);
    w_n = arena.take<E>(QN * EP * kPanel);
    w_hr = arena.take<E>(Q * EH * kPanel);
    return arena.used;
  }

  // Lays out the scratch memory; returns its size.
  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    if (p.packed)
      take_weights(p.packed);
    else if (!direct)
      arena.take<char>(take_weights(scratch));
    numbers.take(arena, J, normed, plain && !phased);
    gates = arena.take<T>(J * gate_rows * l.row);
    x = arena.take<Mul>(converts ? s.N * EI * kPack : 0);
    state[0] = arena.take<Mul>(s.B * ldh);
    state[1] = arena.take<Mul>(s.B * ldh);
    h = arena.take<T>(J * s.B * l.units);
    c = arena.take<T>(l.has_c ? J * s.B * l.units : 0);
    h_cell = arena.take<Mul>(w.w_hr || l.resets_before ? s.B * ldh : 0);
    projected = arena.take<T>(s.B * ldp);
    gh = arena.take<T>(normed ? J * s.B * l.columns : 0);
    second = arena.take<T>(l.resets_before ? s.B * ldh : 0);
    made = arena.take<T>(normed ? J * s.B * (l.row + l.units) : 0);
    sums_x = {arena.take<T>(normed ? LaneSums<T>::size(2, J, gate_rows) : 0), J, gate_rows};
    sums = {arena.take<T>(normed ? LaneSums<T>::size(6, J, s.B) : 0), J, s.B};
    norms_x = arena.take<Norm<T>>(normed ? s.threads * gate_rows : 0);
    norms = arena.take<Norm<T>>(normed ? s.threads * 4 * s.B : 0);
    facts = arena.take<RowFacts>(plain && !phased ? 0 : s.threads * s.B);
    return arena.used;
  }

  void run() {
    in_team(s.threads, barrier, [this](int index, int threads) { run(index, threads); });
  }

  ADL_NOINLINE void run(int index, int threads) {
    prepare(index, threads);
    barrier.meet();
    const bool by_rows = splits_rows(s, threads, J, J * EP * l.columns * sizeof(E));
    ForwardWorker<Io, Mul> worker{*this,
                                  by_rows,
                                  {0, s.B},
                                  {0, J},
                                  {0, Q},
                                  {0, QN},
                                  norms_x + index * gate_rows,
                                  norms + index * 4 * s.B,
                                  facts + index * s.B};
    if (worker.by_rows) {
      worker.rows = share_rows(s, index, threads);
    } else if (l.resets_before) {  // units and panels of the second product are owned together
      worker.panels_n = share(QN, index, threads);
      const int64_t blocks = kPanel / l.units;
      worker.units = {min_of(worker.panels_n.begin * blocks, J), min_of(worker.panels_n.end * blocks, J)};
    } else {
      worker.units = share(J, index, threads);
      worker.panels = share(Q, index, threads);
    }
    worker.scan();
    worker.write_final();
  }

  void prepare(int index, int threads) {
    for (int64_t j = index; j < J; j += threads) numbers.pack(w, j);
    if (!direct && !p.is_packed) pack_weights(index, threads);
    for (int64_t b = index; b < s.B; b += threads) prepare_state(b);
    const Range rows = share(s.N, index, threads);
    for (int64_t row = rows.begin; row < rows.end && converts; ++row)
      convert_row(p.x + place_of(s, row) * w.I, w.I, x + row * EI * kPack, EI * kPack);
  }

  void pack_weights(int index, int threads) {
    for (int64_t j = index; j < J; j += threads) {
      pack_units<Mul>(w.w_ih, w.H, w.I, j, l.gates, l.units, l.ih, l.first_ih, w_ih + j * EI * l.columns);
      pack_units<Mul>(w.w_hh, w.H, w.P, j, l.first_gates, l.units, l.hh, l.first_hh, w_hh + j * EP * first_columns);
    }
    for (int64_t q = index; q < QN; q += threads)
      pack_units<Mul>(w.w_hh + l.first_gates * w.H * w.P, w.H, w.P, q, 1, kPanel, kFirstPlace, 0,
                      w_n + q * EP * kPanel);
    for (int64_t q = index; q < Q; q += threads)
      pack_units<Mul>(w.w_hr, w.P, w.H, q, 1, kPanel, kFirstPlace, 0, w_hr + q * EH * kPanel);
  }

  void prepare_state(int64_t b) {
    const Io* h_0 = p.h_0 + order_of(s, b) * w.P;
    const bool fresh = !s.reverse && resets(s, 0, b);  // in reverse nothing comes before the first step
    for (Mul* to : state) {
      convert_row(h_0, fresh ? 0 : w.P, to + b * ldh, ldh);
      if (e.mask) mask_row(b, h_0, fresh ? 0 : w.P, to + b * ldh);
    }
    for (int64_t j = 0; j < J; ++j) {
      const int64_t first = j * l.units, n = min_of(l.units, w.H - first), at = (j * s.B + b) * l.units;
      // A projected state has another width; no cell that can be projected looks at it.
      convert_row(h_0 + first, w.w_hr ? 0 : n, h + at, l.units);
      if (l.has_c) convert_row(p.c_0 + order_of(s, b) * w.H + first, n, c + at, l.units);
    }
    if (w.w_hr || l.resets_before) convert_row(h_0, 0, h_cell + b * ldh, ldh);
  }

  void mask_row(int64_t b, const Io* from, int64_t n, Mul* to) const {
    const Io* mask = e.mask + order_of(s, b) * w.P;
    for (int64_t k = 0; k < n; ++k) to[k] = convert<Mul>(convert<T>(from[k]) * convert<T>(mask[k]));
  }

  Left<E> x_rows(int64_t row) const {
    if (converts) return {reinterpret_cast<const E*>(x) + row * EI, EI, EI};
    return {reinterpret_cast<const E*>(p.x + row * w.I), EI, EI};
  }
  Left<E> state_rows(const Mul* rows, int64_t K) const { return {reinterpret_cast<const E*>(rows), ldh / kPack, K}; }
};

// One thread's share: its sequences, its blocks of units, its panels of the projection or the second product.
template <class Io, class Mul>
struct ForwardWorker {
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;

  ForwardScan<Io, Mul>& f;
  bool by_rows;
  Range rows, units, panels, panels_n;
  Norm<T>* norms_x;  // [gate_rows] of W_ih x
  Norm<T>* norms;    // [4, B] of (nothing), W_hh h, the second product, c
  RowFacts* facts;   // [B] of the rows of a step

  void scan() {
    const int64_t steps = chunk_steps(f.s);
    for (int64_t first = 0; first < f.s.T; first += steps) {
      const int64_t last = min_of(first + steps, f.s.T) - 1;
      const int64_t t0 = step_at(f.s, f.s.reverse ? last : first), t1 = t0 + last - first;
      for (int64_t j = units.begin; j < units.end; ++j) project_input(j, t0, t1);
      if (f.normed) norms_of_x(t0, t1);
      for (int64_t k = first; k <= last; ++k) {
        const int64_t t = step_at(f.s, k);
        if (f.phased)
          f.cell.step_in_phases(*this, t, t0, f.state[k & 1], f.state[(k + 1) & 1]);
        else
          step(t, t0, f.state[k & 1], f.state[(k + 1) & 1]);
      }
    }
  }

  void meet() {
    if (!by_rows) f.barrier.meet();
  }

  bool whole() const { return rows.begin == 0 && rows.end == f.s.B; }

  // Row of step t in the chunk that starts at t0: without gaps, but where threads split the batch, who may be in
  // different chunks, each sequence has a place of its own.
  int64_t chunk_row(int64_t t, int64_t t0) const {
    return whole() ? f.s.offsets[t] - f.s.offsets[t0] : (t - t0) * f.s.B + rows.begin;
  }
  T* gates(int64_t j, int64_t t, int64_t t0) const { return f.gates + (j * f.gate_rows + chunk_row(t, t0)) * f.l.row; }

  int64_t active(int64_t t) const { return max_of(min_of(rows.end, f.s.batch_sizes[t]) - rows.begin, 0); }

  // gates = W_ih x + b for the steps t0..t1.
  void project_input(int64_t j, int64_t t0, int64_t t1) {
    const int64_t* offsets = f.s.offsets;
    if (whole()) return project_rows(j, offsets[t0], offsets[t1 + 1] - offsets[t0], chunk_row(t0, t0));
    for (int64_t t = t0; t <= t1; ++t) project_rows(j, offsets[t] + rows.begin, active(t), chunk_row(t, t0));
  }

  void project_rows(int64_t j, int64_t row, int64_t count, int64_t at) {
    const T* bias = f.numbers.bias + j * f.l.row;
    T* out = f.gates + (j * f.gate_rows + at) * f.l.row;
    if (f.normed) return project_to_norm(j, row, count, at, out);
    const int from = f.direct ? f.l.row : f.l.first_ih * f.l.units, to = f.direct ? f.l.row : from + f.l.columns;
    for (int64_t r = 0; r < count; ++r) {  // what the product does not write
      for (int k = 0; k < from; k += V::kLanes) V::load(bias + k).store(out + r * f.l.row + k);
      for (int k = to; k < f.l.row; k += V::kLanes) V::load(bias + k).store(out + r * f.l.row + k);
    }
    project(j, row, count, f.l.ih, bias + from, out, out + from, f.l.row);
  }

  // `sums` [count, ld]: where the product is written; `out`: the same as places count, which holds the
  // biases already.
  void project(int64_t j, int64_t row, int64_t count, const int* place, const T* bias, T* out, T* sums, int64_t ld) {
    if (f.direct)
      for (int64_t r = 0; r < count; ++r)
        direct_units<T>(f.w.w_ih, f.w.H, f.w.I, j, f.l.gates, f.l.units, place, 1,
                        f.p.x + place_of(f.s, row + r) * f.w.I, f.w.I, out + r * ld, ld);
    else
      panel_product<E, T>(f.l.columns, count, f.x_rows(row), f.w_ih + j * f.EI * f.l.columns, bias, 0, sums, ld);
  }

  void look_at_rows(int64_t t, int64_t count) {
    for (int64_t r = 0; r < count; ++r) facts[r] = RowFacts(f.s, t, rows.begin + r);
  }

  void step(int64_t t, int64_t t0, const Mul* h_prev, Mul* h_next) {
    const int64_t count = active(t);
    if (!f.plain) look_at_rows(t, count);
    const Mul* h = h_prev + rows.begin * f.ldh;
    for (int64_t j = units.begin; j < units.end && count > 0; ++j) {
      T* pre = gates(j, t, t0);
      T* sums = pre + f.l.first_hh * f.l.units;
      times_h(j, count, h, pre, sums, f.l.row);
      if (f.plain)
        f.cell.cells(*this, j, f.s.offsets[t] + rows.begin, count, pre, h_next);
      else
        f.cell.cells_with_options(*this, j, count, pre, h_next);
    }
    finish_step(t, count, h_next);
  }

  // Adds the product with h of the gates that read it to `sums` [count, ld]; `out`: as places count.
  void times_h(int64_t j, int64_t count, const Mul* h, T* out, T* sums, int64_t ld) {
    if (f.direct)
      direct_units<T>(f.w.w_hh, f.w.H, f.w.P, j, f.l.first_gates, f.l.units, f.l.hh, count, h, f.ldh, out, ld);
    else
      panel_product<E, T>(f.first_columns, count, f.state_rows(h, f.EP), f.w_hh + j * f.EP * f.first_columns, sums, ld,
                          sums, ld);
  }

  void finish_step(int64_t t, int64_t count, Mul* h_next) {
    if (f.w.w_hr) {
      meet();
      if (count > 0) project_output(t, count, h_next);
    }
    meet();
  }

  void project_output(int64_t t, int64_t count, Mul* h_next) {
    const int64_t row = f.s.offsets[t] + rows.begin;
    const bool altered = !f.plain;
    const Mul* h = f.h_cell + rows.begin * f.ldh;
    for (int64_t q = panels.begin; q < panels.end; ++q) {
      const int64_t columns = min_of(kPanel, f.w.P - q * kPanel);
      T* out = f.projected + rows.begin * f.ldp + q * kPanel;
      if (f.direct) {
        for (int64_t r = 0; r < count; ++r) std::memset(out + r * f.ldp, 0, kPanel * sizeof(T));
        direct_units<T>(f.w.w_hr, f.w.P, f.w.H, q, 1, kPanel, kFirstPlace, count, h, f.ldh, out, f.ldp);
      } else {
        product<E, T, kPanel>(count, f.state_rows(h, f.EH), f.w_hr + q * f.EH * kPanel, kZeros<T>, 0, out, f.ldp);
      }
      for (int64_t r = 0; r < count; ++r) {
        Mul* next = h_next + (rows.begin + r) * f.ldh + q * kPanel;
        if (altered) alter_output(facts[r], q * kPanel, columns, out + r * f.ldp);
        Io* y = f.p.y + place_of(f.s, row + r) * f.p.y_stride + q * kPanel;
        convert_row(out + r * f.ldp, columns, y, columns);
        if (altered) alter_next(facts[r], q * kPanel, columns, out + r * f.ldp);
        convert_row(out + r * f.ldp, columns, next, kPanel);
      }
    }
  }

  // Zoneout of a projected h, and what the next product sees of it.
  void alter_output(const RowFacts& at, int64_t first, int64_t count, T* h) {
    if (!f.e.zoneout) return;
    const Io* old = at.before < 0 ? f.p.h_0 + at.original * f.w.P : f.p.y + place_of(f.s, at.before) * f.p.y_stride;
    for (int64_t k = 0; k < count; ++k) {
      const T stays = f.e.zone_h ? T(f.e.zone_h[at.place * f.w.P + first + k]) : T(f.e.zone[0]);
      h[k] = stays * (at.fresh ? T(0) : convert<T>(old[first + k])) + (T(1) - stays) * h[k];
    }
  }
  void alter_next(const RowFacts& at, int64_t first, int64_t count, T* h) {
    const Io* mask = f.e.mask ? f.e.mask + at.original * f.w.P + first : nullptr;
    for (int64_t k = 0; k < count; ++k) h[k] = at.fresh_next ? T(0) : mask ? h[k] * convert<T>(mask[k]) : h[k];
  }

  // Every sequence's last output and last c: no step after its end has touched them.
  void write_final() {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      const int64_t place = place_of(f.s, last_row(f.s, b)), to = order_of(f.s, b);
      const int64_t first = f.w.w_hr ? panels.begin * kPanel : units.begin * f.l.units;
      const int64_t last = min_of(f.w.w_hr ? panels.end * kPanel : units.end * f.l.units, f.w.P);
      convert_row(f.p.y + place * f.p.y_stride + first, last - first, f.p.h_n + to * f.w.P + first, last - first);
      for (int64_t j = units.begin; j < units.end && f.l.has_c; ++j) {
        const int64_t n = min_of(f.l.units, f.w.H - j * f.l.units);
        convert_row(f.c + (j * f.s.B + b) * f.l.units, n, f.p.c_n + to * f.w.H + j * f.l.units, n);
      }
    }
  }

  // ---- layer norms: products are kept as they are, and their rows measured

  int64_t units_of(int64_t j) const { return min_of(f.l.units, f.w.H - j * f.l.units); }

  // W_ih x of some rows as it is, for backward and to be normalised.
  void project_to_norm(int64_t j, int64_t row, int64_t count, int64_t at, T* out) {
    if (f.direct) std::memset(out, 0, count * f.l.row * sizeof(T));
    project(j, row, count, f.l.ih, kZeros<T>, out - f.l.first_ih * f.l.units, out, f.l.row);
    for (int64_t r = 0; r < count; ++r) {
      f.sums_x.put(0, j, at + r, lane_sum<T>(out + r * f.l.row, f.l.gates, f.l.units, units_of(j)));
      keep(j, row + r, 0, out + r * f.l.row, f.l.columns);
    }
  }

  // f(row in the chunk, how many) for the rows of this thread in steps t0..t1.
  template <class Body>
  void each_chunk_row(int64_t t0, int64_t t1, Body body) {
    if (whole()) return body(chunk_row(t0, t0), f.s.offsets[t1 + 1] - f.s.offsets[t0]);
    for (int64_t t = t0; t <= t1; ++t) body(chunk_row(t, t0), active(t));
  }

  void norms_of_x(int64_t t0, int64_t t1) {
    const int64_t count = f.l.gates * f.w.H;
    meet();
    each_chunk_row(t0, t1, [&](int64_t at, int64_t n) {
      for (int64_t r = at; r < at + n; ++r) {
        norms_x[r].mean = f.sums_x.total(0, r) / T(count);
        for (int64_t j = units.begin; j < units.end; ++j)
          f.sums_x.put(1, j, r,
                       lane_squares<T>(f.gates + (j * f.gate_rows + r) * f.l.row, f.l.gates, f.l.units, units_of(j),
                                       norms_x[r].mean));
      }
    });
    meet();
    each_chunk_row(t0, t1, [&](int64_t at, int64_t n) {
      for (int64_t r = at; r < at + n; ++r) norms_x[r].scale = norm_scale(f.sums_x.total(1, r), count);
    });
  }

  // Mean and scale of rows whose lane sums are put; values(j, b) [gates, U].
  template <class Values>
  ADL_INLINE void find_norms(NormKind kind, int64_t active, int gates, int units_of_block, Values values) {
    const int64_t count = gates * f.w.H, sums = 2 * (kind - kOfH), end = rows.begin + active;
    meet();
    for (int64_t b = rows.begin; b < end; ++b) {
      T& mean = norms[kind * f.s.B + b].mean;
      mean = f.sums.total(sums, b) / T(count);
      for (int64_t j = units.begin; j < units.end; ++j)
        f.sums.put(sums + 1, j, b, lane_squares<T>(values(j, b), gates, units_of_block, units_of(j), mean));
    }
    meet();
    for (int64_t b = rows.begin; b < end; ++b)
      norms[kind * f.s.B + b].scale = norm_scale(f.sums.total(sums + 1, b), count);
  }
  ADL_INLINE void put_sum(NormKind kind, int64_t j, int64_t b, const T* values, int gates, int units_of_block) {
    f.sums.put(2 * (kind - kOfH), j, b, lane_sum<T>(values, gates, units_of_block, units_of(j)));
  }

  // Products [gates, U] of a row, from column `first` on of what backward finds of it.
  void keep(int64_t j, int64_t row, int64_t first, const T* products, int64_t count) {
    if (f.p.gates) convert_row(products, count, f.p.gates + (j * f.s.N + row) * 2 * f.l.columns + first, count);
  }
};

}  // namespace
}  // namespace adl
