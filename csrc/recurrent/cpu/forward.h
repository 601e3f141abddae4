// The forward scan of one direction: input projection in chunks of steps, then per step one block product
// and the cell, block of units by block of units.
#pragma once

#include "recurrent/cpu/forward_phases.h"
#include "recurrent/cpu/plan.h"
#include "recurrent/cpu/unit_numbers.h"

namespace adl {
namespace {

// Io: the numbers of the tensors; Mul: those that are multiplied. Sums and state are Sum<Mul>.
template <class Cell, class Io, class Mul>
struct ForwardScan {
  using L = Layout<Cell>;
  using E = Element<Mul>;
  using T = Sum<Mul>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kColumns = L::kColumns, kPack = Operand<Mul>::kPack;
  // Gates whose products read h; those of the others wait for them.
  static constexpr int kFirst = L::kFirstGates, kFirstColumns = kFirst * kUnits;

  const Forward<Io>& p;
  const Sequence& s = p.sequence;
  const Weights<Io>& w = p.weights;
  const Extras<Io>& e = p.extras;
  const int64_t J = blocks(w.H, kUnits);                             // blocks of units
  const int64_t Q = w.w_hr ? blocks(w.P, kPanel) : 0;                // panels of the projection
  const int64_t QN = Cell::kResetsBefore ? blocks(w.H, kPanel) : 0;  // and of the second product
  const int64_t ldh = padded(max_of(w.H, w.P));
  const int64_t ldp = w.w_hr ? padded(w.P) : 0;
  const int64_t EI = blocks(w.I, kPack), EP = blocks(w.P, kPack), EH = blocks(w.H, kPack);  // sizes in elements
  const bool direct = s.N <= kFewRows;  // weights are used as they are, not packed
  const bool converts = !direct && (!__is_same(Io, Mul) || w.I % kPack || s.places);
  const int64_t gate_rows = min_of(chunk_steps(s), s.T) * s.B;
  const bool normed = w.ln_ih, phased = normed || Cell::kResetsBefore;  // a step in phases, see phases.h
  const bool plain = !(Cell::kPeepholes || e.mask || e.zoneout || p.all_c || s.resets || s.places);

  E* w_ih;  // [J, I, G, U]
  E* w_hh;  // [J, P, first G, U]
  E* w_n;   // [QN, P, 64]
  E* w_hr;  // [Q, H, 64]
  UnitNumbers<Cell, T> numbers;
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

  explicit ForwardScan(const Forward<Io>& params) : p(params) {}

  // Lays out the scratch memory; returns its size.
  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    w_ih = arena.take<E>(direct ? 0 : J * EI * kColumns);
    w_hh = arena.take<E>(direct ? 0 : J * EP * kFirstColumns);
    w_n = arena.take<E>(direct ? 0 : QN * EP * kPanel);
    w_hr = arena.take<E>(direct ? 0 : Q * EH * kPanel);
    numbers.take(arena, J, normed);
    gates = arena.take<T>(J * gate_rows * kRow);
    x = arena.take<Mul>(converts ? s.N * EI * kPack : 0);
    state[0] = arena.take<Mul>(s.B * ldh);
    state[1] = arena.take<Mul>(s.B * ldh);
    h = arena.take<T>(J * s.B * kUnits);
    c = arena.take<T>(Cell::kHasC ? J * s.B * kUnits : 0);
    h_cell = arena.take<Mul>(w.w_hr || Cell::kResetsBefore ? s.B * ldh : 0);
    projected = arena.take<T>(s.B * ldp);
    gh = arena.take<T>(normed ? J * s.B * kColumns : 0);
    second = arena.take<T>(Cell::kResetsBefore ? s.B * ldh : 0);
    made = arena.take<T>(normed ? J * s.B * (kRow + kUnits) : 0);
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
    const bool by_rows = splits_rows(s, threads, J, J * EP * kColumns * sizeof(E));
    Worker worker{*this,
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
    } else if (Cell::kResetsBefore) {  // units and panels of the second product are owned together
      worker.panels_n = share(QN, index, threads);
      constexpr int64_t kBlocks = kPanel / kUnits;
      worker.units = {min_of(worker.panels_n.begin * kBlocks, J), min_of(worker.panels_n.end * kBlocks, J)};
    } else {
      worker.units = share(J, index, threads);
      worker.panels = share(Q, index, threads);
    }
    worker.scan();
    worker.write_final();
  }

