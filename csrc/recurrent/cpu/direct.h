// Products for calls of few rows, such as one step of one sequence: straight from the weights as they are.
//
// Packing reads and writes every weight; that pays when many rows use them. Here each weight is read once
// and used for a few rows. The order of a sum again depends on its length alone.
#pragma once

#include "common/cpu/gemm.h"

namespace adl {
namespace {

// Up to here a call takes this road. A round figure, not tuned: for one row packing costs many times the product.
constexpr int64_t kFewRows = 16;

// out[n] += sum_k a[k] w[n * K + k] for the first n rows of w; the sums of a register's lanes are added by a transpose.
template <class T, class Mul, class Io>
ADL_INLINE void dots(int64_t rows, int64_t K, const Mul* a, const Io* w, T* out) {
  using V = Simd<T>;
  constexpr int kLanes = V::kLanes;
  typename V::Register sum[kLanes] = {};
  for (int64_t k = 0; k < K; k += kLanes) {
    const typename V::Register ak = V::load(a + k, K - k).v;
    if (rows == kLanes && k + kLanes <= K) {
#pragma GCC unroll 16
      for (int row = 0; row < kLanes; ++row) sum[row] += ak * V::load(w + row * K + k).v;
    } else {
#pragma GCC unroll 16
      for (int row = 0; row < kLanes; ++row)
        if (row < rows) sum[row] += ak * V::load(w + row * K + k, K - k).v;
    }
  }
  transpose<typename V::Register, typename Format<T>::Ints>(sum);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int row = 0; row < half; ++row) sum[row] += sum[row + half];
  (V::load(out) + V(sum[0])).store(out);
}

// What product() does with block j of pack_units(w), for rows a [M, K]: out [M, ldo], gate g at place[g].
template <class T, class Mul, class Io>
void direct_units(const Io* w, int64_t H, int64_t K, int64_t j, int gates, int units, const int* place, int64_t M,
                  const Mul* a, int64_t stride, T* out, int64_t ldo) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t there = H - j * units < units ? H - j * units : units;
  for (int g = 0; g < gates; ++g)
    for (int64_t u = 0; u < there; u += kLanes)
      for (int64_t m = 0; m < M; ++m)
        dots<T>(there - u < kLanes ? there - u : kLanes, K, a + m * stride, w + (g * H + j * units + u) * K,
                out + m * ldo + place[g] * units + u);
}

// out [n] += sum_u d[u] w[u * K + first + n], n < 64: some rows of w, one panel of its columns.
template <class T, class Mul, class Io>
void direct_columns(int64_t units, const Mul* d, const Io* w, int64_t K, int64_t first, T* out) {
  using V = Simd<T>;
  constexpr int kVectors = kPanel / V::kLanes;
  const int64_t columns = K - first < kPanel ? K - first : kPanel;
  typename V::Register sum[kVectors] = {};
  if (columns == kPanel) {
    for (int64_t u = 0; u < units; ++u) {
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n) sum[n] += convert<T>(d[u]) * V::load(w + u * K + first + n * V::kLanes).v;
    }
    for (int n = 0; n < kVectors; ++n) (V::load(out + n * V::kLanes) + V(sum[n])).store(out + n * V::kLanes);
    return;
  }
  for (int64_t u = 0; u < units; ++u)
    for (int64_t n = 0; n < columns; ++n) out[n] += convert<T>(d[u]) * convert<T>(w[u * K + first + n]);
}

}  // namespace
}  // namespace adl
