// How a convolution is cut into work: every decision about lanes, tiles and threads, with its reason.
#pragma once

#include "depthwise/cpu/tile.h"

namespace adl {
namespace {

// How a convolution is cut into tiles of the result.
struct Tiles {
  int64_t height, width;  // of a tile
  int64_t down, across;   // tiles in a plane

  // Whole rows, of sources that are read where they lie: some strips for every thread.
  static Tiles of_rows(const Axis& h, const Axis& w, int64_t planes, int64_t threads) {
    Tiles t{};
    t.width = blocks(w.n, w.R) * w.R, t.across = 1;
    t.down = min_of(blocks(4 * threads, planes), h.n);
    t.height = blocks(blocks(h.n, t.down), h.R) * h.R;
    t.down = blocks(h.n, t.height);
    return t;
  }

  // So that what a tile packs stays near; rows and columns are multiples of the phases.
  static Tiles of(const Axis& h, const Axis& w, int64_t planes, int64_t column_bytes) {
    constexpr int64_t kBytes = 64 << 10, kMostColumns = 112, kLeastRows = 4;
    Tiles t;
    // Rows as long as can be, since memory is read fastest as it lies; the rows of the kernel are then in L1.
    const int64_t most = h.n == 1 ? max_of(kBytes / column_bytes / planes, kMostColumns)
                                  : kMostColumns * (64 / min_of(64, column_bytes));
    t.across = blocks(w.n, most);
    t.width = blocks(blocks(w.n, t.across), w.R) * w.R;
    t.across = blocks(w.n, t.width);
    const int64_t line = w.reach(t.width) * column_bytes * planes;
    int64_t rows = max_of(kBytes / line - (h.high - h.low), kLeastRows * h.S) / h.S * h.R;
    rows = min_of(max_of(rows, 1), h.n);
    t.down = blocks(h.n, rows);
    t.height = blocks(blocks(h.n, t.down), h.R) * h.R;
    t.down = blocks(h.n, t.height);
    return t;
  }
};

// Whether kernels read the source where it lies: whole registers of few channels, so that neighbouring columns are near
// each other, and so few taps that packing would cost more than it saves.
ADL_INLINE bool reads_in_place(const Conv& c, int lanes) {
  constexpr int64_t kMostTaps = 9, kMostRegisters = 4, kFar = int64_t(1) << 30;
  const int64_t reach = c.dilation[0] * c.kernel[0] * c.in[1] * c.in[2] * c.C;
  return c.channels_last && c.multiplier == 1 && !c.documents && c.C % lanes == 0 && c.C <= kMostRegisters * lanes &&
         c.taps() <= kMostTaps && reach < kFar;
}

// Where lanes go. Channels-last tensors have channels side by side anyhow; of the others, those are transposed that
// have enough taps to pay for it.
ADL_INLINE Lanewise lanewise(const Conv& c, int lanes) {
  constexpr int64_t kSmall = 400;
  if (c.channels_last) return Lanewise::kChannels;
  return (c.taps() >= 25 || c.out_size() <= kSmall) && c.channels() * 2 >= lanes ? Lanewise::kChannels
                                                                                 : Lanewise::kWidth;
}

// The document that holds a place, as far as the taps of results before `end` reach.
ADL_INLINE Range document(const int32_t* ids, int64_t length, int64_t at, int64_t reach, int64_t end) {
  Range r{at, at + 1};
  while (r.begin > max_of(at - reach, 0) && ids[r.begin - 1] == ids[at]) --r.begin;
  while (r.end < min_of(end + reach, length) && ids[r.end] == ids[at]) ++r.end;
  return r;
}

// Blocks of channels whose tiles, of so many bytes, are packed together: those that lie side by side, since memory is
// read fastest as it lies, as far as they fit L2.
ADL_INLINE int64_t blocks_together(const Conv& c, int64_t channel_blocks, int64_t bytes) {
  constexpr int64_t kMost = 8, kBytes = 256 << 10;
  if (!c.channels_last || c.multiplier > 1) return 1;
  return max_of(min_of(min_of(kMost, channel_blocks), kBytes / bytes), 1);
}

// Whether a result is stored past the caches: a large one has left them anyhow before it is read, and need not be read
// when it is written. Only whole lines can be.
template <class T>
ADL_INLINE bool goes_past_caches(const T* result, int64_t numbers, int64_t channels) {
  constexpr int64_t kLarge = 16 << 20;
  return __is_same(T, Sum<T>) && numbers * int64_t(sizeof(T)) > kLarge &&
         reinterpret_cast<uintptr_t>(result) % kVectorBytes == 0 && channels % Simd<Sum<T>>::kLanes == 0;
}

// A convolution that makes less than this many multiply-adds per thread, counting some for every result, is done
// before another thread has woken.
ADL_INLINE int conv_threads(const Conv& c, int64_t results) {
  const int64_t work = results * (c.taps() + 16);
  return int(max_of(min_of(c.threads, work >> 18), 1));
}

}  // namespace
}  // namespace adl
