// Block products: C [M, width] += A [M, K] B [K, width], B and C in panels of 64 or 48 columns.
//
// Every element is a sum in the order of k, in blocks of at most kBlock that are added one after the other. The
// order depends on K alone, so results do not change with the number of rows or threads, or with the tile
// a row falls in; and the blocks keep the rounding error of long sums down.
#pragma once

#include "cpu/simd.h"

namespace adl {
namespace {

constexpr int kBlock = 128;  // most k per accumulation; 128 x 64 floats of B fill two thirds of L1
constexpr int kPanel = 64;   // columns per panel where the cell does not decide

// Register tile: kRows x kVectors sums, kVectors of B and a broadcast fit 32 (AVX-512) or 16 registers.
template <class T, int kWidth>
struct Tile {
  static constexpr int kTotal = kWidth / Simd<T>::kLanes;
  static constexpr int kVectors = kVectorBytes < 64 ? 2 : kTotal % 4 == 0 ? 4 : 3;
  static constexpr int kRows = kVectorBytes == 64 && kVectors == 3 ? 8 : 6;
  static constexpr int kStep = kVectors * Simd<T>::kLanes;
  static_assert(kTotal % kVectors == 0);
};

// a(m, k) = a[m * stride + k], or a[k * stride + m] when transposed.
template <class T, int kWidth, int kRows, bool kTransposed>
ADL_INLINE void tile(int64_t K, const T* a, int64_t stride, const T* b, T* c, int64_t ldc) {
  constexpr int kVectors = Tile<T, kWidth>::kVectors, kLanes = Simd<T>::kLanes;
  typename Simd<T>::Register sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < K; ++k) {
    typename Simd<T>::Register bk[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) bk[n] = Simd<T>::load(b + k * kWidth + n * kLanes).v;
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const T amk = kTransposed ? a[k * stride + m] : a[m * stride + k];
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sum[m][n] += amk * bk[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) {
      T* p = c + m * ldc + n * kLanes;
      (Simd<T>::load(p) + Simd<T>(sum[m][n])).store(p);
    }
  }
}

template <class T, int kWidth, int kRows, bool kTransposed>
ADL_INLINE void tail(int64_t M, int64_t K, const T* a, int64_t stride, const T* b, T* c, int64_t ldc) {
  if constexpr (kRows > 0) {
    if (M == kRows) return tile<T, kWidth, kRows, kTransposed>(K, a, stride, b, c, ldc);
    tail<T, kWidth, kRows - 1, kTransposed>(M, K, a, stride, b, c, ldc);
  }
}

template <class T, int kWidth, bool kTransposed = false>
__attribute__((noinline)) void product(int64_t M, int64_t K, const T* a, int64_t stride, const T* b, T* c,
                                       int64_t ldc) {
  using Shape = Tile<T, kWidth>;
  const int64_t row = kTransposed ? 1 : stride, column = kTransposed ? stride : 1;
  const int64_t most = K > kBlock ? (K - 1) / ((K - 1) / kBlock + 1) + 1 : K;  // blocks of about one size
  for (int64_t k = 0; k < K; k += most) {
    const int64_t count = K - k < most ? K - k : most;
    for (int n = 0; n < kWidth; n += Shape::kStep) {
      const T* ak = a + k * column;
      const T* bk = b + k * kWidth + n;
      int64_t m = 0;
      for (; m + Shape::kRows <= M; m += Shape::kRows)
        tile<T, kWidth, Shape::kRows, kTransposed>(count, ak + m * row, stride, bk, c + m * ldc + n, ldc);
      tail<T, kWidth, Shape::kRows - 1, kTransposed>(M - m, count, ak + m * row, stride, bk, c + m * ldc + n, ldc);
    }
  }
}

// Columns [first, first + kPanel) of a row, zero past `columns`.
template <class T>
ADL_INLINE void pack_row(const T* row, int64_t first, int64_t columns, T* out) {
  const int64_t n = columns - first < kPanel ? columns - first : kPanel;
  for (int64_t k = 0; k < n; ++k) out[k] = row[first + k];
  for (int64_t k = n; k < kPanel; ++k) out[k] = T(0);
}

// w [G * H, K] to block j of [J, K, G, U]: the gates of U units side by side, gate g in column place[g].
template <class T, int kGates, int kUnits>
void pack_units(const T* w, int64_t H, int64_t K, int64_t j, const int (&place)[kGates], int first, T* out) {
  constexpr int kWidth = kGates * kUnits, kStrip = 64 / int(sizeof(T));
  for (int64_t k = 0; k < K; k += kStrip) {  // a cache line of each row at a time: what is written stays in L1
    const int64_t count = K - k < kStrip ? K - k : kStrip;
    for (int g = 0; g < kGates; ++g) {
      for (int u = 0; u < kUnits; ++u) {
        T* column = out + k * kWidth + (place[g] - first) * kUnits + u;
        const int64_t unit = j * kUnits + u;
        const T* row = w + (g * H + unit) * K + k;
        if (unit < H)
          for (int64_t i = 0; i < count; ++i) column[i * kWidth] = row[i];
        else
          for (int64_t i = 0; i < count; ++i) column[i * kWidth] = T(0);
      }
    }
  }
}

// w [G * H, K] to panel q of [K / 64, J, G, U, 64]: the transposed product, its sum running over units.
template <class T, int kGates, int kUnits>
void pack_transposed(const T* w, int64_t H, int64_t K, int64_t q, const int (&place)[kGates], int first, T* out) {
  for (int64_t j = 0; j * kUnits < H; ++j) {
    for (int g = 0; g < kGates; ++g) {
      for (int u = 0; u < kUnits; ++u) {
        const int64_t unit = j * kUnits + u;
        T* row = out + ((j * kGates + place[g] - first) * kUnits + u) * kPanel;
        if (unit < H)
          pack_row(w + (g * H + unit) * K, q * kPanel, K, row);
        else
          std::memset(row, 0, kPanel * sizeof(T));
      }
    }
  }
}

}  // namespace
}  // namespace adl
