// What a block of a team holds of W_hh, and its product with the states of the team's sequences.
#pragma once

#include "common/cuda/tile.cuh"

namespace adl {

// Tiles of its product, for each warp `wide` by `deep`, see TeamShape.
template <class Cell, class T, class Tile, TeamProduct product>
class Share {
 public:
  static constexpr int kHeld = held_tiles(Tile::kArithmetic);
  using State = typename Tile::State;

  // `staging`: shared memory that nobody uses yet; `spilled` may overlap it.
  __device__ __forceinline__ Share(const T* w_hh, int64_t H, const TeamShape& shape, uint4* staging, uint4* spilled)
      : w_hh_(w_hh),
        H_(unsigned(H)),
        per_gate_(tiles(H) * kTile),
        units_(shape.units),
        first_unit_(blockIdx.x * shape.units),
        wide_(shape.wide) {
    const int warp = threadIdx.x / 32, across = tiles_across(product, H, Cell::kGates, shape.units);
    lane_ = threadIdx.x % 32, slice_ = warp % shape.slices, group_ = warp / shape.slices;
    down_ = tiles_down(product, H, Cell::kGates, shape.units);
    first_ = slice_ * shape.deep;
    deep_ = group_ * shape.wide < down_ ? min(shape.deep, across - first_) : 0;
    const int all = shape.wide * shape.deep, beyond = all - kHeld;
    spilled_ = spilled + (beyond > 0 ? warp * beyond : 0) * kParts * 32 + lane_;

    // A loop that is not unrolled loads what must be unrolled to lie in registers; else all loads would be under way at
    // once, and spill.
    uint4* own = staging + warp * kStaged * kParts * 32 + lane_;
#pragma unroll
    for (int i = 0; i < kHeld; i += kStaged) {
#pragma unroll 1
      for (int k = 0; k < kStaged; ++k) put(own + k * kParts * 32, load(i + k, shape.wide));
#pragma unroll
      for (int k = 0; k < kStaged; ++k) get(held_[i + k], own + k * kParts * 32);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = kHeld; i < all; ++i) put(spilled_ + (i - kHeld) * kParts * 32, load(i, shape.wide));
  }

  // The product with states [rows, stride], tile by tile: done(slice, tile down, sequence n, sums) has the lane's sums
  // of 16 rows by sequences n .. n + 7.
  template <class F>
  __device__ __forceinline__ void multiply(const State* states, int stride, int rows, const F& done) const {
    if (deep_ <= 0) return;
    if (wide_ == 1)
      multiply<1>(states, stride, rows, done);
    else if (wide_ == 2)
      multiply<2>(states, stride, rows, done);
    else
      multiply<4>(states, stride, rows, done);
  }

 private:
  static constexpr int kParts = Tile::kArithmetic.words / 4;  // of 16 bytes
  static constexpr int kStaged = 4, kSums = 4;

  // Element of W_hh (its transpose) at a row and a column of the block's part.
  __device__ __forceinline__ T element(int row, int column) const {
    const int of_gates = product == TeamProduct::kForward ? row : column;  // and the other of units
    const bool own = product != TeamProduct::kGather;                      // whose gates
    const int per_gate = own ? units_ : per_gate_, q = of_gates / per_gate, at = of_gates % per_gate;
    const int other = product == TeamProduct::kForward ? column : row;
    const unsigned gate = own ? first_unit_ + at : at,
                   unit = product == TeamProduct::kGather ? first_unit_ + other : other;
    const bool inside =
        q < Cell::kGates && gate < H_ && unit < H_ && (product != TeamProduct::kGather || other < units_);
    return inside ? w_hh_[int64_t(q * H_ + gate) * H_ + unit] : from_acc<T>(0);
  }

  __device__ __forceinline__ Tile load(int i, int wide) const {
    const int down = group_ * wide + i % wide, across = first_ + i / wide;
    const bool inside = down < down_ && i / wide < deep_;
    T w[2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        w[r][k] =
            inside ? element(down * kTile + 2 * (lane_ / 4) + r, across * kTile + 4 * (lane_ % 4) + k) : from_acc<T>(0);
    Tile out;
    out.set(w);
    return out;
  }

  static __device__ __forceinline__ void put(uint4* to, const Tile& tile) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) to[part * 32] = reinterpret_cast<const uint4*>(&tile)[part];
  }
  static __device__ __forceinline__ void get(Tile& tile, const uint4* from) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) reinterpret_cast<uint4*>(&tile)[part] = from[part * 32];
  }

  // A few sums side by side do not wait for each other: with less than kSums tiles of rows, neighbours along the states
  // have their own.
  template <int wide, class F>
  __device__ __forceinline__ void multiply(const State* states, int stride, int rows, const F& done) const {
    constexpr int kTurn = kSums / wide;  // tiles along the states until the first sum comes again
    const int g = lane_ / 4, t = lane_ % 4;
    for (int n = 0; n < rows; n += 8) {
      // Of sequences that are not there, another's: those sums are not used.
      const State* from = states + (n + min(g, rows - 1 - n)) * stride + first_ * kTile;
      typename Tile::Sum sum[kSums];
#pragma unroll
      for (int k = 0; k < kHeld / wide; ++k)
        if (k < deep_) {
          const typename Tile::Operand o = Tile::operand(from + k * kTile, 0, 0, t);
#pragma unroll
          for (int m = 0; m < wide; ++m) held_[k * wide + m].add(sum[(k * wide + m) % kSums], o);
        }
#pragma unroll 1
      for (int k = kHeld / wide; k < deep_; k += kTurn)
#pragma unroll
        for (int i = 0; i < kTurn; ++i)
          if (k + i < deep_) {
            const typename Tile::Operand o = Tile::operand(from + (k + i) * kTile, 0, 0, t);
#pragma unroll
            for (int m = 0; m < wide; ++m) {
              Tile one;
              get(one, spilled_ + ((k + i) * wide + m - kHeld) * kParts * 32);
              one.add(sum[i * wide + m], o);
            }
          }
#pragma unroll
      for (int m = 0; m < wide; ++m) {
        const int down = group_ * wide + m;
        if (down >= down_) break;  // so for all lanes
#pragma unroll
        for (int i = 1; i < kTurn; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) sum[m].c[r] += sum[i * wide + m].c[r];
        done(slice_, down, n, sum[m].c);
      }
    }
  }

  Tile held_[kHeld];
  uint4* spilled_;  // [tiles beyond kHeld, parts, 32 lanes], this lane's
  const T* w_hh_;
  unsigned H_;
  int per_gate_, units_, first_unit_, wide_, lane_, slice_, group_, down_, first_, deep_;
};

}  // namespace adl