  void prepare(int index, int threads) {
    for (int64_t j = index; j < J; j += threads) numbers.pack(w, j);
    for (int64_t j = index; j < J && !direct; j += threads) {
      pack_units<Mul, Cell::kGates, kUnits>(w.w_ih, w.H, w.I, j, Cell::kIh, L::kFirstIh, w_ih + j * EI * kColumns);
      pack_units<Mul, kFirst, kUnits>(w.w_hh, w.H, w.P, j, L::kHhFirst.of, L::kFirstHh, w_hh + j * EP * kFirstColumns);
    }
    for (int64_t q = index; q < QN && !direct; q += threads)
      pack_units<Mul, 1, kPanel>(w.w_hh + kFirst * w.H * w.P, w.H, w.P, q, {0}, 0, w_n + q * EP * kPanel);
    for (int64_t q = index; q < Q && !direct; q += threads)
      pack_units<Mul, 1, kPanel>(w.w_hr, w.P, w.H, q, {0}, 0, w_hr + q * EH * kPanel);
    for (int64_t b = index; b < s.B; b += threads) prepare_state(b);
    const Range rows = share(s.N, index, threads);
    for (int64_t row = rows.begin; row < rows.end && converts; ++row)
      convert_row(p.x + place_of(s, row) * w.I, w.I, x + row * EI * kPack, EI * kPack);
  }

