// How a scan is cut into work: every decision about threads and chunks, with its reason.
#pragma once

#include "common/cpu/work.h"
#include "recurrent/cells/cells.h"
#include "recurrent/cpu/direct.h"
#include "recurrent/params.h"

namespace adl {
namespace {

// From 8 rows a thread on, threads split the batch and never wait for each other. Below, the products
// would have too few rows to hide the loads of the weights: threads split the units, in `parts` blocks, and meet every
// step. So they do when the weights of a step (bytes) are beyond L2: then each thread reads but its share of them.
ADL_INLINE bool splits_rows(const Sequence& s, int threads, int64_t parts, int64_t bytes) {
  const bool far = bytes > (2 << 20) && parts >= 2 * threads && s.B < 128 * threads;
  return threads == 1 || (s.B >= 8 * threads && !far);
}

// Steps whose input projection is done at once: enough rows that weights which come from far away are used some
// hundred times, few enough that their pre-activations are near when the scan comes by.
ADL_INLINE int64_t chunk_steps(const Sequence& s) { return 1 + 255 / max_of(s.B, 1); }

// Rows per task of the gradient of x: as many for the same reason, but some tasks for every thread.
ADL_INLINE int64_t task_rows(const Sequence& s) { return max_of(96, min_of(256, s.N / (4 * s.threads))); }

// How the J blocks of units and the Q panels of columns of a weight gradient become tasks: one for each
// thread, as every task packs all rows of its panels. Units are split first: a task reads its own
// gradients of the gates, the largest of all operands, once for all its panels.
struct Split {
  int64_t J, Q;
  int64_t units, panels;  // per task

  Split(int64_t J, int64_t Q, int64_t threads) : J(J), Q(Q) {
    units = blocks(J, min_of(J, threads));
    panels = max_of(blocks(Q, max_of(min_of(Q, blocks(threads, blocks(J, units))), 1)), 1);
  }

  struct Task {
    Range units, panels;
  };
  int64_t tasks() const { return blocks(J, units) * blocks(Q, panels); }
  Task task(int64_t k) const {
    const int64_t j = k % blocks(J, units) * units, q = k / blocks(J, units) * panels;
    return {{j, min_of(j + units, J)}, {q, min_of(q + panels, Q)}};
  }
};

// Sequences of thread `index`: contiguous, about equally many rows each. Longer sequences come first.
ADL_INLINE Range share_rows(const Sequence& s, int64_t index, int64_t of) {
  Range range{s.B, s.B};
  int64_t before = 0, length = s.T;
  for (int64_t b = 0; b < s.B; ++b) {
    while (length > 0 && s.batch_sizes[length - 1] <= b) --length;
    const int64_t owner = before * of / s.N;
    if (owner >= index) range.begin = min_of(range.begin, b);
    if (owner > index) return {range.begin, b};
    before += length;
  }
  return range;
}

ADL_INLINE int64_t place_of(const Sequence& s, int64_t row) { return s.places ? s.places[row] : row; }
ADL_INLINE int64_t order_of(const Sequence& s, int64_t b) { return s.order ? s.order[b] : b; }

// The row before (t, b) in the order of the scan, -1 at the beginning; and a sequence's last.
ADL_INLINE int64_t row_at(const Sequence& s, int64_t t, int64_t b) {
  return t < 0 || t >= s.T || b >= s.batch_sizes[t] ? -1 : s.offsets[t] + b;
}
ADL_INLINE int64_t row_before(const Sequence& s, int64_t t, int64_t b) {
  return row_at(s, s.reverse ? t + 1 : t - 1, b);
}
ADL_INLINE int64_t last_row(const Sequence& s, int64_t b) {
  int64_t t = 0;
  if (!s.reverse)
    for (t = s.T - 1; s.batch_sizes[t] <= b;) --t;
  return s.offsets[t] + b;
}

// Where step t of a sequence and the one before it in the scan touch: at the later one's row, -1 at the end.
ADL_INLINE int64_t seam(const Sequence& s, int64_t t, int64_t b) { return row_at(s, s.reverse ? t + 1 : t, b); }
// Whether the state is zero before step t, and whether gradients pass from t to the step before.
ADL_INLINE bool resets(const Sequence& s, int64_t t, int64_t b) {
  if (!s.resets) return false;
  const int64_t row = seam(s, t, b);
  return row >= 0 && s.resets[place_of(s, row)];
}
ADL_INLINE bool severs(const Sequence& s, int64_t t, int64_t b) {
  const int64_t later = s.reverse ? t + 1 : t;
  return (s.bptt_steps > 0 && later > 0 && later % s.bptt_steps == 0 && seam(s, t, b) >= 0) || resets(s, t, b);
}

// What every unit of a sequence asks at a step, where more than the cell is asked for.
struct RowFacts {
  int64_t row, before, place, original;  // before: the row of the step before, -1 at the beginning
  bool fresh, fresh_next, severed;  // whether the state is zero before this step and before the next; gradients cut

