// The loops whose speed is the ceiling of every other; compiled once per instruction set.
#include "common/cpu/ceilings.h"
#include "common/cpu/gemm.h"

namespace adl::ADL_ISA_NAMESPACE {

namespace {

template <class Mul>
double chains(int64_t rounds) {
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

}  // namespace

template <>
double multiply_add<float>(int64_t rounds) {
  return chains<float>(rounds);
}
template <>
double multiply_add<BFloat16>(int64_t rounds) {
  return chains<BFloat16>(rounds);
}

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
