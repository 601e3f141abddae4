// Layer norm over the units of a row, whose blocks may belong to different threads: each block has its own mean and
// deviations, and those of the row are made from them in the order of the blocks, whoever computed them.
#pragma once

#include "cpu/plan.h"

namespace adl {
namespace {

constexpr double kNormEps = 1e-5;  // torch.nn.LayerNorm's

enum NormKind { kOfX, kOfH, kOfSecond, kOfC };  // what is normalised: products of x, of h, of r h; c

// Of some numbers: the mean, and the sum of squares of what they differ from it.
template <class T>
struct Moments {
  T mean, squares;
};

// What a normalised row was made with: (value - mean) * scale.
template <class T>
struct Norm {
  T mean, scale;
};

template <class T>
ADL_INLINE T sum_of(Simd<T> v) {
  T sum = 0;
  for (int k = 0; k < Simd<T>::kLanes; ++k) sum += v.v[k];
  return sum;
}

// Sum of f over the first n of U units of each of `gates` rows [gates, U]; f of a register or, past the last whole one,
// of a register with the units alone that there are.
template <int kUnits, class T, class F>
ADL_INLINE T sum_units(int gates, int64_t n, F f) {
  using V = Simd<T>;
  V sum(0);
  T rest = 0;
  for (int g = 0; g < gates; ++g) {
    for (int u = 0; u < n; u += V::kLanes) {
      const V value = f(g * kUnits + u);
      if (u + V::kLanes <= n)
        sum = sum + value;
      else
        for (int k = 0; k < n - u; ++k) rest += value.v[k];
    }
  }
  return sum_of(sum) + rest;
}

// Of the first n units of a block, values [gates, U] of T or of what tensors hold.
template <int kUnits, class T, class From>
ADL_INLINE Moments<T> moments(const From* values, int gates, int64_t n) {
  using V = Simd<T>;
  const T mean = sum_units<kUnits, T>(gates, n, [&](int k) { return V::load(values + k); }) / T(gates * n);
  const T squares = sum_units<kUnits, T>(gates, n, [&](int k) {
    const V d = V::load(values + k) - V(mean);
    return d * d;
  });
  return {mean, squares};
}

// Of a row of H units in J blocks; of(j) are a block's.
template <int kUnits, class T, class F>
ADL_INLINE Norm<T> norm_of(int64_t H, int gates, F of) {
  Moments<T> all = of(int64_t(0));
  T count = T(gates * at_most(kUnits, H));
  for (int64_t j = 1; j * kUnits < H; ++j) {
    const Moments<T> one = of(j);
    const T more = T(gates * at_most(kUnits, H - j * kUnits)), d = one.mean - all.mean;
    all.mean += d * more / (count + more);
    all.squares += one.squares + d * d * count * more / (count + more);
    count += more;
  }
  return {all.mean, T(1) / T(__builtin_sqrt(double(all.squares / count) + kNormEps))};
}

// The way back: of e = dL/d(normalised), the sums of e and of e times the normalised value, over a row.
template <class T>
struct NormSums {
  T plain, weighted;
};

template <class T, class F>
ADL_INLINE NormSums<T> sums_of(int64_t J, F of) {
  NormSums<T> all{0, 0};
  for (int64_t j = 0; j < J; ++j) all.plain += of(j).plain, all.weighted += of(j).weighted;
  return all;
}

}  // namespace
}  // namespace adl
