// The gradient of a depthwise convolution's weight and bias.
#pragma once

#include "cpu/conv.h"

namespace adl {
namespace {

// totals[n] += sum over a tile of g x[n], kTaps products at once. Summed apart first: long sums keep their error down.
template <class S, int kTaps>
ADL_INLINE void products(const S* g, const S* x, const Tap* taps, int64_t rows, int64_t registers, int64_t g_row,
                         int64_t x_row, S* totals) {
  using V = Simd<S>;
  typename V::Register sum[kTaps] = {};
  for (int64_t row = 0; row < rows; ++row, g += g_row, x += x_row) {
    for (int64_t k = 0; k < registers; ++k) {
      const V of_g = V::load(g + k * V::kLanes);
      const S* at = x + k * V::kLanes;
#pragma GCC unroll 16
      for (int n = 0; n < kTaps; ++n) sum[n] += of_g.v * V::load(at + taps[n].x).v;
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kTaps; ++n) (V::load(totals + n * V::kLanes) + V(sum[n])).store(totals + n * V::kLanes);
}

template <class S, int kTaps>
ADL_INLINE void products_of(int count, const S* g, const S* x, const Tap* taps, int64_t rows, int64_t registers,
                            int64_t g_row, int64_t x_row, S* totals) {
  if constexpr (kTaps > 0) {
    if (count == kTaps) return products<S, kTaps>(g, x, taps, rows, registers, g_row, x_row, totals);
    products_of<S, kTaps - 1>(count, g, x, taps, rows, registers, g_row, x_row, totals);
  }
}

// The same for any number of taps, in groups of about one size.
template <class S>
ADL_NOINLINE void all_products(int64_t taps, const S* g, const S* x, const Tap* tap, int64_t rows, int64_t registers,
                               int64_t g_row, int64_t x_row, S* totals) {
  constexpr int kMost = 12;  // with one of g and one of x they fit 16 registers
  const int64_t groups = blocks(taps, kMost);
  for (int64_t k = 0; k < groups; ++k) {
    const int64_t first = taps * k / groups, next = taps * (k + 1) / groups;
    products_of<S, kMost>(int(next - first), g, x, tap + first, rows, registers, g_row, x_row,
                          totals + first * Simd<S>::kLanes);
  }
}

template <class S>
ADL_INLINE void add_all(const S* g, int64_t rows, int64_t registers, int64_t g_row, S* total) {
  using V = Simd<S>;
  V sum(S(0));
  for (int64_t row = 0; row < rows; ++row, g += g_row)
    for (int64_t k = 0; k < registers; ++k) sum = sum + V::load(g + k * V::kLanes);
  (V::load(total) + sum).store(total);
}

template <class T>
struct WeightGradient {
  using S = Sum<T>;
  using V = Simd<S>;
  static constexpr int kLanes = V::kLanes;

  const ConvWeightGrad<T>& p;
  const Conv& c;
  bool across;
  Axis axes[kSpatial];
  Tiles tiles;
  Packed<S> of_x, of_g;
  Strides x_strides, g_strides;
  int64_t places;         // tiles of all samples
  int64_t group, groups;  // blocks of channels that are done tile by tile, one after the other
  int64_t pieces;         // of the tiles, each with sums of its own, whatever the number of threads
  int threads;

  Tap* taps = nullptr;
  S *sums = nullptr, *workspaces = nullptr;

  explicit WeightGradient(const ConvWeightGrad<T>& params)
      : p(params),
        c(params.conv),
        across(lanewise(c, kLanes) == Lanewise::kWidth),
        axes{Axis::forward(c, 0), Axis::forward(c, 1), Axis::forward(c, 2)},
        of_x(),
        of_g(),
        x_strides(c.C, c.in_size(), c.channels_last),
        g_strides(c.channels(), c.out_size(), c.channels_last) {
    const auto& [d, h, w] = axes;
    const Lanewise how = across ? Lanewise::kWidth : Lanewise::kChannels;
    tiles = Tiles::of(h, w, c.kernel[0], (across ? 1 : kLanes) * 2 * sizeof(S));
    of_x = Packed<S>(how, h.reach(tiles.height), w.reach(tiles.width), w.S, tiles.width);
    of_g = Packed<S>(how, tiles.height, tiles.width, 1, tiles.width);
    places = c.B * d.n * tiles.down * tiles.across;
    // Channels that lie side by side come from memory together; with many taps that matters little.
    group = c.channels_last && c.taps() < 25 ? at_most(8, channel_blocks()) : 1;
    groups = blocks(channel_blocks(), group);
    pieces = at_least(at_most(at_most(blocks(32, groups), places), c.B * c.out_size() / (16 * c.taps())), 1);
    threads = int(at_most(conv_threads(c, c.B * c.channels() * c.out_size()), groups * pieces));
  }

  int64_t channel_blocks() const { return across ? c.channels() : blocks(c.channels(), kLanes); }
  int64_t totals() const { return (c.taps() + 1) * kLanes; }  // of a block: the taps, and the bias
  int64_t workspace() const { return blocks(c.kernel[0] * of_x.plane + of_g.plane, 64) * 64; }

  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    for (Axis& axis : axes) axis.take(arena);
    taps = arena.take<Tap>(c.taps());
    sums = arena.take<S>(pieces * channel_blocks() * totals());
    workspaces = arena.take<S>(threads * workspace());
    return arena.used;
  }

  void run() {
    for (int k = 0; k < kSpatial; ++k) axes[k].list_taps(c, k, false);
    const auto& [d, h, w] = axes;
    Tap* tap = taps;
    for (int i = 0; i < d.kernel; ++i)
      for (int m = 0; m < h.kernel; ++m)
        for (int n = 0; n < w.kernel; ++n)
          *tap++ = {int32_t(i * of_x.plane + (h.offset[m] - h.low) * of_x.row + of_x.slot(w.offset[n] - w.low)), 0};
    Barrier barrier;
    in_team(threads, barrier, [&](int index, int team) {
      const Range mine = share(groups * pieces, index, team);
      for (int64_t k = mine.begin; k < mine.end; ++k) sum_piece(k % groups, k / groups, index);
      barrier.meet();
      const Range blocks_of = share(channel_blocks(), index, team);
      for (int64_t block = blocks_of.begin; block < blocks_of.end; ++block) store(block);
    });
  }

  S* sums_of(int64_t piece, int64_t block) const { return sums + (piece * channel_blocks() + block) * totals(); }

  void sum_piece(int64_t g, int64_t piece, int index) {
    const Range mine{g * group, at_most((g + 1) * group, channel_blocks())}, some = share(places, piece, pieces);
    std::memset(sums_of(piece, mine.begin), 0, (mine.end - mine.begin) * totals() * sizeof(S));
    for (int64_t k = some.begin; k < some.end; ++k)
      for (int64_t block = mine.begin; block < mine.end; ++block) tile(k, block, sums_of(piece, block), index);
  }

  void tile(int64_t place, int64_t block, S* to, int index) {
    const auto& [d, h, w] = axes;
    const int64_t i_w = place % tiles.across * tiles.width, i_h = place / tiles.across % tiles.down * tiles.height;
    const int64_t rest = place / tiles.across / tiles.down, b = rest / d.n, end = at_most(i_w + tiles.width, w.n);
    if (!c.documents) return part(b, block, rest % d.n, i_h, {i_w, end}, {0, w.source}, to, index);
    for (int64_t at = i_w; at < end;) {
      const Range ids = document(c.documents + b * w.n, w.n, at, w.high - w.low, end);
      const int64_t next = at_most(ids.end, end);
      part(b, block, rest % d.n, i_h, {at, next}, ids, to, index);
      at = next;
    }
  }

  void part(int64_t b, int64_t block, int64_t i_d, int64_t i_h, Range columns, Range seen, S* to, int index) {
    const auto& [d, h, w] = axes;
    const int64_t step = across ? 1 : kLanes, first = block * step, lanes = at_most(step, c.channels() - first);
    const int64_t rows = at_most(tiles.height, h.n - i_h), count = columns.end - columns.begin;
    const int64_t registers = across ? blocks(count, kLanes) : count;
    S *const x = workspaces + index * workspace(), *const g = x + d.kernel * of_x.plane;

    const int64_t g_line = w.n * g_strides.place, x_line = w.source * x_strides.place;
    pack(of_g, p.dy + b * g_strides.sample + i_d * h.n * g_line, g_strides, ChannelMap{1, first, 1}, lanes, h.n, g_line,
         i_h, columns.begin, columns.begin, columns.end, g);
    if (p.dbias) add_all(g, rows, registers, of_g.row, to + c.taps() * kLanes);

    const Range depths = d.valid(i_d);
    for (int64_t n = depths.begin; n < depths.end; ++n) {
      const int64_t at = i_d * d.S + d.offset[n];
      pack(of_x, p.x + b * x_strides.sample + at * h.source * x_line, x_strides, ChannelMap{1, first, c.multiplier},
           lanes, h.source, x_line, h.first(i_h), w.first(columns.begin), seen.begin, seen.end, x + n * of_x.plane);
    }
    const int64_t per_plane = h.kernel * w.kernel, from = depths.begin * per_plane;
    all_products((depths.end - depths.begin) * per_plane, g, x, taps + from, rows, registers, of_g.row, h.S * of_x.row,
                 to + from * kLanes);
  }

  // The pieces in their order, then the lanes of a channel.
  void store(int64_t block) const {
    for (int64_t t = 0; t < c.taps() + (p.dbias != nullptr); ++t) {
      V sum = V::load(sums_of(0, block) + t * kLanes);
      for (int64_t piece = 1; piece < pieces; ++piece) sum = sum + V::load(sums_of(piece, block) + t * kLanes);
      const int64_t step = t < c.taps() ? c.taps() : 1;
      T* to = t < c.taps() ? p.dweight + t : p.dbias;
      if (across) {
        S total = 0;
        for (int lane = 0; lane < kLanes; ++lane) total += sum.v[lane];
        to[block * step] = convert<T>(total);
      } else {
        for (int64_t lane = 0; lane < at_most(kLanes, c.channels() - block * kLanes); ++lane)
          to[(block * kLanes + lane) * step] = convert<T>(S(sum.v[lane]));
      }
    }
  }
};

}  // namespace
}  // namespace adl
