// A SIMD register as a number, from the compiler's vector types: one source for every instruction set.
//
// Everything in csrc/cpu that is compiled per instruction set lives in an unnamed namespace, so that no
// symbol of one set can be linked in place of another's.
#pragma once

#include <cstdint>
#include <cstring>

#define ADL_INLINE inline __attribute__((always_inline))

namespace adl {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Format;
template <>
struct Format<float> {
  typedef float Register __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  using Int = int32_t;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  static constexpr float kMin = -87.0f, kMax = 88.0f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};
template <>
struct Format<double> {
  typedef double Register __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Ints __attribute__((vector_size(kVectorBytes)));
  using Int = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kMin = -708.0, kMax = 709.0;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
};

template <class T>
struct Simd {
  static constexpr int kLanes = kVectorBytes / int(sizeof(T));
  using Register = typename Format<T>::Register;
  Register v;

  Simd() = default;
  ADL_INLINE Simd(Register value) : v(value) {}
  ADL_INLINE explicit Simd(T value) : v(value - Register{}) {}
  ADL_INLINE explicit Simd(int value) : Simd(T(value)) {}

  static ADL_INLINE Simd load(const T* p) {
    Simd r;
    std::memcpy(&r.v, p, sizeof(Register));
    return r;
  }
  // The first n lanes; the others are zero.
  static ADL_INLINE Simd load(const T* p, int64_t n) {
    if (n >= kLanes) return load(p);
    Simd r(T(0));
    for (int64_t k = 0; k < n; ++k) r.v[k] = p[k];
    return r;
  }
  ADL_INLINE void store(T* p) const { std::memcpy(p, &v, sizeof(Register)); }

  friend ADL_INLINE Simd operator+(Simd a, Simd b) { return a.v + b.v; }
  friend ADL_INLINE Simd operator-(Simd a, Simd b) { return a.v - b.v; }
  friend ADL_INLINE Simd operator*(Simd a, Simd b) { return a.v * b.v; }
  friend ADL_INLINE Simd operator/(Simd a, Simd b) { return a.v / b.v; }
};

template <class T>
constexpr T kInverseFactorial[] = {
    // 1 / (k + 1)!
    T(1),         T(1) / 2,      T(1) / 6,       T(1) / 24,       T(1) / 120,       T(1) / 720,         T(1) / 5040,
    T(1) / 40320, T(1) / 362880, T(1) / 3628800, T(1) / 39916800, T(1) / 479001600, T(1) / 6227020800.0};

// e^x - 1 = scale * part + (scale - 1) with scale a power of two: exact where x is small.
// A NaN fails both comparisons of the clamp and stays a NaN.
template <class T>
struct Exponential {
  Simd<T> part, scale;

  explicit ADL_INLINE Exponential(Simd<T> x) {
    using F = Format<T>;
    typename F::Register v = x.v;
    const typename F::Register low = Simd<T>(F::kMin).v, high = Simd<T>(F::kMax).v;
    v = v < low ? low : v;
    v = v > high ? high : v;
    const typename F::Register biased = v * T(1.4426950408889634) + F::kRound;
    const typename F::Register n = biased - F::kRound;
    const typename F::Register r = (v - n * F::kLn2High) - n * F::kLn2Low;
    // Taylor's series of e^r - 1 on |r| <= ln(2) / 2: the first term left out is far below an ulp.
    typename F::Register sum = Simd<T>(kInverseFactorial<T>[F::kTerms - 1]).v;
#pragma GCC unroll 16
    for (int k = F::kTerms - 2; k >= 0; --k) sum = sum * r + kInverseFactorial<T>[k];
    part = Simd<T>(sum * r);
    constexpr T kRound = F::kRound;
    typename F::Int round_bits;
    typename F::Ints bits;
    std::memcpy(&round_bits, &kRound, sizeof kRound);
    std::memcpy(&bits, &biased, sizeof bits);
    bits = (bits - round_bits + F::kBias) << F::kMantissa;
    std::memcpy(&scale.v, &bits, sizeof bits);
  }
};

template <class T>
ADL_INLINE Simd<T> sigmoid(Simd<T> x) {
  const Exponential<T> e(Simd<T>(0) - x);
  return Simd<T>(1) / (Simd<T>(1) + (e.scale * e.part + e.scale));
}

template <class T>
ADL_INLINE Simd<T> tanh(Simd<T> x) {
  const auto negative = x.v < Simd<T>(0).v;
  const Simd<T> magnitude(negative ? -x.v : x.v);
  const Exponential<T> e(Simd<T>(-2) * magnitude);
  const Simd<T> m = e.scale * e.part + (e.scale - Simd<T>(1));
  const Simd<T> r = (Simd<T>(0) - m) / (m + Simd<T>(2));
  return Simd<T>(negative ? -r.v : r.v);
}

template <class T>
ADL_INLINE Simd<T> relu(Simd<T> x) {
  return Simd<T>(x.v < Simd<T>(0).v ? Simd<T>(0).v : x.v);
}

// value where x > 0 (or x is a NaN, as torch has it), else 0.
template <class T>
ADL_INLINE Simd<T> where_positive(Simd<T> x, Simd<T> value) {
  return Simd<T>(x.v <= Simd<T>(0).v ? Simd<T>(0).v : value.v);
}

}  // namespace
}  // namespace adl
