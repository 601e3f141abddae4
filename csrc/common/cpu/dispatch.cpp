// Picks the widest instruction set that this build holds and this CPU runs. ADL_ISA=default|avx2|avx512
// asks for a narrower one.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "common/cpu/kernels.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace adl {
namespace {

enum Isa { kDefault, kAvx2, kAvx512, kAvx512Bf16 };
constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512bf16"};

Isa widest() {
#if defined(ADL_ISA_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
#endif
#if defined(ADL_ISA_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
  return kDefault;
}

Isa choose() {
  const Isa best = widest();
  const char* asked = std::getenv("ADL_ISA");
  if (!asked || !*asked) return best;
  for (int isa = kDefault; isa <= best; ++isa)
    if (!std::strcmp(asked, kNames[isa])) return Isa(isa);
  throw std::runtime_error(std::string("ADL_ISA must be one that this build and this CPU have, at most ") +
                           kNames[best] + ", got " + asked);
}

Isa chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

const char* instruction_set() { return kNames[chosen()]; }

// The function of the set chosen; the last set has but functions for BFloat16.
#if defined(ADL_ISA_AVX512)
#define ADL_CASES_AVX512(f)                                                   \
  case kAvx512Bf16:                                                           \
    if constexpr (std::is_same_v<T, BFloat16>) return isa_avx512bf16::f<T>(); \
    [[fallthrough]];                                                          \
  case kAvx512:                                                               \
    return isa_avx512::f<T>();
#else
#define ADL_CASES_AVX512(f)
#endif
#if defined(ADL_ISA_AVX2)
#define ADL_CASES_AVX2(f) \
  case kAvx2:             \
    return isa_avx2::f<T>();
#else
#define ADL_CASES_AVX2(f)
#endif
#define ADL_CHOOSE(f) \
  switch (chosen()) { ADL_CASES_AVX512(f) ADL_CASES_AVX2(f) default : return isa_default::f<T>(); }

template <class T>
const Kernels<T>& kernels() {
  ADL_CHOOSE(kernels)
}

template <class T>
const ConvKernels<T>& conv_kernels() {
  ADL_CHOOSE(conv_kernels)
}

template const ConvKernels<float>& conv_kernels<float>();
template const ConvKernels<double>& conv_kernels<double>();
template const ConvKernels<BFloat16>& conv_kernels<BFloat16>();
template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<BFloat16>& kernels<BFloat16>();

const Kernels<float>* rounding_kernels() {
#if defined(ADL_ISA_AVX512)
  if (chosen() == kAvx512Bf16) return &isa_avx512bf16::rounding();
#endif
  return nullptr;
}

namespace {

// Repeats work() on every thread for some time; returns the highest rate of what it counts, in 1e9 a second.
// The rounds of a work() last milliseconds: a shorter sample can catch a jump of the clock.
template <class Work>
double highest_rate(int threads, double seconds, Work work) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  double best = 0;
  do {
    double count = 0;
    const auto start = Clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : count)
    count += work();
    const double rate = count / std::chrono::duration<double>(Clock::now() - start).count() / 1e9;
    best = rate > best ? rate : best;
  } while (Clock::now() < end);
  return best;
}

}  // namespace

double fma_gflops(int threads, double seconds) {
  return highest_rate(threads, seconds, [] { return kernels<float>().multiply_add(1 << 21); });
}

double bf16_gflops(int threads, double seconds) {
  return highest_rate(threads, seconds, [] { return kernels<BFloat16>().multiply_add(1 << 21); });
}

// ADL_OF_ISA(f): the function of the set chosen, of those that there are for float.
#if defined(ADL_ISA_AVX512)
#define ADL_OF_AVX512(f) chosen() >= kAvx512 ? isa_avx512::f:
#else
#define ADL_OF_AVX512(f)
#endif
#if defined(ADL_ISA_AVX2)
#define ADL_OF_AVX2(f) chosen() >= kAvx2 ? isa_avx2::f:
#else
#define ADL_OF_AVX2(f)
#endif
#define ADL_OF_ISA(f) (ADL_OF_AVX512(f) ADL_OF_AVX2(f) isa_default::f)

void draw(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, uint64_t threshold, uint8_t* to) {
  ADL_OF_ISA(draw)(seed, stream, block, count, threshold, to);
}

double read_gbytes(int64_t bytes, int threads, double seconds) {
  const int64_t rounds = std::max<int64_t>(1, (int64_t(1) << 28) / std::max<int64_t>(1, bytes));
  const auto read = ADL_OF_ISA(read);
  const std::vector<float> buffer((threads * bytes + sizeof(float) - 1) / sizeof(float));
  return highest_rate(threads, seconds, [&] {
#if defined(_OPENMP)
    const int index = omp_get_thread_num();
#else
    const int index = 0;
#endif
    for (int64_t k = 0; k < rounds; ++k) {
      volatile double sum = read(buffer.data() + index * (bytes / sizeof(float)), bytes);
      (void)sum;
    }
    return double(rounds * bytes);
  });
}

}  // namespace adl
