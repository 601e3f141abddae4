// Products of a tile of weights, 16 units by 16 states, with the states of some sequences.
//
// Lane (g, t) = (lane / 4, lane % 4) holds, of units 2 g and 2 g + 1, states 4 t .. 4 t + 3, and owns the sums of these
// two units for kOwn sequences. Which states stand where in a tensor core's fragment does not matter, as long as
// weights and states agree: so the four are neighbours, and one load.
#pragma once

#include "common/cuda/device.cuh"
#include "common/cuda/launch.h"

namespace adl {

__device__ __forceinline__ void mma(BFloat, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_bf16(c, a, b);
}
__device__ __forceinline__ void mma(Half, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_f16(c, a, b);
}

// The sums of tensor cores: fragment C has units by sequences.
struct TensorCores {
  static constexpr int kOwn = 2;  // sequences 2 t and 2 t + 1

  struct Sum {
    float c[4] = {0, 0, 0, 0};
  };

  static __device__ __forceinline__ void finish(const Sum& sum, int, float (&out)[2][kOwn]) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kOwn; ++j) out[i][j] = sum.c[2 * i + j];
  }
};

// bfloat16 or float16 on tensor cores.
template <class T>
struct alignas(16) HalfTile : TensorCores {
  using State = T;
  static constexpr Arithmetic kArithmetic = kHalfTensorCores;

  struct Operand {
    uint32_t b[2];
  };
  uint32_t a[4];

  __device__ __forceinline__ void set(const T (&w)[2][4]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = pack(w[r & 1][r & 2], w[r & 1][(r & 2) + 1]);
  }
  static __device__ __forceinline__ State state(float h) { return from_acc<T>(h); }
  // `states` [8 sequences, stride], at the first state of the tile.
  static __device__ __forceinline__ Operand operand(const State* states, int stride, int g, int t) {
    const uint2 two = *reinterpret_cast<const uint2*>(states + g * stride + 4 * t);
    return {{two.x, two.y}};
  }
  __device__ __forceinline__ void add(Sum& sum, const Operand& operand) const { mma(T(), sum.c, a, operand.b); }
};

// float32 rounded to tf32 on tensor cores.
struct alignas(16) Tf32Tile : TensorCores {
  using State = uint32_t;
  static constexpr Arithmetic kArithmetic = kTf32TensorCores;

  struct Operand {
    uint32_t b[4];
  };
  uint32_t a[8];  // of two products over 8 states each

  __device__ __forceinline__ void set(const float (&w)[2][4]) {
#pragma unroll
    for (int r = 0; r < 8; ++r) a[r] = to_tf32(w[r & 1][r >> 1]);
  }
  static __device__ __forceinline__ State state(float h) { return to_tf32(h); }
  static __device__ __forceinline__ Operand operand(const State* states, int stride, int g, int t) {
    const uint4 four = *reinterpret_cast<const uint4*>(states + g * stride + 4 * t);
    return {{four.x, four.y, four.z, four.w}};
  }
  __device__ __forceinline__ void add(Sum& sum, const Operand& o) const {
    mma_tf32(sum.c, {a[0], a[1], a[2], a[3]}, {o.b[0], o.b[1]});
    mma_tf32(sum.c, {a[4], a[5], a[6], a[7]}, {o.b[2], o.b[3]});
  }
};

// Numbers as they are: each lane sums its states for all sequences, then the four of a unit exchange.
template <class A>
struct alignas(16) FmaTile {
  using State = A;
  static constexpr Arithmetic kArithmetic = kFloatFma;
  static constexpr int kOwn = 1;  // sequence t
  static constexpr int kRows = kFloatFma.rows;

  struct alignas(16) Four {
    A of[4];
  };
  struct Operand {
    Four h[kRows];
  };
  struct Sum {
    A c[2][kRows] = {};
  };

  A w[2][4];

  __device__ __forceinline__ void set(const A (&from)[2][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) w[i][k] = from[i][k];
  }
  static __device__ __forceinline__ State state(A h) { return h; }
  static __device__ __forceinline__ Operand operand(const State* states, int stride, int, int t) {
    Operand o;
#pragma unroll
    for (int n = 0; n < kRows; ++n) o.h[n] = *reinterpret_cast<const Four*>(states + n * stride + 4 * t);
    return o;
  }
  __device__ __forceinline__ void add(Sum& sum, const Operand& o) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < kRows; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) sum.c[i][n] += w[i][k] * o.h[n].of[k];
  }
  static __device__ __forceinline__ void finish(const Sum& sum, int t, A (&out)[2][kOwn]) {
    const bool upper = t & 2, odd = t & 1;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Each lane keeps one half of the sequences and gives the other away, twice.
      A kept[2], given[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        kept[n] = upper ? sum.c[i][n + 2] : sum.c[i][n];
        given[n] = upper ? sum.c[i][n] : sum.c[i][n + 2];
        kept[n] += __shfl_xor_sync(0xffffffffu, given[n], 2);
      }
      const A mine = odd ? kept[1] : kept[0], other = odd ? kept[0] : kept[1];
      out[i][0] = mine + __shfl_xor_sync(0xffffffffu, other, 1);
    }
  }
};
using FloatTile = FmaTile<float>;

}  // namespace adl
