// One number on a GPU, for the cells of csrc/cells.
#pragma once

#include "common/cuda/device.cuh"

namespace adl {

template <class A>
struct Real {
  A v;

  __device__ __forceinline__ Real() {}
  __device__ __forceinline__ explicit Real(A x) : v(x) {}

  friend __device__ __forceinline__ Real operator+(Real a, Real b) { return Real(a.v + b.v); }
  friend __device__ __forceinline__ Real operator-(Real a, Real b) { return Real(a.v - b.v); }
  friend __device__ __forceinline__ Real operator*(Real a, Real b) { return Real(a.v * b.v); }

  friend __device__ __forceinline__ Real sigmoid(Real x) {
    if constexpr (sizeof(A) == sizeof(float))
      return Real(__fdividef(1.0f, 1.0f + __expf(-x.v)));
    else
      return Real(1.0 / (1.0 + exp(-x.v)));
  }
  friend __device__ __forceinline__ Real tanh(Real x) {
    if constexpr (sizeof(A) == sizeof(float))
      return Real(tanhf(x.v));
    else
      return Real(::tanh(x.v));
  }
  // NaN stays NaN.
  friend __device__ __forceinline__ Real relu(Real x) { return Real(x.v < A(0) ? A(0) : x.v); }
  friend __device__ __forceinline__ Real where_positive(Real x, Real y) { return Real(x.v <= A(0) ? A(0) : y.v); }
};

}  // namespace adl
