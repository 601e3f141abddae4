// Sums over runs of taps, for rows of results: the inner loops of forward and of the gradient of the input.
#pragma once

#include "depthwise/cpu/tile.h"

namespace adl {
namespace {

enum class Storing { kStore, kAdd, kStream };  // the last past the caches

constexpr int kMostSums = kManyRegisters ? 14 : 6;     // results in a row whose sums are in registers
constexpr int kMostTogether = kManyRegisters ? 3 : 2;  // taps of a run that share what they see

template <int kRegisters, int kTaps, bool kWidth, class S, class X>
ADL_INLINE void add_run(const X* x, int64_t step, const S* w, typename Simd<S>::Register (&sum)[kRegisters]) {
  using V = Simd<S>;
  constexpr int kSeen = registers_seen(kRegisters, kTaps, kWidth);
  typename V::Register seen[kSeen];
#pragma GCC unroll 24
  for (int n = 0; n < kSeen; ++n) {
    seen[n] = V::load(x + n * (kWidth ? V::kLanes : step)).v;
    if constexpr (kTaps > 1) hold(seen[n]);
  }
#pragma GCC unroll 4
  for (int tap = 0; tap < kTaps; ++tap) {
    const V weight = kWidth ? V(w[tap]) : V::load(w + tap * V::kLanes);
#pragma GCC unroll 16
    for (int n = 0; n < kRegisters; ++n) sum[n] += weight.v * seen_by<kWidth, S>(seen, n, tap);
  }
}

// kRegisters sums side by side, each over all runs of the ranges.
template <int kRegisters, bool kWidth, class S, class X>
ADL_INLINE void sums(const X* x, int64_t step, const Run* runs, const Range* ranges, int count, const S* w,
                     Simd<S> init, S* to, int64_t apart, Storing how) {
  using V = Simd<S>;
  typename V::Register sum[kRegisters];
#pragma GCC unroll 16
  for (int n = 0; n < kRegisters; ++n) sum[n] = init.v;
  for (int k = 0; k < count; ++k) {
    for (const Run *run = runs + ranges[k].begin, *end = runs + ranges[k].end; run != end; ++run) {
      const X* from = x + run->x;
      const S* weights = w + run->w;
      if constexpr (kMostTogether == 3) {
        if (run->count == 3) {
          add_run<kRegisters, 3, kWidth>(from, step, weights, sum);
          continue;
        }
      }
      if (run->count == 2)
        add_run<kRegisters, 2, kWidth>(from, step, weights, sum);
      else
        add_run<kRegisters, 1, kWidth>(from, step, weights, sum);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kRegisters; ++n) {
    if (how == Storing::kAdd)
      (V::load(to + n * apart) + V(sum[n])).store(to + n * apart);
    else if (how == Storing::kStream)
      V(sum[n]).stream(to + n * apart);
    else
      V(sum[n]).store(to + n * apart);
  }
}

template <int kRegisters, bool kWidth, class S, class X>
ADL_INLINE void sums_of(int registers, const X* x, int64_t step, const Run* runs, const Range* ranges, int count,
                        const S* w, Simd<S> init, S* to, int64_t apart, Storing how) {
  if constexpr (kRegisters > 0) {
    if (registers == kRegisters) return sums<kRegisters, kWidth>(x, step, runs, ranges, count, w, init, to, apart, how);
    sums_of<kRegisters - 1, kWidth>(registers, x, step, runs, ranges, count, w, init, to, apart, how);
  }
}

// The same for any number of registers, in groups of about one size. Results lie `apart` from one to the next, what
// they see lies `step` apart. Long sums are made of parts, which keeps their error down.
template <bool kWidth, class S, class X>
ADL_NOINLINE void row_sums(int64_t registers, const X* x, int64_t step, const Run* runs, const Range* ranges, int count,
                           const S* w, Simd<S> init, S* to, int64_t apart, bool stream) {
  constexpr int64_t kLongest = 48;  // runs
  int64_t length = 0;
  for (int k = 0; k < count; ++k) length += ranges[k].end - ranges[k].begin;
  for (uint32_t left = registers, groups = blocks(registers, kMostSums); groups > 0; --groups) {
    const uint32_t some = (left + groups - 1) / groups;
    if (length <= kLongest) {
      sums_of<kMostSums, kWidth>(int(some), x, step, runs, ranges, count, w, init, to, apart,
                                 stream ? Storing::kStream : Storing::kStore);
    } else {
      Storing how = Storing::kStore;
      for (int k = 0; k < count; ++k) {
        for (Range part{ranges[k].begin, 0}; part.begin < ranges[k].end; part.begin = part.end) {
          part.end = min_of(part.begin + kLongest, ranges[k].end);
          sums_of<kMostSums, kWidth>(int(some), x, step, runs, &part, 1, w,
                                     how == Storing::kStore ? init : Simd<S>(S(0)), to, apart, how);
          how = Storing::kAdd;
        }
      }
    }
    x += some * step, to += some * apart, left -= some;
  }
}

// Rows of numbers [channels, n] to [blocks of lanes, n, kLanes], the numbers of a row in another order.
template <class S, class T>
void pack_per_channel(const T* from, int64_t channels, int64_t n, const int32_t* place, S* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  for (int64_t first = 0; first < channels; first += kLanes, to += n * kLanes) {
    for (int64_t k = 0; k < n; k += kLanes) {
      const int64_t count = min_of(n - k, kLanes);
      typename V::Register rows[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane)
        rows[lane] = first + lane < channels ? V::load(from + (first + lane) * n + k, count).v : V(S(0)).v;
      transpose<typename V::Register, typename Format<S>::Ints>(rows);
      for (int64_t i = 0; i < count; ++i) V(rows[i]).store(to + place[k + i] * kLanes);
    }
  }
}

// The runs of one row of the kernel, phase by phase.
struct RowRuns {
  Run* runs;       // [kernel], x and w from the beginning of the row
  int32_t* begin;  // [R + 1]

  void take(Arena& arena, const Axis& w) { runs = arena.take<Run>(w.kernel), begin = arena.take<int32_t>(w.R + 1); }
  int of(int64_t phase) const { return begin[phase + 1] - begin[phase]; }

  template <class S>
  void list(const Axis& w, const Packed<S>& packed, int most) {
    int32_t count = 0;
    for (int64_t r = 0; r < w.R; ++r) {
      begin[r] = count;
      for (int32_t n = w.begin[r]; n < w.begin[r + 1];) {
        const auto x = [&](int32_t k) { return int32_t(packed.at_column(w.offset[k] - w.low)); };
        int32_t length = 1;
        while (n + length < w.begin[r + 1] && x(n + length) == x(n) + length * packed.step) ++length;
        for (int32_t left = length, parts = (length + most - 1) / most; parts > 0; --parts) {
          const int32_t some = (left + parts - 1) / parts;
          runs[count++] = {x(n), n - w.begin[r], some};
          n += some, left -= some;
        }
      }
    }
    begin[w.R] = count;
  }
};

}  // namespace
}  // namespace adl
