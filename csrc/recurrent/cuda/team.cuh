// Teams of blocks that hold W_hh of a direction together and scan some sequences: a block has some units with all their
// gates. At every step each needs the states of all units, in backward the gradients of all gates: how these travel is
// the Exchange, see exchange.cuh.
//
// A step: receive, multiply, add up what the warps summed over different states, the cell, send. The thread that owns a
// word of a sequence's state, one unit or two, has it in registers all the time.
#pragma once

#include "recurrent/cuda/exchange.cuh"
#include "recurrent/cuda/weight_slice.cuh"

namespace adl {

// The place of a block in its team, and of a thread in the block.
template <class Tile>
struct Member {
  static constexpr int kUnits = word_units(Tile::kArithmetic);  // of a thread

  const Steps& s;
  int64_t first, b;  // the first sequence of the team, the thread's own
  int rows;          // sequences of the team
  int column, at;    // the thread's sequence in the team and its first unit in the block
  unsigned u;        // its first unit
  int units;         // of its word that exist; 0: it owns nothing
  int64_t length;    // steps 0 .. length - 1 have sequences of the team

  __device__ __forceinline__ Member(const Steps& s, int64_t H, const TeamShape& shape, int64_t first_team) : s(s) {
    first = (first_team + blockIdx.y) * shape.rows;
    rows = static_cast<int>(s.B - first < shape.rows ? s.B - first : shape.rows);
    const int words = shape.units / kUnits;
    column = threadIdx.x / words, at = threadIdx.x % words * kUnits;
    b = first + column, u = blockIdx.x * shape.units + at;
    units = column >= rows || u >= H ? 0 : u + kUnits <= H ? kUnits : static_cast<int>(H - u);
    length = s.T;
    if (s.offsets) {  // the first step without any
      int64_t low = 0;
      for (int64_t high = s.T; low < high;) {
        const int64_t middle = (low + high) / 2;
        count_of(s, middle) > first ? low = middle + 1 : high = middle;
      }
      length = low;
    }
    if (!s.lengths) return;
    int64_t longest = 0;
    for (int k = 0; k < rows; ++k) longest = s.lengths[first + k] > longest ? s.lengths[first + k] : longest;
    length = longest < length ? longest : length;
  }

  // Whether the team scans the n-th step.
  __device__ __forceinline__ bool runs(int64_t n) const { return n >= s.begin && n < s.end && step_of(s, n) < length; }
  // Sequences of the team that have a row at step t.
  __device__ __forceinline__ int rows_of(int64_t t) const {
    const int64_t count = count_of(s, t) - first;
    return static_cast<int>(count < 0 ? 0 : count < rows ? count : rows);
  }
  // Whether there is a row for the thread's sequence.
  __device__ __forceinline__ bool has_row(int64_t t) const { return units > 0 && b < count_of(s, t); }
};

// Where a warp of a slice leaves its sums of 16 rows by sequences n .. n + 7: [slices, sequences, rows].
__device__ __forceinline__ void put_sums(float* sums, const TeamLayout& layout, int slice, int down, int n,
                                         const float (&c)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float* to = sums + slice * layout.sums_slice + (n + 2 * t) * layout.sums_stride + down * kTile + 2 * g;
  *reinterpret_cast<float2*>(to) = make_float2(c[0], c[2]);
  *reinterpret_cast<float2*>(to + layout.sums_stride) = make_float2(c[1], c[3]);
}

// Adds to `to` what the warps of each slice have summed for a thread's word, of each of some gates; `from` at the first
// slice's, the next gate's so many numbers on.
template <int kGates, int n>
__device__ __forceinline__ void add_slices(float (&to)[kGates][n], const float* from, int gate, int slices, int apart) {
#pragma unroll(kGates == 1 ? 8 : 2)  // Backward adds up what each block of a cluster sent: few numbers, many slices.
  for (int k = 0; k < slices; ++k, from += apart) {
#pragma unroll
    for (int q = 0; q < kGates; ++q) {
      const Word<float, n> one = *reinterpret_cast<const Word<float, n>*>(from + q * gate);
#pragma unroll
      for (int i = 0; i < n; ++i) to[q][i] += one.of[i];
    }
  }
}

constexpr int kPrefetched = 4;  // steps ahead

// A step as the owner of a word sees it: what takes long to find out, found out while there is time.
struct Turn {
  int64_t row = 0;
  bool has_row = false, active = false, fresh = false, cut = false;
};

template <class Cell, class T, class Tile, class Exchange>
__global__ void __launch_bounds__(kTeamThreads, 1)
    team_forward(const __grid_constant__ Directions<ForwardScan<T>> directions, const TeamShape shape,
                 int64_t first_team, unsigned most_polls) {
  constexpr int kUnits = word_units(Tile::kArithmetic), kGates = Cell::kGates, kPre = Cell::kPre;
  const ForwardScan<T>& s = directions.of[blockIdx.z];
  const Member<Tile> me(s.steps, s.H, shape, first_team);
  ADL_DYNAMIC_SHARED(shared);
  const TeamLayout layout =
      team_layout(TeamProduct::kForward, shape, s.H, kGates, Tile::kArithmetic, Exchange::kBuffers);
  const Share<Cell, T, Tile, TeamProduct::kForward> w(s.w_hh, s.H, shape, reinterpret_cast<uint4*>(shared),
                                                      reinterpret_cast<uint4*>(shared + layout.spilled));
  Exchange exchange(shared, layout, shape, s.H, s.mail_stride, me.rows, most_polls);
  if (exchange.is_idle()) {
    if (me.runs(s.steps.begin) || me.runs(s.steps.end - 1)) exchange.meet();
    return;
  }
  float* const sums = reinterpret_cast<float*>(shared + layout.sums);
  const float* const own_sums = sums + me.column * layout.sums_stride + me.at;

  float h[kUnits] = {}, c[kUnits] = {}, bias[kUnits][kPre], gx[kUnits][kGates] = {}, next_gx[kUnits][kGates] = {};
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    load_bias<Cell>(s.b_ih, s.b_hh, s.H, me.u + i, bias[i]);
    if (i < me.units) load_state<Cell>(s, s.steps.begin == 0, me.b * s.H + me.u + i, h[i], c[i]);
  }
  const auto load = [&](int64_t t, Turn& turn, float (&to)[kUnits][kGates]) {
    turn = Turn();
    if (!me.has_row(t)) return;
    const At at(s.steps, t, me.b);
    turn = {at.row, true, at.active, at.fresh, at.cut};
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
      if (i < me.units) load_gx<Cell>(s, at.row, 0, me.u + i, to[i]);
  };
  // The state before step t of the team's sequence `column`.
  const auto announce = [&](int64_t t, int column) {
    const At at(s.steps, t, me.first + column);
    if (at.fresh)
      exchange.announce(column, nullptr, false);
    else if (at.previous < 0)
      exchange.announce(column, s.h_0 + at.b * s.H, false);
    else
      exchange.announce(column, s.mail + at.previous * s.mail_stride, true);
  };

