// A team of threads. The one place that knows how they are made.
#pragma once

#include "common/cpu/barrier.h"

#if defined(ADL_STD_THREADS)  // for tests: tools that look for data races know nothing of OpenMP's
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <fenv.h>
#include <omp.h>
#endif

namespace adl {
namespace {

// work(index, threads) in every thread of a team of at most `most`, who meet at `barrier`. What the calling
// thread does with denormal numbers (torch.set_flush_denormal) they all do, else bits would depend on `most`.
template <class Work>
ADL_INLINE void in_team(int most, Barrier& barrier, const Work& work) {
  if (most == 1) return work(0, 1);
#if defined(ADL_STD_THREADS)
  barrier.threads = most;
  std::vector<std::thread> others;
  for (int index = 1; index < most; ++index) others.emplace_back(work, index, most);
  work(0, most);
  for (std::thread& thread : others) thread.join();
#elif defined(_OPENMP)
  fenv_t callers;
  fegetenv(&callers);
#pragma omp parallel num_threads(most)
  {
    const int threads = omp_get_num_threads();
#pragma omp single
    barrier.threads = threads;
    fenv_t own;
    fegetenv(&own);
    fesetenv(&callers);
    work(omp_get_thread_num(), threads);
    fesetenv(&own);
  }
#else
  work(0, 1);
#endif
}

}  // namespace
}  // namespace adl
