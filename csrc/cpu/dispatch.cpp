// Picks the widest instruction set that this build holds and this CPU runs. ADL_ISA=default|avx2|avx512
// asks for a narrower one.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace adl {
namespace {

enum Isa { kDefault, kAvx2, kAvx512 };
constexpr const char* kNames[] = {"default", "avx2", "avx512"};

Isa widest() {
#if defined(ADL_ISA_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return kAvx512;
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

template <class T>
const Kernels<T>& kernels() {
  switch (chosen()) {
#if defined(ADL_ISA_AVX512)
    case kAvx512:
      return isa_avx512::kernels<T>();
#endif
#if defined(ADL_ISA_AVX2)
    case kAvx2:
      return isa_avx2::kernels<T>();
#endif
    default:
      return isa_default::kernels<T>();
  }
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

double fma_gflops(int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto multiply_add = kernels<float>().multiply_add;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  constexpr int64_t kRounds = 1 << 21;  // some milliseconds: a shorter sample can catch a jump of the clock
  double best = 0;
  do {
    double operations = 0;
    const auto start = Clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : operations)
    operations += multiply_add(kRounds);
    const double rate = operations / std::chrono::duration<double>(Clock::now() - start).count() / 1e9;
    best = rate > best ? rate : best;
  } while (Clock::now() < end);
  return best;
}

}  // namespace adl
