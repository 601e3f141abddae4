// The kernels of one instruction set and number type, for the isa_*.cpp.
#pragma once

#include "common/cpu/kernels.h"
#include "recurrent/cpu/forward.h"
#include "recurrent/cpu/gradients.h"

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

template <class Mul>
double multiply_add(int64_t rounds) {
  using E = Element<Mul>;
  using V = Simd<Sum<Mul>>;
  constexpr int kChains = kVectorBytes == 64 ? 24 : 12;
  typename V::Register sum[kChains];
  for (int n = 0; n < kChains; ++n) sum[n] = V(n).v;  // equal chains would be merged into one
  typename Lanes<E>::Register b{};
  hold(b);
  for (int64_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 24
    for (int n = 0; n < kChains; ++n) Lanes<E>::multiply_add(sum[n], E{}, b);
  }
  for (int n = 0; n < kChains; ++n) asm volatile("" : : "m"(sum[n]));
  return 2.0 * kChains * V::kLanes * Operand<Mul>::kPack * double(rounds);
}

template <class Cell, class Io, class Mul>
constexpr CellKernels<Io> entry() {
  using Scan = ForwardScan<Cell, Io, Mul>;
  using Bptt = Gradients<Cell, Io, Mul>;
  return {scratch_of<Scan, Forward<Io>>, run<Scan, Forward<Io>>, scratch_of<Bptt, Backward<Io>>,
          run<Bptt, Backward<Io>>};
}

// Io: the numbers of the tensors; Mul: those that are multiplied.
template <class Io, class Mul>
constexpr Kernels<Io> table() {
#define ADL_ENTRY(Cell) entry<Cell, Io, Mul>(),
  return {{ADL_CELLS(ADL_ENTRY)}, multiply_add<Mul>};
#undef ADL_ENTRY
}

}  // namespace
}  // namespace adl

#define ADL_JOIN_(a, b) a##b
#define ADL_JOIN(a, b) ADL_JOIN_(a, b)
#define ADL_ISA_NAMESPACE ADL_JOIN(isa_, ADL_ISA)
