// A SIMD register as a number, from the compiler's vector types: one source for every instruction set.
//
// Everything that is compiled per instruction set lives in an unnamed namespace, or in ADL_ISA_NAMESPACE what is called
// from outside, so that no symbol of one set can be linked in place of another's.
#pragma once

#include "common/cpu/number.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define ADL_JOIN_(a, b) a##b
#define ADL_JOIN(a, b) ADL_JOIN_(a, b)
#define ADL_ISA_NAMESPACE ADL_JOIN(isa_, ADL_ISA)

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
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  // (2^f - 1) / f on |f| <= 1 / 2, interpolated at Chebyshev's nodes: 1.2e-8 off
  static constexpr float kPower[] = {0.693147188f,   0.240226508f,   0.0555035711f,
                                     0.00961808256f, 0.00133908634f, 0.000154531629f};
};
template <>
struct Format<double> {
  typedef double Register __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Ints __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  // the same, 2e-17 off
  static constexpr double kPower[] = {0.69314718055994529,    0.24022650695910097,    0.055504108664821597,
                                      0.0096181291076068882,  0.0013333558146416936,  0.0001540353044173605,
                                      1.5252733829836119e-05, 1.3215442587921689e-06, 1.0178062445845774e-07,
                                      7.0725859492692234e-09, 4.4549605981865186e-10};
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
  ADL_INLINE void store(T* p) const { std::memcpy(p, &v, sizeof(Register)); }

  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

  // Stores a whole line of the caches past them; end_stream() before other threads read it.
  ADL_INLINE void stream(T* p) const {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), __m512i(v));
#else
    store(p);
#endif
  }
  static ADL_INLINE void end_stream() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
  }

  static ADL_INLINE Simd load(const BFloat16* p) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    return widened(halves);
  }
  static ADL_INLINE Simd widened(Halves halves) {
    const Words words = __builtin_convertvector(halves, Words) << 16;
    Simd r;
    std::memcpy(&r.v, &words, sizeof words);
    return r;
  }
  ADL_INLINE void store(BFloat16* p) const {
#if defined(__AVX512BF16__)
    const __m256bh halves = _mm512_cvtneps_pbh(__m512(v));
    std::memcpy(p, &halves, sizeof halves);
#else
    Words bits;
    std::memcpy(&bits, &v, sizeof bits);
    const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Words nan = Words(v != v);
    const Halves halves = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), Halves);
    std::memcpy(p, &halves, sizeof halves);
#endif
  }

  static ADL_INLINE Simd load(const uint8_t* p) {
    typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
    Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return Simd(__builtin_convertvector(bytes, Register));
  }

  // The first n lanes; those loaded beyond are zero.
  template <class From>
  static ADL_INLINE Simd load(const From* p, int64_t n) {
    if (n >= kLanes) return load(p);
#if defined(__AVX512F__)
    const uint32_t some = n > 0 ? (1u << n) - 1 : 0;  // there may be less than none
    if constexpr (__is_same(From, float) && __is_same(T, float))
      return Register(_mm512_maskz_loadu_ps(__mmask16(some), p));
    if constexpr (__is_same(From, double) && __is_same(T, double))
      return Register(_mm512_maskz_loadu_pd(__mmask8(some), p));
    if constexpr (__is_same(From, BFloat16)) return widened(Halves(_mm256_maskz_loadu_epi16(__mmask16(some), p)));
#endif
    Simd r(T(0));
    for (int64_t k = 0; k < n; ++k) r.v[k] = convert<T>(p[k]);
    return r;
  }
  template <class To>
  ADL_INLINE void store(To* p, int64_t n) const {
    if (n >= kLanes) return store(p);
#if defined(__AVX512F__)
    const uint32_t some = n > 0 ? (1u << n) - 1 : 0;  // there may be less than none
    if constexpr (__is_same(To, float) && __is_same(T, float))
      return _mm512_mask_storeu_ps(p, __mmask16(some), __m512(v));
    if constexpr (__is_same(To, double) && __is_same(T, double))
      return _mm512_mask_storeu_pd(p, __mmask8(some), __m512d(v));
    if constexpr (__is_same(To, BFloat16)) {
      BFloat16 all[kLanes];
      store(all);
      return _mm256_mask_storeu_epi16(p, __mmask16(some), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(all)));
    }
