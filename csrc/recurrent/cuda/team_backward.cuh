// The scans of teams of blocks backward: a grid gathers the gradients of all gates, a cluster scatters sums of dL/dh.
#pragma once

#include "recurrent/cuda/team.cuh"

namespace adl {

// What a thread knows of its units.
template <class Cell, class T, class Tile>
struct BackwardUnits {
  static constexpr int kUnits = word_units(Tile::kArithmetic), kPre = Cell::kPre;

  const BackwardScan<T>& s;
  const Member<Tile>& me;
  float dh[kUnits] = {}, dc[kUnits] = {};
  float gates[kPre][kUnits];  // gradients of the pre-activations of the latest step; zero if there was none
  bool cut = false;           // between the latest step and the next one
  Kept<Cell, T> kept[kUnits] = {}, next[kUnits] = {};
  Turn turn, next_turn;

  __device__ __forceinline__ BackwardUnits(const BackwardScan<T>& s, const Member<Tile>& me) : s(s), me(me) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
      if (i < me.units) load_state<Cell>(s, me.b * s.H + me.u + i, dh[i], dc[i]);
    load(step_of(s.steps, s.steps.T - 1));
    take();
  }

  // What step t needs, which is the one after this.
  __device__ __forceinline__ void load(int64_t t) {
    next_turn = Turn();
    if (!me.has_row(t)) return;
    const At at(s.steps, t, me.b);
    next_turn = {at.row, true, at.active, at.fresh, at.cut};
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
      if (at.active && i < me.units) load_kept(s, at, me.u + i, next[i]);
  }
  __device__ __forceinline__ void take() {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) kept[i] = next[i];
    turn = next_turn;
  }

  // The part of dL/dh that came the way around W_hh, from the step that was last; NaN if it is lost.
  __device__ __forceinline__ void add(const float* from, int slices, int apart, bool lost) {
    float sum[1][kUnits] = {};
    if (me.units > 0 && !lost) add_slices(sum, from, 0, slices, apart);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) dh[i] = cut ? 0 : lost ? kNaN : dh[i] + sum[0][i];
  }

  __device__ __forceinline__ void cell() {
    cut = turn.active && turn.cut;
#pragma unroll
    for (int p = 0; p < kPre; ++p)
#pragma unroll
      for (int i = 0; i < kUnits; ++i) gates[p][i] = 0;
    if (!turn.active) return;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (i >= me.units) continue;
      backward_cell(s, me.b, me.u + i, kept[i], dh[i], dc[i]);
      if (cut) dc[i] = 0;
#pragma unroll
      for (int p = 0; p < kPre; ++p) gates[p][i] = kept[i].gates[p];
    }
  }

  // f(p, where the gradients of pre-activation p stand, what they are).
  template <class F>
  __device__ __forceinline__ void each_row(const F& f) const {
    if (!turn.has_row) return;
    T* const to = s.dgates + turn.row * (kPre * s.H) + me.u;
#pragma unroll
    for (int p = 0; p < kPre; ++p) f(p, to + p * s.H, gates[p]);
  }

  __device__ __forceinline__ void store_states() const {
#pragma unroll
    for (int i = 0; i < kUnits; ++i)
      if (i < me.units) store_state<Cell>(s, me.b * s.H + me.u + i, dh[i], dc[i]);
  }
};

