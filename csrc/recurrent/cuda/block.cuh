// The block-resident tier: a block runs all steps of some sequences in one direction, with W_hh in its registers
// (what does not fit there, in shared memory) and the states in shared memory. Blocks need not know of each other.
//
// A warp holds all gates of 16 units, see tile.cuh; so the lane that owns a sum owns the unit, and its state stays
// in registers. States are double-buffered: one barrier a step.
#pragma once

#include "common/cuda/tile.cuh"
#include "recurrent/cuda/launch.h"
#include "recurrent/cuda/step.cuh"

namespace adl {

// What a lane is responsible for: units u and u + 1 of kOwn sequences each.
struct Lane {
  int warp, lane, g, t, u;
  __device__ __forceinline__ Lane() {
    warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, u = warp * kTile + 2 * g;
  }

  // f(i, j, the unit, the sequence's column in the block), unrolled: i and j may index registers.
  template <int kOwn, class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kOwn; ++j) f(i, j, u + i, kOwn * t + j);
  }
};

// Where a block finds its part of a state [B, H]: sequences first .. first + rows - 1.
struct Part {
  int64_t first, B, H;
  int rows;
  __device__ __forceinline__ bool has(int unit, int column) const {
    return unit < H && column < rows && first + column < B;
  }
  __device__ __forceinline__ int64_t at(int unit, int column) const { return (first + column) * H + unit; }
  // Sequences under way at step t, of those of this block.
  __device__ __forceinline__ int active(const Steps& s, int64_t t) const {
    const int64_t count = count_of(s, t) - first;
    return static_cast<int>(count < rows ? count : rows);
  }
};

// W_hh of a block. Forward sums over states, the rows of states are h; backward over units, they are dgates.
template <class Cell, class T, class Tile, bool backward>
struct Resident {
  static constexpr int kGates = Cell::kGates;
  static constexpr int kHeld = register_tiles(kGates, Tile::kArithmetic);
  static constexpr int kParts = Tile::kArithmetic.words / 4;  // of 16 bytes
  static constexpr int kSums = !backward ? kGates : Tile::kArithmetic.sums < kGates ? Tile::kArithmetic.sums : kGates;
  using State = typename Tile::State;
  using Sum = typename Tile::Sum;

  Tile held[kGates][kHeld];
  uint4* spilled;  // [warps, tiles beyond kHeld, gates, parts, 32 lanes]
  int n;           // tiles along the states
  Lane lane;

  // W_hh (its transpose) at gate q of this lane's unit i and the state k of the tile.
  __device__ __forceinline__ Tile load(const T* w_hh, unsigned H, int q, int tile) const {
    T w[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const unsigned unit = lane.u + i, state = tile * kTile + 4 * lane.t + k;
        const unsigned row = q * H + (backward ? state : unit), column = backward ? unit : state;
        w[i][k] = unit < H && state < H ? w_hh[row * H + column] : from_acc<T>(0);
      }
    Tile out;
    out.set(w);
    return out;
  }

  // A lane's own place among [.., parts, 32 lanes].
  __device__ __forceinline__ void put(uint4* to, const Tile& tile) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) to[part * 32] = reinterpret_cast<const uint4*>(&tile)[part];
  }
  static __device__ __forceinline__ void get(Tile& tile, const uint4* from) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) reinterpret_cast<uint4*>(&tile)[part] = from[part * 32];
  }

  __device__ __forceinline__ uint4* spilled_at(int tile, int q) const {
    return spilled + ((int64_t(lane.warp) * (n - kHeld) + tile - kHeld) * kGates + q) * kParts * 32 + lane.lane;
  }

  // `staging`: shared memory [warps, kHeld, parts, 32 lanes], which may overlap `rest`. By this detour a loop that is
  // not unrolled loads what must be unrolled to lie in registers; else all loads would be under way at once, and spill.
  __device__ __forceinline__ Resident(const T* w_hh, int64_t H, uint4* staging, uint4* rest)
      : spilled(rest), n(tiles(H)) {
    uint4* own = staging + lane.warp * kHeld * kParts * 32 + lane.lane;
#pragma unroll
    for (int q = 0; q < kGates; ++q) {
#pragma unroll 4
      for (int tile = 0; tile < kHeld; ++tile) put(own + tile * kParts * 32, load(w_hh, H, q, tile));
#pragma unroll
      for (int tile = 0; tile < kHeld; ++tile) get(held[q][tile], own + tile * kParts * 32);
    }
    __syncthreads();
    if constexpr (kHeld < kMaxTiles)
      for (int tile = kHeld; tile < n; ++tile)
        for (int q = 0; q < kGates; ++q) put(spilled_at(tile, q), load(w_hh, H, q, tile));
  }

  // states: [rows, stride], in backward a row is [gates, 16 n]. Forward has a sum for each gate; in backward all add
  // up, but a few sums side by side do not wait for each other.
  __device__ __forceinline__ void multiply(const State* states, int stride, Sum (&sums)[kSums]) const {
    const auto operand = [&](int tile, int q) {
      return Tile::operand(states + (backward ? q * n * kTile : 0) + tile * kTile, stride, lane.g, lane.t);
    };
#pragma unroll
    for (int tile = 0; tile < kHeld; ++tile)
      if (tile < n) {
        typename Tile::Operand o = operand(tile, 0);
#pragma unroll
        for (int q = 0; q < kGates; ++q) {
          if (backward && q > 0) o = operand(tile, q);
          held[q][tile].add(sums[q % kSums], o);
        }
      }
    if constexpr (kHeld < kMaxTiles)
#pragma unroll 1
      for (int tile = kHeld; tile < n; ++tile) {
        typename Tile::Operand o = operand(tile, 0);
#pragma unroll
        for (int q = 0; q < kGates; ++q) {
          if (backward && q > 0) o = operand(tile, q);
          Tile one;
          get(one, spilled_at(tile, q));
          one.add(sums[q % kSums], o);
        }
      }
  }
};

