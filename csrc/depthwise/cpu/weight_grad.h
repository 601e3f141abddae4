// The gradient of a depthwise convolution's weight and bias.
#pragma once

#include "depthwise/cpu/correlation.h"

namespace adl {
namespace {

constexpr int kMostProducts = kManyRegisters ? 14 : 8;  // whose sums are in registers
constexpr int kMostInRun = kManyRegisters ? 7 : 4;      // taps of a run that share what they see
constexpr int kAtOnce = kManyRegisters ? 4 : 1;         // registers of g

// sum[m][n] += g x over some registers of g, for tap n of run m.
template <class S, int kRuns, int kTaps, int kRegisters, bool kWidth>
ADL_INLINE void add_products(const S* g, const S* x, const Run* runs, typename Simd<S>::Register (&sum)[kRuns][kTaps]) {
  using V = Simd<S>;
  typename V::Register of_g[kRegisters];
#pragma GCC unroll 8
  for (int n = 0; n < kRegisters; ++n) of_g[n] = V::load(g + n * V::kLanes).v;
#pragma GCC unroll 16
  for (int m = 0; m < kRuns; ++m) {
    constexpr int kSeen = registers_seen(kRegisters, kTaps, kWidth);
    typename V::Register seen[kSeen];
#pragma GCC unroll 16
    for (int n = 0; n < kSeen; ++n) {
      seen[n] = V::load(x + runs[m].x + n * V::kLanes).v;
      if constexpr (kTaps > 1) hold(seen[n]);
    }
#pragma GCC unroll 8
    for (int n = 0; n < kRegisters; ++n) {
#pragma GCC unroll 8
      for (int tap = 0; tap < kTaps; ++tap) sum[m][tap] += of_g[n] * seen_by<kWidth, S>(seen, n, tap);
    }
  }
}

// Rows of a tile of g and of x.
template <class S>
struct TileRows {
  const S *g, *x;
  int64_t rows, registers, g_row, x_row;
};

// The products of kRuns runs of kTaps taps, added to their totals. Summed apart first: long sums keep their error down.
template <class S, int kRuns, int kTaps, bool kWidth>
ADL_NOINLINE void products(TileRows<S> t, const Run* runs, S* totals) {
  using V = Simd<S>;
  typename V::Register sum[kRuns][kTaps] = {};
  for (int64_t row = 0; row < t.rows; ++row, t.g += t.g_row, t.x += t.x_row) {
    int64_t k = 0;
    for (; k + kAtOnce <= t.registers; k += kAtOnce)
      add_products<S, kRuns, kTaps, kAtOnce, kWidth>(t.g + k * V::kLanes, t.x + k * V::kLanes, runs, sum);
    for (; k < t.registers; ++k)
      add_products<S, kRuns, kTaps, 1, kWidth>(t.g + k * V::kLanes, t.x + k * V::kLanes, runs, sum);
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRuns; ++m) {
    for (int n = 0; n < kTaps; ++n) {
      S* total = totals + runs[m].w + n * V::kLanes;
      (V::load(total) + V(sum[m][n])).store(total);
    }
  }
}

template <class S, int kRuns, int kTaps, bool kWidth>
ADL_INLINE void products_of(int count, const TileRows<S>& t, const Run* runs, S* totals) {
  if constexpr (kRuns > 0) {
    if (count == kRuns) return products<S, kRuns, kTaps, kWidth>(t, runs, totals);
    products_of<S, kRuns - 1, kTaps, kWidth>(count, t, runs, totals);
  }
}

template <class S, int kTaps, bool kWidth>
ADL_INLINE void products_of_runs(int taps, int count, const TileRows<S>& t, const Run* runs, S* totals) {
  if constexpr (kTaps > 0) {
    if (taps == kTaps) return products_of<S, kMostProducts / kTaps, kTaps, kWidth>(count, t, runs, totals);
    products_of_runs<S, kTaps - 1, kWidth>(taps, count, t, runs, totals);
  }
}

// The same for any list of runs: neighbours of one length together.
template <class S, bool kWidth>
void all_products(const TileRows<S>& t, const Run* runs, const Run* end, S* totals) {
  while (runs < end) {
    int same = 1;
    while (runs + same < end && runs[same].count == runs->count) ++same;
    const int most = kMostProducts / runs->count, groups = (same + most - 1) / most;
    const int some = (same + groups - 1) / groups;
    products_of_runs<S, kMostInRun, kWidth>(runs->count, some, t, runs, totals);
    runs += some;
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

  Run* runs = nullptr;
  RowRuns row_runs;
  int run_count = 0;  // in a plane
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
    of_x = Packed<S>(how, h.reach(tiles.height), w.reach(tiles.width), h.S, w.S);
    // Across, both run on from row to row, over columns where g is zero.
    of_g = Packed<S>(how, tiles.height, across ? of_x.width : tiles.width, 1, 1);
    places = c.B * d.n * tiles.down * tiles.across;
    // With very many taps the sums of many pieces would be more work than what they add up.
    group = c.taps() < 100 ? blocks_together(c, channel_blocks(), tile_numbers() * sizeof(S)) : 1;
    groups = blocks(channel_blocks(), group);
    pieces = max_of(min_of(min_of(blocks(32, groups), places), c.B * c.out_size() / (16 * c.taps())), 1);
    threads = int(min_of(conv_threads(c, c.B * c.channels() * c.out_size()), groups * pieces));
  }

  int64_t channel_blocks() const { return across ? c.channels() : blocks(c.channels(), kLanes); }
  int64_t totals() const { return (c.taps() + 1) * kLanes; }  // of a block: the taps, and the bias
  int64_t tile_numbers() const { return c.kernel[0] * of_x.plane + of_g.plane; }
  int64_t workspace() const { return blocks(group * tile_numbers(), 64) * 64; }

  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    for (Axis& axis : axes) axis.take(arena);
    runs = arena.take<Run>(c.taps());
    row_runs.take(arena, axes[2]);
    sums = arena.take<S>(pieces * channel_blocks() * totals());
    workspaces = arena.take<S>(threads * workspace());
    return arena.used;
  }

