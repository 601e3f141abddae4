// What every kernel is made of besides products: ranges, rows of numbers, scratch memory, and how it is called.
#pragma once

#include "common/cpu/gemm.h"
#include "common/cpu/parallel.h"

namespace adl {
namespace {

ADL_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
ADL_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t begin, end;
};

ADL_INLINE Range share(int64_t count, int64_t index, int64_t of) {
  return {count * index / of, count * (index + 1) / of};
}

// State rows are padded to whole panels, so that every panel may be written in full.
ADL_INLINE int64_t padded(int64_t size) { return blocks(size, kPanel) * kPanel; }

// The first n of a row as another kind of number, and zeros up to `width`.
template <class From, class To>
ADL_INLINE void convert_row(const From* from, int64_t n, To* to, int64_t width) {
  for (int64_t k = 0; k < n; ++k) to[k] = convert<To>(from[k]);
  for (int64_t k = n; k < width; ++k) to[k] = To{};
}

// Hands out parts of one scratch allocation; with a null base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base + used);
    used += blocks(count * int64_t(sizeof(T)), 64) * 64;
    return p;
  }
};

template <class T>
constexpr T kZeros[kPanel] = {};

// The two halves of a kernel: a Work lays out its scratch memory, and returns its size, in take(scratch). `more`: what
// it is made from besides.
template <class Work, class Params, class... More>
ADL_NOINLINE int64_t scratch_of(const Params& params, const More&... more) {
  return Work(params, more...).take(nullptr);
}

template <class Work, class Params, class... More>
ADL_NOINLINE void run(const Params& params, void* scratch, const More&... more) {
  Work work(params, more...);
  work.take(scratch);
  work.run();
}

}  // namespace
}  // namespace adl
