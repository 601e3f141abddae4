// The float kernels; compiled once per instruction set.
#include "cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const Kernels<float>& kernels<float>() {
  static constexpr Kernels<float> kTable = table<float, float>();
  return kTable;
}

// Reads a buffer of floats; returns some of their sum, so that nothing can be left out.
double read(const void* from, int64_t bytes) {
  constexpr int kVectors = 8;
  typename Simd<float>::Register sum[kVectors] = {};
  const float* p = static_cast<const float*>(from);
  const float* end = p + bytes / sizeof(float);
  for (; p + kVectors * Simd<float>::kLanes <= end; p += kVectors * Simd<float>::kLanes) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sum[n] += Simd<float>::load(p + n * Simd<float>::kLanes).v;
  }
  for (int n = 1; n < kVectors; ++n) sum[0] += sum[n];
  return sum[0][0];
}

}  // namespace adl::ADL_ISA_NAMESPACE