  void prepare_state(int64_t b) {
    const Io* h_0 = p.h_0 + order_of(s, b) * w.P;
    const bool fresh = !s.reverse && resets(s, 0, b);  // in reverse nothing comes before the first step
    for (Mul* to : state) {
      convert_row(h_0, fresh ? 0 : w.P, to + b * ldh, ldh);
      if (e.mask) mask_row(b, h_0, fresh ? 0 : w.P, to + b * ldh);
    }
    for (int64_t j = 0; j < J; ++j) {
      const int64_t first = j * kUnits, n = min_of(kUnits, w.H - first), at = (j * s.B + b) * kUnits;
      // A projected state has another width; no cell that can be projected looks at it.
      convert_row(h_0 + first, w.w_hr ? 0 : n, h + at, kUnits);
      if constexpr (Cell::kHasC) convert_row(p.c_0 + order_of(s, b) * w.H + first, n, c + at, kUnits);
    }
    if (w.w_hr || Cell::kResetsBefore) convert_row(h_0, 0, h_cell + b * ldh, ldh);
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

  // One thread's share: its sequences, its blocks of units, its panels of the projection or the second product.
  struct Worker {
    ForwardScan& f;
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
        if (f.normed) ForwardPhases<ForwardScan>{*this}.norms_of_x(t0, t1);
        for (int64_t k = first; k <= last; ++k) {
          const int64_t t = step_at(f.s, k);
          if (f.phased)
            ForwardPhases<ForwardScan>{*this}.step(t, t0, f.state[k & 1], f.state[(k + 1) & 1]);
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
    T* gates(int64_t j, int64_t t, int64_t t0) const { return f.gates + (j * f.gate_rows + chunk_row(t, t0)) * kRow; }

    int64_t active(int64_t t) const { return max_of(min_of(rows.end, f.s.batch_sizes[t]) - rows.begin, 0); }

    // gates = W_ih x + b for the steps t0..t1.
    void project_input(int64_t j, int64_t t0, int64_t t1) {
      const int64_t* offsets = f.s.offsets;
      if (whole()) return project_rows(j, offsets[t0], offsets[t1 + 1] - offsets[t0], chunk_row(t0, t0));
      for (int64_t t = t0; t <= t1; ++t) project_rows(j, offsets[t] + rows.begin, active(t), chunk_row(t, t0));
    }

    void project_rows(int64_t j, int64_t row, int64_t count, int64_t at) {
      const T* bias = f.numbers.bias + j * kRow;
      T* out = f.gates + (j * f.gate_rows + at) * kRow;
      if (f.normed) return ForwardPhases<ForwardScan>{*this}.project(j, row, count, at, out);
      const int from = f.direct ? kRow : L::kFirstIh * kUnits, to = f.direct ? kRow : from + kColumns;
      for (int64_t r = 0; r < count; ++r) {  // what the product does not write
        for (int k = 0; k < from; ++k) out[r * kRow + k] = bias[k];
        for (int k = to; k < kRow; ++k) out[r * kRow + k] = bias[k];
      }
      project(j, row, count, Cell::kIh, bias + from, out, out + from, kRow);
    }

    // `sums` [count, ld]: where the product is written; `out`: the same as places count, which holds the biases
    // already.
    void project(int64_t j, int64_t row, int64_t count, const int (&place)[Cell::kGates], const T* bias, T* out,
                 T* sums, int64_t ld) {
      if (f.direct)
        for (int64_t r = 0; r < count; ++r)
          direct_units<T, Cell::kGates, kUnits>(f.w.w_ih, f.w.H, f.w.I, j, place, 1,
                                                f.p.x + place_of(f.s, row + r) * f.w.I, f.w.I, out + r * ld, ld);
      else
        product<E, T, kColumns>(count, f.x_rows(row), f.w_ih + j * f.EI * kColumns, bias, 0, sums, ld);
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
        T* sums = pre + L::kFirstHh * kUnits;
        times_h(j, count, h, pre, sums, kRow);
        if (!f.plain)
          cells_with_options(j, count, pre, h_next);
        else if constexpr (Cell::kPeepholes == 0)
          cells(j, f.s.offsets[t] + rows.begin, count, pre, h_next);
      }
      finish_step(t, count, h_next);
    }

    // Adds the product with h of the gates that read it to `sums` [count, ld]; `out`: as places count.
    void times_h(int64_t j, int64_t count, const Mul* h, T* out, T* sums, int64_t ld) {
      if (f.direct)
        direct_units<T, kFirst, kUnits>(f.w.w_hh, f.w.H, f.w.P, j, L::kHhFirst.of, count, h, f.ldh, out, ld);
      else
        product<E, T, kFirstColumns>(count, f.state_rows(h, f.EP), f.w_hh + j * f.EP * kFirstColumns, sums, ld, sums,
                                     ld);
    }

    void finish_step(int64_t t, int64_t count, Mul* h_next) {
      if (f.w.w_hr) {
        meet();
        if (count > 0) project_output(t, count, h_next);
      }
      meet();
    }

    // Block j of `count` sequences, whose rows begin at `row`.
    void cells(int64_t j, int64_t row, int64_t count, const T* pre, Mul* h_next) {
      const int64_t width = f.w.H - j * kUnits, at = (j * f.s.B + rows.begin) * kUnits;
      Mul* next = (f.w.w_hr ? f.h_cell : h_next) + rows.begin * f.ldh + j * kUnits;
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
          cell_forward<Cell, V>(v, hv, cv, nullptr, f.e.choice);
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
      ForwardScan& f;
      const RowFacts& facts;
      int64_t j, width;
      T *h, *c;
      Mul* next;
      Io *saved, *saved_c;

      UnitBlock(ForwardScan& scan, const RowFacts& facts, int64_t j, int64_t b, Mul* h_next)
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
    void cells_with_options(int64_t j, int64_t count, const T* pre, Mul* h_next) {
      for (int64_t r = 0; r < count; ++r) {
        const UnitBlock block(f, facts[r], j, rows.begin + r, h_next);
        for (int u = 0; u < kUnits; u += V::kLanes) {
          V v[Cell::kPre], peep[Cell::kPeepholes + 1];
          for (int g = 0; g < Cell::kPre; ++g) v[g] = V::load(pre + r * kRow + g * kUnits + u);
          f.numbers.load_peepholes(j, u, peep);
          V h = block.h_before(u), c = Cell::kHasC ? block.c_before(u) : V(0);
          cell_forward<Cell, V>(v, h, c, peep, f.e.choice);
          block.put_gates(u, v);
          if constexpr (Cell::kHasC) block.put_c(u, c);
          block.put_h(u, h);
        }
      }
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
          direct_units<T, 1, kPanel>(f.w.w_hr, f.w.P, f.w.H, q, {0}, count, h, f.ldh, out, f.ldp);
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
        const int64_t first = f.w.w_hr ? panels.begin * kPanel : units.begin * kUnits;
        const int64_t last = min_of(f.w.w_hr ? panels.end * kPanel : units.end * kUnits, f.w.P);
        convert_row(f.p.y + place * f.p.y_stride + first, last - first, f.p.h_n + to * f.w.P + first, last - first);
        for (int64_t j = units.begin; j < units.end && Cell::kHasC; ++j) {
          const int64_t n = min_of(kUnits, f.w.H - j * kUnits);
          convert_row(f.c + (j * f.s.B + b) * kUnits, n, f.p.c_n + to * f.w.H + j * kUnits, n);
        }
      }
    }
  };
};

}  // namespace
}  // namespace adl