// Two buffers of states, zero at first; at the beginning of shared memory.
template <class Tile>
struct Buffers {
  using State = typename Tile::State;
  State* of;
  int stride, size;

  __device__ __forceinline__ Buffers(unsigned char* shared, int rows, int width_stride)
      : of(reinterpret_cast<State*>(shared)), stride(width_stride), size(rows * width_stride) {
    for (int k = threadIdx.x; k < 2 * size; k += blockDim.x) of[k] = Tile::state(0.0f);
    __syncthreads();
  }
  __device__ __forceinline__ State* operator[](int turn) const { return of + turn * size; }
};

template <class Cell, class T, class Tile>
__global__ void __launch_bounds__(kBlockThreads, 1)
    block_forward(const __grid_constant__ Directions<ForwardScan<T>> directions, int rows) {
  constexpr int kOwn = Tile::kOwn, kGates = Cell::kGates;
  constexpr Arithmetic a = Tile::kArithmetic;
  const ForwardScan<T>& s = directions.of[blockIdx.y];
  const Lane lane;
  const Part part{int64_t(blockIdx.x) * rows, s.steps.B, s.H, rows};

  ADL_DYNAMIC_SHARED(shared);
  float* biases = reinterpret_cast<float*>(shared + state_bytes(s.H, kGates, a, false));  // [pre, width]
  const int width = state_width(s.H, kGates, false), stride = state_stride(width, a);
  const Resident<Cell, T, Tile, false> w(s.w_hh, s.H, reinterpret_cast<uint4*>(shared),
                                         reinterpret_cast<uint4*>(biases + Cell::kPre * width));
  const Buffers<Tile> states(shared, a.rows, stride);

  float h[2][kOwn], c[2][kOwn], bias[Cell::kPre];
  lane.each<kOwn>([&](int i, int j, int u, int column) {
    h[i][j] = c[i][j] = 0;
    if (part.has(u, column)) load_state<Cell>(s, s.steps.begin == 0, part.at(u, column), h[i][j], c[i][j]);
    states[0][column * stride + u] = Tile::state(h[i][j]);
  });
  for (int i = 0; i < 2 && lane.t == 0; ++i) {
    load_bias<Cell>(s.b_ih, s.b_hh, s.H, lane.u + i, bias);
#pragma unroll
    for (int p = 0; p < Cell::kPre; ++p) biases[p * width + lane.u + i] = bias[p];
  }
  __syncthreads();

  float gx[2][kOwn][kGates];
  const auto load = [&](int64_t t, int count) {
    const int64_t row = row_of(s.steps, t) + part.first;
    lane.each<kOwn>([&](int i, int j, int u, int column) {
      if (column < count && u < s.H) load_gx<Cell>(s, row, column, u, gx[i][j]);
    });
  };
  int64_t t = step_of(s.steps, s.steps.begin);
  int turn = 0, count = part.active(s.steps, t);
  load(t, count);
  for (int64_t n = s.steps.begin; n < s.steps.end; ++n) {
    const bool more = n + 1 < s.steps.end;
    const int64_t row = row_of(s.steps, t) + part.first, next = step_of(s.steps, n + 1);
    const int next_count = more ? part.active(s.steps, next) : 0;
    if (count > 0) {
      typename Tile::Sum sums[kGates];
      w.multiply(states[turn], stride, sums);
      float gh[2][kOwn][kGates];
#pragma unroll
      for (int q = 0; q < kGates; ++q) {
        float out[2][kOwn];
        Tile::finish(sums[q], lane.t, out);
        lane.each<kOwn>([&](int i, int j, int, int) { gh[i][j][q] = out[i][j]; });
      }
      turn ^= 1;
      lane.each<kOwn>([&](int i, int j, int u, int column) {
        if (j == 0)
#pragma unroll
          for (int p = 0; p < Cell::kPre; ++p) bias[p] = biases[p * width + u];
        if (column < count && u < s.H)
          forward_unit<Cell>(s, row, column, u, bias, gx[i][j], gh[i][j], h[i][j], c[i][j]);
        states[turn][column * stride + u] = Tile::state(h[i][j]);
      });
    }
    if (more) load(next, next_count);
    if (count > 0) __syncthreads();
    t = next, count = next_count;
  }

  lane.each<kOwn>([&](int i, int j, int u, int column) {
    if (part.has(u, column)) store_state<Cell>(s, s.steps.end == s.steps.T, part.at(u, column), h[i][j], c[i][j]);
  });
}