#endif
    for (int64_t k = 0; k < n; ++k) p[k] = convert<To>(v[k]);
  }

  friend ADL_INLINE Simd operator+(Simd a, Simd b) { return a.v + b.v; }
  friend ADL_INLINE Simd operator-(Simd a, Simd b) { return a.v - b.v; }
  friend ADL_INLINE Simd operator*(Simd a, Simd b) { return a.v * b.v; }
  friend ADL_INLINE Simd operator/(Simd a, Simd b) { return a.v / b.v; }
};

// Element n of each row to row n, lanes x lanes. Every stage interleaves the rows of the two halves: the highest bit
// of the row's index becomes the lowest of the column's, and so on around.
template <class Register, class Ints, int kLanes>
ADL_INLINE void transpose(Register (&rows)[kLanes]) {
  Ints low, high;
  for (int k = 0; k < kLanes; ++k) {
    low[k] = k / 2 + k % 2 * kLanes;
    high[k] = low[k] + kLanes / 2;
  }
#pragma GCC unroll 4
  for (int stage = 1; stage < kLanes; stage *= 2) {
    Register next[kLanes];
#pragma GCC unroll 8
    for (int k = 0; k < kLanes / 2; ++k) {
      const Register a = rows[k], b = rows[k + kLanes / 2];
#if defined(__clang__)
      for (int n = 0; n < kLanes; ++n) {
        next[2 * k][n] = low[n] < kLanes ? a[low[n]] : b[low[n] - kLanes];
        next[2 * k + 1][n] = high[n] < kLanes ? a[high[n]] : b[high[n] - kLanes];
      }
#else
      next[2 * k] = __builtin_shuffle(a, b, low);
      next[2 * k + 1] = __builtin_shuffle(a, b, high);
#endif
    }
#pragma GCC unroll 16
    for (int k = 0; k < kLanes; ++k) rows[k] = next[k];
  }
}

// The larger and the smaller of a bound and x; a NaN in x stays.
template <class T>
ADL_INLINE Simd<T> clamp(Simd<T> x, T low, T high) {
  const Simd<T> least(low), most(high);
#if defined(__AVX512F__)  // compilers make comparisons and moves under masks of the general form
  if constexpr (sizeof(T) == sizeof(float))
    return Simd<T>(
        typename Simd<T>::Register(_mm512_min_ps(__m512(most.v), _mm512_max_ps(__m512(least.v), __m512(x.v)))));
#endif
  x.v = least.v > x.v ? least.v : x.v;
  return Simd<T>(most.v < x.v ? most.v : x.v);
}

// 2^t = 2^n 2^f with n an integer, |f| <= 1 / 2.
template <class T>
struct PowerOfTwo {
  using V = Simd<T>;
  using F = Format<T>;
  V f, scale;  // scale = 2^n

  explicit ADL_INLINE PowerOfTwo(V t) {
    t = clamp(t, T(2 - F::kBias), T(F::kBias - 2));
    const typename F::Register biased = t.v + F::kRound;  // n in its lowest bits
    f = t - V(biased - F::kRound);
    typename F::Ints bits;
    std::memcpy(&bits, &biased, sizeof bits);
    bits = (bits + F::kBias) << F::kMantissa;  // all above the lowest bits is shifted out
    std::memcpy(&scale.v, &bits, sizeof bits);
  }

  // 2^f - 1
  ADL_INLINE V part() const {
    constexpr int kTerms = sizeof F::kPower / sizeof(T);
    V sum(F::kPower[kTerms - 1]);
#pragma GCC unroll 16
    for (int k = kTerms - 2; k >= 0; --k) sum = sum * f + V(F::kPower[k]);
    return sum * f;
  }
};

constexpr double kLog2E = 1.442695040888963407359924681002;

template <class T>
ADL_INLINE Simd<T> sigmoid(Simd<T> x) {
  const PowerOfTwo<T> e(x * Simd<T>(T(-kLog2E)));
  return Simd<T>(1) / (e.scale * e.part() + (e.scale + Simd<T>(1)));
}

// m / (m + 2) with m = e^2x - 1: exact where x is small.
template <class T>
ADL_INLINE Simd<T> tanh(Simd<T> x) {
  const PowerOfTwo<T> e(x * Simd<T>(T(2 * kLog2E)));
  const Simd<T> m = e.scale * e.part() + (e.scale - Simd<T>(1));
  return m / (m + Simd<T>(2));
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
