// Repeats the loops of isa_ceilings.cpp and takes the best.
#include "common/cpu/ceilings.h"

#include <algorithm>
#include <chrono>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace adl {
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

template <class Mul>
double multiply_add() {
  ADL_RETURN_OF_ISA(Mul, multiply_add<Mul>(1 << 21))
}

double read(const void* from, int64_t bytes) { ADL_RETURN_OF_ISA(float, read(from, bytes)) }

}  // namespace

double fma_gflops(int threads, double seconds) { return highest_rate(threads, seconds, multiply_add<float>); }

double bf16_gflops(int threads, double seconds) { return highest_rate(threads, seconds, multiply_add<BFloat16>); }

double read_gbytes(int64_t bytes, int threads, double seconds) {
  const int64_t rounds = std::max<int64_t>(1, (int64_t(1) << 28) / std::max<int64_t>(1, bytes));
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
