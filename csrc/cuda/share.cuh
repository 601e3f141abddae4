// What a block of a team holds of W_hh, and its product with the states of the team's sequences.
#pragma once

#include "cuda/tile.cuh"

namespace adl {

// Tiles of its product, for each warp `wide` by `deep`, see TeamShape.
template <class Cell, class T, class Tile, bool backward>
class Share {
 public:
  static constexpr int kHeld = held_tiles(Tile::kArithmetic);
  using State = typename Tile::State;

  // `staging`: shared memory that nobody uses yet; `spilled` may overlap it.
  __device__ __forceinline__ Share(const T* w_hh, int64_t H, const TeamShape& shape, int first_unit, uint4* staging,
                                   uint4* spilled)
      : w_hh_(w_hh), H_(unsigned(H)), per_gate_(tiles(H) * kTile), units_(shape.units), first_unit_(first_unit) {
    const int warp = threadIdx.x / 32, across = tiles(H) * (backward ? Cell::kGates : 1);
    lane_ = threadIdx.x % 32, slice_ = warp % shape.slices, group_ = warp / shape.slices;
    down_ = tiles(backward ? shape.units : Cell::kGates * shape.units);
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

  // sums [slices, columns, stride] = the product with states [rows, stride].
  __device__ __forceinline__ void multiply(int wide, const State* states, int stride, int rows, float* sums,
                                           int sums_stride, int sums_slice) const {
    if (deep_ <= 0) return;
    float* own = sums + slice_ * sums_slice;
    if (wide == 1)
      multiply<1>(states, stride, rows, own, sums_stride);
    else if (wide == 2)
      multiply<2>(states, stride, rows, own, sums_stride);
    else
      multiply<4>(states, stride, rows, own, sums_stride);
  }

 private:
  static constexpr int kParts = Tile::kArithmetic.words / 4;  // of 16 bytes
  static constexpr int kStaged = 4, kSums = 4;

  // Element of W_hh (its transpose) at a row and a column of the block's product.
  __device__ __forceinline__ T element(int row, int column) const {
    const int q = backward ? column / per_gate_ : row / units_;
    const unsigned u = first_unit_ + (backward ? row : row % units_);
    const unsigned state = backward ? column % per_gate_ : column;
    const bool inside = u < H_ && state < H_ && q < Cell::kGates && (!backward || row < units_);
    const unsigned gate_row = q * H_ + (backward ? state : u);
    return inside ? w_hh_[int64_t(gate_row) * H_ + (backward ? u : state)] : from_acc<T>(0);
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
  template <int wide>
  __device__ __forceinline__ void multiply(const State* states, int stride, int rows, float* sums,
                                           int sums_stride) const {
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
        if (down >= down_) break;
#pragma unroll
        for (int i = 1; i < kTurn; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) sum[m].c[r] += sum[i * wide + m].c[r];
        float* to = sums + (n + 2 * t) * sums_stride + down * kTile + 2 * g;
        *reinterpret_cast<float2*>(to) = make_float2(sum[m].c[0], sum[m].c[2]);
        *reinterpret_cast<float2*>(to + sums_stride) = make_float2(sum[m].c[1], sum[m].c[3]);
      }
    }
  }

  Tile held_[kHeld];
  uint4* spilled_;  // [tiles beyond kHeld, parts, 32 lanes], this lane's
  const T* w_hh_;
  unsigned H_;
  int per_gate_, units_, first_unit_, lane_, slice_, group_, down_, first_, deep_;
};

}  // namespace adl