  bool begun = false;
  Turn turn, next_turn;
  load(step_of(s.steps, s.steps.begin), turn, gx);
  for (int64_t n = s.steps.begin; n < s.steps.end; ++n) {
    const int64_t t = step_of(s.steps, n), next = step_of(s.steps, n + 1);
    const bool runs = me.runs(n), more = me.runs(n + 1);
    if (n + 1 < s.steps.end) load(next, next_turn, next_gx);
    if (runs) {
      if (!begun && threadIdx.x < unsigned(me.rows)) announce(t, threadIdx.x);
      begun = true;
      const typename Tile::State* states = exchange.receive();
      if (Exchange::kPolls && more && threadIdx.x < unsigned(me.rows)) announce(next, threadIdx.x);
      if (!exchange.late())
        w.multiply(states, layout.stride, me.rows,
                   [&](int slice, int down, int n, const float (&c)[4]) { put_sums(sums, layout, slice, down, n, c); });
      __syncthreads();
    }

    float y[kUnits] = {}, kept_c[kUnits] = {}, gates[kPre][kUnits] = {};
    if (turn.active) {
      float gh[kGates][kUnits] = {};
      add_slices(gh, own_sums, shape.units, shape.slices, layout.sums_slice);
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (i >= me.units) continue;
        if (turn.fresh) h[i] = c[i] = 0;
        float gh_i[kGates], pre[kPre];
#pragma unroll
        for (int q = 0; q < kGates; ++q) gh_i[q] = exchange.late() ? kNaN : gh[q][i];
        forward_cell<Cell>(s, me.u + i, bias[i], gx[i], gh_i, h[i], c[i], pre);
        y[i] = h[i], kept_c[i] = c[i];
#pragma unroll
        for (int p = 0; p < kPre; ++p) gates[p][i] = pre[p];
      }
    }
    if (runs && more) {
      float seen[kUnits];
#pragma unroll
      for (int i = 0; i < kUnits; ++i) seen[i] = next_turn.fresh ? 0 : h[i];
      exchange.send(me.column < me.rows, me.column, me.u, state_word<Tile>(seen));
    }
    if (turn.has_row) {
      const int64_t row = turn.row;
      exchange.store(s.y + row * s.y_stride + me.u, s.mail + row * s.mail_stride + me.u, y, me.units);
      if (Cell::kHasC && s.kept_c) store_word(s.kept_c + row * s.H + me.u, kept_c, me.units);
      if (Cell::kSavesGates && s.gates)
#pragma unroll
        for (int p = 0; p < kPre; ++p) store_word(s.gates + row * (kPre * s.H) + p * s.H + me.u, gates[p], me.units);
    }
    if (n + kPrefetched < s.steps.end) {
      const int64_t ahead = step_of(s.steps, n + kPrefetched);
      exchange.prefetch(s.mail + (row_of(s.steps, ahead) + me.first) * s.mail_stride, s.mail_stride, me.rows_of(ahead));
    }
    turn = next_turn;
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
#pragma unroll
      for (int q = 0; q < kGates; ++q) gx[i][q] = next_gx[i][q];
  }

#pragma unroll
  for (int i = 0; i < kUnits; ++i)
    if (i < me.units) store_state<Cell>(s, s.steps.end == s.steps.T, me.b * s.H + me.u + i, h[i], c[i]);
  if (begun) exchange.part();
}

}  // namespace adl
