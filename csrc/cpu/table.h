// The kernels of one instruction set and number type, for isa_f32.cpp and isa_f64.cpp.
#pragma once

#include "cpu/forward.h"
#include "cpu/gradients.h"
#include "cpu/kernels.h"

namespace adl {
namespace {

template <class Scan, class Params>
int64_t scratch_of(const Params& params) {
  return Scan(params).take(nullptr);
}

template <class Scan, class Params>
void run(const Params& params, void* scratch) {
  Scan scan(params);
  scan.take(scratch);
  scan.run();
}

template <class T>
double multiply_add(int64_t rounds) {
  constexpr int kChains = kVectorBytes == 64 ? 24 : 12;
  typename Simd<T>::Register sum[kChains];
  for (int n = 0; n < kChains; ++n) sum[n] = Simd<T>(n).v;  // equal chains would be merged into one
  const typename Simd<T>::Register a = Simd<T>(T(1e-3)).v, b = Simd<T>(T(0.999)).v;
  for (int64_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 24
    for (int n = 0; n < kChains; ++n) sum[n] = sum[n] * b + a;
  }
  for (int n = 0; n < kChains; ++n) asm volatile("" : : "m"(sum[n]));
  return 2.0 * kChains * Simd<T>::kLanes * double(rounds);
}

template <class Cell, class T>
constexpr CellKernels<T> entry() {
  using Scan = ForwardScan<Cell, T>;
  using Bptt = Gradients<Cell, T>;
  return {scratch_of<Scan, Forward<T>>, run<Scan, Forward<T>>, scratch_of<Bptt, Backward<T>>, run<Bptt, Backward<T>>};
}

template <class T>
constexpr Kernels<T> table() {
#define ADL_ENTRY(Cell) entry<Cell, T>(),
  return {{ADL_CELLS(ADL_ENTRY)}, multiply_add<T>};
#undef ADL_ENTRY
}

}  // namespace
}  // namespace adl

#define ADL_JOIN_(a, b) a##b
#define ADL_JOIN(a, b) ADL_JOIN_(a, b)
#define ADL_ISA_NAMESPACE ADL_JOIN(isa_, ADL_ISA)
