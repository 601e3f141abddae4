// The numbers that tensors hold and products multiply.
#pragma once

#include <cstdint>
#include <cstring>

#define ADL_INLINE inline __attribute__((always_inline))
#define ADL_NOINLINE __attribute__((noinline, noclone))  // where copies would only take time to compile

namespace adl {

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

// Two BFloat16 that a product takes together, the first in the lower half.
typedef uint32_t PairBits __attribute__((may_alias, aligned(2)));
struct Pair {
  PairBits bits;
};

namespace {

constexpr int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

template <class To, class From>
ADL_INLINE To convert(From value) {
  if constexpr (__is_same(To, From)) {
    return value;
  } else if constexpr (__is_same(From, uint8_t)) {
    return To(value);
  } else if constexpr (__is_same(From, BFloat16)) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
  } else {  // to the nearest, ties to even
    static_assert(__is_same(To, BFloat16) && __is_same(From, float));
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {uint16_t(value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  }
}

// What a product of operands of this type works on: its elements and the type of its sums.
template <class T>
struct Operand {
  using Element = T;
  using Sum = T;
  static constexpr int kPack = 1;  // operands per element
  static ADL_INLINE T element(T first, T) { return first; }
};
template <>
struct Operand<BFloat16> {
  using Element = Pair;
  using Sum = float;
  static constexpr int kPack = 2;
  static ADL_INLINE Pair element(BFloat16 first, BFloat16 second) {
    return {uint32_t(first.bits) | uint32_t(second.bits) << 16};
  }
};

}  // namespace
}  // namespace adl