  RowFacts(const Sequence& s, int64_t t, int64_t b)
      : row(s.offsets[t] + b),
        before(row_before(s, t, b)),
        place(place_of(s, row)),
        original(order_of(s, b)),
        fresh(adl::resets(s, t, b)),
        severed(severs(s, t, b)) {
    const int64_t next = s.reverse ? t - 1 : t + 1;
    fresh_next = s.resets && row_at(s, next, b) >= 0 && adl::resets(s, next, b);
  }
};

ADL_INLINE int64_t step_at(const Sequence& s, int64_t index) { return s.reverse ? s.T - 1 - index : index; }

// The cell by whose loops a cell is computed where more is asked for than torch.nn's own, with what it chooses of it:
// fewer loops to compile.
template <class Cell>
struct Shared {
  using Type = Cell;
  static Choice chosen(const Choice& choice) { return choice; }
};
template <class Cell>
  requires requires { typename Cell::Shared; }
struct Shared<Cell> {
  using Type = typename Cell::Shared;
  static Choice chosen(const Choice& choice) { return Cell::chosen(choice); }
};

// The least of at(g) for some gates.
template <class At>
ADL_INLINE int first_of(int begin, int end, At at) {
  int least = at(begin);
  for (int g = begin + 1; g < end; ++g) least = at(g) < least ? at(g) : least;
  return least;
}

constexpr int kFirstPlace[] = {0};  // of a single gate

// How one cell's gates lie in memory, for loops over its units.
template <class Cell>
struct Layout {
  static constexpr int kGates = Cell::kGates;
  static constexpr int kUnits = unit_block(kGates);
  static constexpr int kColumns = kGates * kUnits;  // of a block of units in a product
  static constexpr int kRow = Cell::kPre * kUnits;  // of a block of units in the gates
  // A product adds to kGates neighbouring pre-activations, from this one on.
  static constexpr int least(const int (&place)[kGates]) {
    int least = place[0];
    for (int g = 1; g < kGates; ++g) least = place[g] < least ? place[g] : least;
    return least;
  }
  static constexpr int kFirstIh = least(Cell::kIh), kFirstHh = least(Cell::kHh);
  // The gates whose products with W_hh read h; those of the others read r h.
  static constexpr int kFirstGates = Cell::kResetsBefore ? kGates - 1 : kGates;
};

// The same as values: what is not in those loops is compiled once for all cells.
struct GateLayout {
  static constexpr int kMost = 4, kMostRow = 2 * kPanel;

  int gates, units, columns, row, first_ih, first_hh, first_gates, peepholes;
  bool has_c, resets_before, saves_gates;
  int ih[kMost], hh[kMost];  // the pre-activation that each gate of a product adds to

  template <class Cell>
  static constexpr GateLayout of() {
    using L = Layout<Cell>;
    static_assert(Cell::kGates <= kMost && L::kRow <= kMostRow, "the gates of a block of units are a panel");
    GateLayout l{
        L::kGates,        L::kUnits,   L::kColumns,         L::kRow,           L::kFirstIh, L::kFirstHh, L::kFirstGates,
        Cell::kPeepholes, Cell::kHasC, Cell::kResetsBefore, Cell::kSavesGates, {},          {}};
    for (int g = 0; g < L::kGates; ++g) l.ih[g] = Cell::kIh[g], l.hh[g] = Cell::kHh[g];
    return l;
  }
};

}  // namespace
}  // namespace adl
