// Layer norm over the units of a row, whose blocks may belong to different threads. Sums over a row are kept lane by
// lane for every block, and added up in the order of the blocks by whoever needs them: the same bits for any number of
// threads.
#pragma once

#include "recurrent/cpu/plan.h"

namespace adl {
namespace {

enum NormKind { kOfX, kOfH, kOfSecond, kOfC };  // what is normalised: products of x, of h, of r h; c

// What a normalised row was made with: (value - mean) * scale.
template <class T>
struct Norm {
  T mean, scale;
};

template <class T>
ADL_INLINE T sum_of(Simd<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float))
    return _mm512_reduce_add_ps(__m512(v.v));
  else
    return _mm512_reduce_add_pd(__m512d(v.v));
#else
  T sum = 0;
  for (int k = 0; k < Simd<T>::kLanes; ++k) sum += v.v[k];
  return sum;
#endif
}

// Sums of several kinds over the rows of a step (or of a chunk of them).
template <class T>
struct LaneSums {
  using V = Simd<T>;
  T* of;  // [kinds, rows, J, lanes]
  int64_t J, rows;

  static int64_t size(int64_t kinds, int64_t J, int64_t rows) { return kinds * rows * J * V::kLanes; }
  T* at(int64_t kind, int64_t row) const { return of + (kind * rows + row) * J * V::kLanes; }
  void put(int64_t kind, int64_t j, int64_t row, V sum) const { sum.store(at(kind, row) + j * V::kLanes); }
  T total(int64_t kind, int64_t row) const {
    const T* lanes = at(kind, row);
    V sum(0);
    for (int64_t j = 0; j < J; ++j) sum = sum + V::load(lanes + j * V::kLanes);
    return sum_of(sum);
  }
};

// Sum of f(k) over the registers k of values [gates, U], of whose U units the first n count.
template <class T, class F>
ADL_INLINE Simd<T> lane_total(int gates, int units, int64_t n, F f) {
  using V = Simd<T>;
  V sum(0);
  if (n == units) {
    const int count = gates * units;
    int k = 0;
    for (; k + 4 * V::kLanes <= count; k += 4 * V::kLanes)
      sum = sum + f(k), sum = sum + f(k + V::kLanes), sum = sum + f(k + 2 * V::kLanes),
      sum = sum + f(k + 3 * V::kLanes);
    for (; k < count; k += V::kLanes) sum = sum + f(k);
    return sum;
  }
  for (int g = 0; g < gates; ++g) {
    for (int u = 0; u < n; u += V::kLanes) {
      V value = f(g * units + u);
      for (int k = int(n) - u; k < V::kLanes; ++k) value.v[k] = 0;
      sum = sum + value;
    }
  }
  return sum;
}

template <class T, class From>
ADL_INLINE Simd<T> lane_sum(const From* values, int gates, int units, int64_t n) {
  return lane_total<T>(gates, units, n, [&](int k) { return Simd<T>::load(values + k); });
}

// Of the squares of what they differ from the mean.
template <class T, class From>
ADL_INLINE Simd<T> lane_squares(const From* values, int gates, int units, int64_t n, T mean) {
  return lane_total<T>(gates, units, n, [&](int k) {
    const Simd<T> d = Simd<T>::load(values + k) - Simd<T>(mean);
    return d * d;
  });
}

template <class T>
ADL_INLINE T norm_scale(T squares, int64_t count) {
  return T(1) / T(__builtin_sqrt(double(squares / T(count)) + kNormEps));
}

}  // namespace
}  // namespace adl