template <class Cell, class T, class Tile>
__global__ void __launch_bounds__(kTeamThreads, 1)
    grid_backward(const __grid_constant__ Directions<BackwardScan<T>> directions, const TeamShape shape,
                  int64_t first_team, unsigned most_polls) {
  using Exchange = Grid<Cell, T, Tile, true>;
  const BackwardScan<T>& s = directions.of[blockIdx.z];
  const Member<Tile> me(s.steps, s.H, shape, first_team);
  ADL_DYNAMIC_SHARED(shared);
  const TeamLayout layout =
      team_layout(TeamProduct::kGather, shape, s.H, Cell::kGates, Tile::kArithmetic, Exchange::kBuffers);
  const Share<Cell, T, Tile, TeamProduct::kGather> w(s.w_hh, s.H, shape, reinterpret_cast<uint4*>(shared),
                                                     reinterpret_cast<uint4*>(shared + layout.spilled));
  Exchange exchange(shared, layout, shape, s.H, s.mail_width, me.rows, most_polls);
  float* const sums = reinterpret_cast<float*>(shared + layout.sums);
  BackwardUnits<Cell, T, Tile> own(s, me);

  // The gradients of the gates of step t, for the next product; none where a sequence has no such step.
  const auto announce = [&](int64_t t) {
    if (threadIdx.x >= unsigned(me.rows)) return;
    const At at(s.steps, t, me.first + threadIdx.x);
    const bool has = at.active && at.b < count_of(s.steps, t);
    exchange.announce(threadIdx.x, has ? s.mail + at.row * (Cell::kPre * s.mail_width) : nullptr, has);
  };
  const auto add_product = [&](int64_t announced) {
    const typename Tile::State* states = exchange.receive();
    if (announced >= 0) announce(announced);
    w.multiply(states, layout.stride, me.rows,
               [&](int slice, int down, int n, const float (&c)[4]) { put_sums(sums, layout, slice, down, n, c); });
    __syncthreads();
    own.add(sums + me.column * layout.sums_stride + me.at, shape.slices, layout.sums_slice, false);
  };

  bool begun = false;
  for (int64_t n = s.steps.T - 1; n >= 0; --n) {
    const int64_t t = step_of(s.steps, n);
    if (n > 0) own.load(step_of(s.steps, n - 1));
    if (me.runs(n)) {
      if (!begun && threadIdx.x < unsigned(me.rows)) exchange.announce(threadIdx.x, nullptr, false);
      begun = true;
      add_product(t);
    }
    own.cell();
    T* const mail = s.mail + own.turn.row * (Cell::kPre * s.mail_width) + me.u;
    own.each_row([&](int p, T* to, const auto& v) { exchange.store(to, mail + p * s.mail_width, v, me.units); });
    if (n >= kPrefetched) {
      const int64_t ahead = step_of(s.steps, n - kPrefetched), row = Cell::kPre * s.mail_width;
      exchange.prefetch(s.mail + (row_of(s.steps, ahead) + me.first) * row, row, me.rows_of(ahead));
    }
    own.take();
  }
  if (begun) add_product(-1);
  own.store_states();
}

template <class Cell, class T, class Tile>
__global__ void __launch_bounds__(kTeamThreads, 1)
    cluster_backward(const __grid_constant__ Directions<BackwardScan<T>> directions, const TeamShape shape,
                     int64_t first_team, unsigned most_polls) {
  using State = typename Tile::State;
  constexpr int kUnits = word_units(Tile::kArithmetic);
  const BackwardScan<T>& s = directions.of[blockIdx.z];
  const Member<Tile> me(s.steps, s.H, shape, first_team);
  ADL_DYNAMIC_SHARED(shared);
  const TeamLayout layout = team_layout(TeamProduct::kScatter, shape, s.H, Cell::kGates, Tile::kArithmetic, 2);
  const Share<Cell, T, Tile, TeamProduct::kScatter> w(s.w_hh, s.H, shape, reinterpret_cast<uint4*>(shared),
                                                      reinterpret_cast<uint4*>(shared + layout.spilled));
  Scatter exchange(shared, layout, shape, s.H, me.rows, most_polls);
  // The gradients of the block's gates: [2, sequences, gates, units].
  State* const states = reinterpret_cast<State*>(shared + layout.states);
  const int size = shape.rows * layout.stride;
  for (int k = threadIdx.x; k < 2 * size; k += kTeamThreads) states[k] = Tile::state(0.0f);
  if (me.runs(0) || me.runs(s.steps.T - 1)) exchange.meet();
  if (exchange.is_idle()) return;
  BackwardUnits<Cell, T, Tile> own(s, me);
  const auto receive = [&] {
    const float* const sums = exchange.receive() + me.column * shape.units + me.at;
    own.add(sums, shape.blocks, layout.sums_slice, exchange.late());
  };

  bool begun = false;
  int turn = 0;
  for (int64_t n = s.steps.T - 1; n >= 0; --n) {
    const bool runs = me.runs(n);
    if (n > 0) own.load(step_of(s.steps, n - 1));
    if (runs && begun) receive();
    own.cell();
    if (runs) {
      begun = true;
      State* const to = states + turn * size;
      if (me.column < me.rows)
#pragma unroll
        for (int q = 0; q < Cell::kGates; ++q)
#pragma unroll
          for (int i = 0; i < kUnits; ++i)
            to[me.column * layout.stride + q * shape.units + me.at + i] = Tile::state(own.gates[hh<Cell>(q)][i]);
      __syncthreads();
      w.multiply(to, layout.stride, me.rows,
                 [&](int, int down, int n, const float (&c)[4]) { exchange.send(down, n, c); });
      turn ^= 1;
    }
    own.each_row([&](int, T* to, const auto& v) { store_word(to, v, me.units); });
    own.take();
  }
  if (begun) receive();
  own.store_states();
  if (begun) exchange.part();
}

}  // namespace adl