  void run() {
    for (int k = 0; k < kSpatial; ++k) axes[k].list_taps(c, k, false, k == 2);
    const auto& [d, h, w] = axes;
    row_runs.list(w, of_x, kMostInRun);
    Run* run = runs;
    for (int64_t i = 0; i < d.kernel; ++i) {
      for (int n = 0; n < row_runs.begin[1]; ++n) {  // runs of one length are neighbours
        for (int64_t m = 0; m < h.kernel; ++m, ++run) {
          *run = row_runs.runs[n];
          run->x += int32_t(i * of_x.plane + of_x.at_row(h.offset[m] - h.low));
          run->w = int32_t(((i * h.kernel + m) * w.kernel + run->w) * kLanes);
        }
      }
    }
    run_count = int(h.kernel * row_runs.begin[1]);
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
    const Range mine{g * group, min_of((g + 1) * group, channel_blocks())}, some = share(places, piece, pieces);
    std::memset(sums_of(piece, mine.begin), 0, (mine.end - mine.begin) * totals() * sizeof(S));
    for (int64_t k = some.begin; k < some.end; ++k) tile(k, mine, sums_of(piece, mine.begin), index);
  }

  void tile(int64_t place, Range channel_blocks, S* to, int index) {
    const auto& [d, h, w] = axes;
    const int64_t i_w = place % tiles.across * tiles.width, i_h = place / tiles.across % tiles.down * tiles.height;
    const int64_t rest = place / tiles.across / tiles.down, b = rest / d.n, end = min_of(i_w + tiles.width, w.n);
    if (!c.documents) return part(b, channel_blocks, rest % d.n, i_h, {i_w, end}, {0, w.source}, to, index);
    for (int64_t at = i_w; at < end;) {
      const Range ids = document(c.documents + b * w.n, w.n, at, w.high - w.low, end);
      const int64_t next = min_of(ids.end, end);
      part(b, channel_blocks, rest % d.n, i_h, {at, next}, ids, to, index);
      at = next;
    }
  }

  void part(int64_t b, Range channel_blocks, int64_t i_d, int64_t i_h, Range columns, Range seen, S* to, int index) {
    const auto& [d, h, w] = axes;
    const int64_t step = across ? 1 : kLanes, first = channel_blocks.begin * step;
    const int64_t lanes = min_of(channel_blocks.end * step, c.channels()) - first;
    S *x = workspaces + index * workspace(), *g = x + d.kernel * of_x.plane;

    const int64_t g_line = w.n * g_strides.place, x_line = w.source * x_strides.place;
    pack(of_g, p.dy + b * g_strides.sample + i_d * h.n * g_line, g_strides, ChannelMap{1, first, 1}, lanes,
         tile_numbers(), h.n, g_line, i_h, columns.begin, columns.begin, columns.end, g);
    const Range depths = d.valid(i_d);
    for (int64_t n = depths.begin; n < depths.end; ++n) {
      const int64_t at = i_d * d.S + d.offset[n];
      pack(of_x, p.x + b * x_strides.sample + at * h.source * x_line, x_strides, ChannelMap{1, first, c.multiplier},
           lanes, tile_numbers(), h.source, x_line, h.first(i_h), w.first(columns.begin), seen.begin, seen.end,
           x + n * of_x.plane);
    }

    const int64_t lines = min_of(tiles.height, h.n - i_h), count = columns.end - columns.begin;
    const int64_t rows = across ? 1 : lines;
    const int64_t registers = across ? blocks((lines - 1) * of_g.width + count, kLanes) : count;
    const Run *from = runs + depths.begin * run_count, *end = runs + depths.end * run_count;
    for (int64_t k = channel_blocks.begin; k < channel_blocks.end; ++k) {
      if (p.dbias) add_all(g, rows, registers, of_g.row, to + c.taps() * kLanes);
      const TileRows<S> rows_of{g, x, rows, registers, of_g.row, of_x.row};
      across ? all_products<S, true>(rows_of, from, end, to) : all_products<S, false>(rows_of, from, end, to);
      g += tile_numbers(), x += tile_numbers(), to += totals();
    }
  }

  // The pieces in their order, then the lanes of a channel.
  void store(int64_t block) const {
    for (int64_t t = 0; t < c.taps() + (p.dbias != nullptr); ++t) {
      V sum = V::load(sums_of(0, block) + t * kLanes);
      for (int64_t piece = 1; piece < pieces; ++piece) sum = sum + V::load(sums_of(piece, block) + t * kLanes);
      // Columns of the kernel are in the order of their runs.
      const int64_t tap = t / c.kernel[2] * c.kernel[2] + axes[2].tap[t % c.kernel[2]];
      const int64_t step = t < c.taps() ? c.taps() : 1;
      T* to = t < c.taps() ? p.dweight + tap : p.dbias;
      if (across) {
        S total = 0;
        for (int lane = 0; lane < kLanes; ++lane) total += sum.v[lane];
        to[block * step] = convert<T>(total);
      } else {
        for (int64_t lane = 0; lane < min_of(kLanes, c.channels() - block * kLanes); ++lane)
          to[(block * kLanes + lane) * step] = convert<T>(S(sum.v[lane]));
      }
    }
  }
};

}  // namespace
}  // namespace adl