template <class Cell, class T, class Tile>
__global__ void __launch_bounds__(kBlockThreads, 1)
    block_backward(const __grid_constant__ Directions<BackwardScan<T>> directions, int rows) {
  constexpr int kOwn = Tile::kOwn, kGates = Cell::kGates;
  constexpr Arithmetic a = Tile::kArithmetic;
  const BackwardScan<T>& s = directions.of[blockIdx.y];
  const Lane lane;
  const Part part{int64_t(blockIdx.x) * rows, s.steps.B, s.H, rows};
  const int stride = state_stride(state_width(s.H, kGates, true), a), gate_stride = tiles(s.H) * kTile;

  ADL_DYNAMIC_SHARED(shared);
  const Resident<Cell, T, Tile, true> w(s.w_hh, s.H, reinterpret_cast<uint4*>(shared),
                                        reinterpret_cast<uint4*>(shared + state_bytes(s.H, kGates, a, true)));
  const Buffers<Tile> states(shared, a.rows, stride);

  float dh[2][kOwn], dc[2][kOwn];
  lane.each<kOwn>([&](int i, int j, int u, int column) {
    dh[i][j] = dc[i][j] = 0;
    if (part.has(u, column)) load_state<Cell>(s, part.at(u, column), dh[i][j], dc[i][j]);
  });

  // dL/dh of the step before: what came by the way around W_hh is there already.
  const auto add_product = [&](const typename Tile::State* dgates) {
    typename Tile::Sum sums[decltype(w)::kSums];
    w.multiply(dgates, stride, sums);
#pragma unroll
    for (const typename Tile::Sum& sum : sums) {
      float out[2][kOwn];
      Tile::finish(sum, lane.t, out);
      lane.each<kOwn>([&](int i, int j, int, int) { dh[i][j] += out[i][j]; });
    }
  };
  Kept<Cell, T> kept[2][kOwn];
  const auto load = [&](int64_t t, int count) {
    const int64_t row = row_of(s.steps, t) + part.first;
    const Before from = before(s.steps, t);
    lane.each<kOwn>([&](int i, int j, int u, int column) {
      if (column < count && u < s.H) load_kept(s, part.first, row, column, from, u, kept[i][j]);
    });
  };

  const auto step = [&](int64_t n) { return step_of(s.steps, s.steps.T - 1 - n); };
  int64_t t = step(0);
  int turn = 0, count = part.active(s.steps, t);
  load(t, count);
  for (int64_t n = 0; n < s.steps.T; ++n) {
    const bool more = n + 1 < s.steps.T;
    const int64_t row = row_of(s.steps, t) + part.first, next = step(n + 1);
    const int next_count = more ? part.active(s.steps, next) : 0;
    if (count > 0) {
      add_product(states[turn]);
      turn ^= 1;
      lane.each<kOwn>([&](int i, int j, int u, int column) {
        const bool runs = column < count && u < s.H;
        if (runs) backward_unit(s, part.first, row, column, u, kept[i][j], dh[i][j], dc[i][j]);
        // A sequence that has ended passes its dh on as it is.
#pragma unroll
        for (int q = 0; q < kGates; ++q)
          states[turn][column * stride + q * gate_stride + u] =
              Tile::state(runs ? kept[i][j].gates[hh<Cell>(q)] : 0.0f);
      });
    }
    if (more) load(next, next_count);
    if (count > 0) __syncthreads();
    t = next, count = next_count;
  }
  add_product(states[turn]);

  lane.each<kOwn>([&](int i, int j, int u, int column) {
    if (part.has(u, column)) store_state<Cell>(s, part.at(u, column), dh[i][j], dc[i][j]);
  });
}

}  // namespace adl
