// Depthwise convolution and the gradient of its input: one correlation, over taps that Axis lists.
#pragma once

#include "cpu/conv_tile.h"

namespace adl {
namespace {

// A tap reads the tile, and its weight, so many numbers on.
struct Tap {
  int32_t x, w;
};

// kRegisters sums side by side, each over all taps of the ranges.
template <class S, int kRegisters, bool kWidth>
ADL_INLINE void sums(const S* x, const Tap* taps, const Range* ranges, int count, const S* w, Simd<S> init, S* to,
                     int64_t apart) {
  using V = Simd<S>;
  typename V::Register sum[kRegisters];
#pragma GCC unroll 16
  for (int n = 0; n < kRegisters; ++n) sum[n] = init.v;
  for (int k = 0; k < count; ++k) {
    for (const Tap *tap = taps + ranges[k].begin, *end = taps + ranges[k].end; tap != end; ++tap) {
      const S* from = x + tap->x;
      const V weight = kWidth ? V(w[tap->w]) : V::load(w + tap->w);
#pragma GCC unroll 16
      for (int n = 0; n < kRegisters; ++n) sum[n] += weight.v * V::load(from + n * V::kLanes).v;
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kRegisters; ++n) V(sum[n]).store(to + n * apart);
}

template <class S, int kRegisters, bool kWidth>
ADL_INLINE void sums_of(int registers, const S* x, const Tap* taps, const Range* ranges, int count, const S* w,
                        Simd<S> init, S* to, int64_t apart) {
  if constexpr (kRegisters > 0) {
    if (registers == kRegisters) return sums<S, kRegisters, kWidth>(x, taps, ranges, count, w, init, to, apart);
    sums_of<S, kRegisters - 1, kWidth>(registers, x, taps, ranges, count, w, init, to, apart);
  }
}

// The same for any number of registers, in groups of about one size.
template <class S, bool kWidth>
ADL_NOINLINE void row_sums(int64_t registers, const S* x, const Tap* taps, const Range* ranges, int count, const S* w,
                           Simd<S> init, S* to, int64_t apart) {
  constexpr int kMost = kVectorBytes == 64 ? 16 : 12;  // with a weight and one of x they fit the registers
  const int64_t groups = blocks(registers, kMost);
  for (int64_t k = 0; k < groups; ++k) {
    const int64_t first = registers * k / groups, next = registers * (k + 1) / groups;
    sums_of<S, kMost, kWidth>(int(next - first), x + first * Simd<S>::kLanes, taps, ranges, count, w, init,
                              to + first * apart, apart);
  }
}

// How a convolution is cut into tiles of the result.
struct Tiles {
  int64_t height, width;  // of a tile
  int64_t down, across;   // tiles in a plane

  // So that what a tile packs stays in L1 or close to it; rows and columns are multiples of the phases.
  static Tiles of(const Axis& h, const Axis& w, int64_t planes, int64_t column_bytes) {
    constexpr int64_t kBytes = 48 << 10, kMostColumns = 64, kLeastRows = 4;
    Tiles t;
    // One row of one dimension: as long as fits. Of two dimensions: nearly square, where there is less to pack twice.
    const int64_t most = h.n == 1 ? at_least(kBytes / column_bytes / planes, kMostColumns)
                                  : kMostColumns * (64 / at_most(64, column_bytes));
    t.across = blocks(w.n, most);
    t.width = blocks(blocks(w.n, t.across), w.R) * w.R;
    t.across = blocks(w.n, t.width);
    const int64_t line = w.reach(t.width) * column_bytes * planes;
    int64_t rows = at_least(kBytes / line - (h.high - h.low), kLeastRows * h.S) / h.S * h.R;
    rows = at_most(at_least(rows, 1), h.n);
    t.down = blocks(h.n, rows);
    t.height = blocks(blocks(h.n, t.down), h.R) * h.R;
    t.down = blocks(h.n, t.height);
    return t;
  }
};

// Where lanes go. Channels-last tensors have channels side by side anyhow; of the others, those are transposed that
// have enough taps to pay for it.
ADL_INLINE Lanewise lanewise(const Conv& c, int lanes) {
  if (c.channels_last) return Lanewise::kChannels;
  return c.taps() >= 25 && c.channels() * 2 >= lanes ? Lanewise::kChannels : Lanewise::kWidth;
}

// The document that holds a place, as far as the taps of results before `end` reach.
ADL_INLINE Range document(const int32_t* ids, int64_t length, int64_t at, int64_t reach, int64_t end) {
  Range r{at, at + 1};
  while (r.begin > at_least(at - reach, 0) && ids[r.begin - 1] == ids[at]) --r.begin;
  while (r.end < at_most(end + reach, length) && ids[r.end] == ids[at]) ++r.end;
  return r;
}

// A convolution that makes less than this many multiply-adds per thread, counting some for every result, is done
// before another thread has woken.
ADL_INLINE int conv_threads(const Conv& c, int64_t results) {
  const int64_t work = results * (c.taps() + 16);
  return int(at_least(at_most(c.threads, work >> 18), 1));
}

// Rows of numbers [channels, n] to [blocks of lanes, n, kLanes].
template <class S, class T>
void pack_per_channel(const T* from, int64_t channels, int64_t n, S* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  for (int64_t first = 0; first < channels; first += kLanes) {
    for (int64_t k = 0; k < n; k += kLanes) {
      const int64_t count = at_most(n - k, kLanes);
      typename V::Register rows[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane)
        rows[lane] = first + lane < channels ? V::load(from + (first + lane) * n + k, count).v : V(S(0)).v;
      transpose<typename V::Register, typename Format<S>::Ints>(rows);
      for (int64_t i = 0; i < count; ++i, to += kLanes) V(rows[i]).store(to);
    }
  }
}

// result[o] = bias + sum over taps of source[channels that o sees]: forward, or the gradient of the input.
template <class T>
struct Correlation {
  using S = Sum<T>;
  using V = Simd<S>;
  static constexpr int kLanes = V::kLanes;

  const Conv& c;
  bool backward;
  const T *source, *weight, *bias = nullptr, *residual = nullptr;
  T* result;
  Activation activation = Activation::kNone;

  int64_t channels, source_channels;
  int64_t sources;  // channels of the source that each of the result sums
  bool across;      // lanes run along the width
  Axis axes[kSpatial];
  Tiles tiles;
  int64_t planes;  // of the source in a tile, at most
  Packed<S> packed;
  Strides from, to;
  int64_t phase_line;  // numbers in a row of results of a phase
  int threads;

  Tap* taps = nullptr;
  S *weights = nullptr, *biases = nullptr, *workspaces = nullptr;
  Range* ranges = nullptr;

  explicit Correlation(const ConvForward<T>& p) : Correlation(p.conv, false, p.x, p.weight, p.y) {
    bias = p.bias, residual = p.residual, activation = p.activation;
  }
  explicit Correlation(const ConvInputGrad<T>& p) : Correlation(p.conv, true, p.dy, p.weight, p.dx) {}

  Correlation(const Conv& c, bool backward, const T* source, const T* weight, T* result)
      : c(c),
        backward(backward),
        source(source),
        weight(weight),
        result(result),
        channels(backward ? c.C : c.channels()),
        source_channels(backward ? c.channels() : c.C),
        sources(backward ? c.multiplier : 1),
        across(lanewise(c, kLanes) == Lanewise::kWidth),
        axes{axis(0), axis(1), axis(2)},
        planes(sources * c.kernel[0]),
        packed(),
        from(source_channels, backward ? c.out_size() : c.in_size(), c.channels_last),
        to(channels, backward ? c.in_size() : c.out_size(), c.channels_last) {
    const int64_t step = across ? 1 : kLanes;
    tiles = Tiles::of(axes[1], axes[2], planes, step * sizeof(S));
    const int64_t results = blocks(tiles.width, axes[2].R);
    packed = Packed<S>(across ? Lanewise::kWidth : Lanewise::kChannels, axes[1].reach(tiles.height),
                       axes[2].reach(tiles.width), axes[2].S, results);
    phase_line = across ? blocks(results, kLanes) * kLanes : results * kLanes;
    threads = conv_threads(c, c.B * channels * axes[0].n * axes[1].n * axes[2].n);
  }

  Axis axis(int k) const { return backward ? Axis::input_grad(c, k) : Axis::forward(c, k); }
  int64_t channel_blocks() const { return across ? channels : blocks(channels, kLanes); }
  int64_t all_taps() const { return sources * c.taps(); }
  bool converts_weights() const { return !across || !__is_same(T, S); }
  int64_t workspace() const { return blocks(planes * packed.plane + axes[2].R * phase_line, 64) * 64; }

  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    for (Axis& axis : axes) axis.take(arena);
    taps = arena.take<Tap>(all_taps());
    weights = arena.take<S>(converts_weights() ? blocks(channels, kLanes) * kLanes * all_taps() : 0);
    biases = arena.take<S>(blocks(channels, kLanes) * kLanes);
    ranges = arena.take<Range>(threads * planes);
    workspaces = arena.take<S>(threads * workspace());
    return arena.used;
  }

  void run() {
    prepare();
    const int64_t in_plane = tiles.down * tiles.across, blocks_of = channel_blocks();
    const int64_t items = c.B * axes[0].n * in_plane * blocks_of;
    Barrier barrier;
    in_team(threads, barrier, [&](int index, int team) {
      const Range mine = share(items, index, team);
      for (int64_t k = mine.begin; k < mine.end; ++k) {
        // Neighbours in memory one after the other: channels, or places.
        const int64_t block = c.channels_last ? k % blocks_of : k / in_plane / axes[0].n % blocks_of;
        const int64_t place = c.channels_last ? k / blocks_of : k % (in_plane * axes[0].n);
        const int64_t b = c.channels_last ? place / in_plane / axes[0].n : k / in_plane / axes[0].n / blocks_of;
        tile(b, block, place / in_plane % axes[0].n, place % in_plane, index);
      }
    });
  }

  void prepare() {
    for (int k = 0; k < kSpatial; ++k) axes[k].list_taps(c, k, backward);
    const auto& [d, h, w] = axes;
    Tap* tap = taps;
    for (int64_t rd = 0; rd < d.R; ++rd) {
      for (int64_t rh = 0; rh < h.R; ++rh) {
        for (int64_t rw = 0; rw < w.R; ++rw) {
          for (int64_t j = 0; j < sources; ++j) {
            for (int i = d.begin[rd]; i < d.begin[rd + 1]; ++i) {
              const int64_t plane = j * d.taps(rd) + i - d.begin[rd];
              for (int m = h.begin[rh]; m < h.begin[rh + 1]; ++m) {
                for (int n = w.begin[rw]; n < w.begin[rw + 1]; ++n) {
                  const int64_t x =
                      plane * packed.plane + (h.offset[m] - h.low) * packed.row + packed.slot(w.offset[n] - w.low);
                  const int64_t k = ((j * d.kernel + d.tap[i]) * h.kernel + h.tap[m]) * w.kernel + w.tap[n];
                  *tap++ = {int32_t(x), int32_t(across ? k : k * kLanes)};
                }
              }
            }
          }
        }
      }
    }
    if (!across)
      pack_per_channel(weight, channels, all_taps(), weights);
    else if (converts_weights())
      convert_row(weight, channels * all_taps(), weights, channels * all_taps());
    const int64_t whole = blocks(channels, kLanes) * kLanes;
    convert_row(bias, bias ? channels : 0, biases, whole);
  }

  void tile(int64_t b, int64_t block, int64_t i, int64_t in_plane, int index) {
    const auto& [d, h, w] = axes;
    const int64_t i_h = in_plane / tiles.across * tiles.height, i_w = in_plane % tiles.across * tiles.width;
    const int64_t end = at_most(i_w + tiles.width, w.n);
    if (!c.documents) return part(b, block, i, i_h, {i_w, end}, {0, w.source}, index);
    for (int64_t at = i_w; at < end;) {
      const Range ids = document(c.documents + b * w.n, w.n, at, w.high - w.low, end);
      const int64_t next = at_most(ids.end, end);
      part(b, block, i, i_h, {at, next}, ids, index);
      at = next;
    }
  }

  // Columns of a tile, from columns of the source within `seen`.
  void part(int64_t b, int64_t block, int64_t i_d, int64_t i_h, Range columns, Range seen, int index) {
    const auto& [d, h, w] = axes;
    const int64_t step = across ? 1 : kLanes, first = block * step;
    const int64_t lanes = at_most(step, channels - first);
    S* const buffer = workspaces + index * workspace();
    S* const row = buffer + planes * packed.plane;
    Range* const mine = ranges + index * planes;

    const Range depths = d.valid(i_d);
    const int64_t depth_taps = d.taps(i_d % d.R), source_line = w.source * from.place;
    for (int64_t j = 0; j < sources; ++j) {
      const ChannelMap map =
          backward ? ChannelMap{c.multiplier, first * c.multiplier + j, 1} : ChannelMap{1, first, c.multiplier};
      for (int64_t n = depths.begin; n < depths.end; ++n) {
        const int64_t at = i_d / d.R * d.S + d.offset[n], plane = j * depth_taps + n - d.begin[i_d % d.R];
        pack(packed, source + b * from.sample + at * h.source * source_line, from, map, lanes, h.source, source_line,
             h.first(i_h), w.first(columns.begin), seen.begin, seen.end, buffer + plane * packed.plane);
      }
    }

    const bool direct = __is_same(T, S) && !across && c.channels_last && lanes == kLanes &&
                        activation == Activation::kNone && !residual;
    const S* own =
        !converts_weights() ? reinterpret_cast<const S*>(weight) + first * all_taps() : weights + first * all_taps();
    const V init = across ? V(biases[first]) : V::load(biases + first);
    const int64_t count = columns.end - columns.begin;
    for (int64_t i = i_h; i < at_most(i_h + tiles.height, h.n); ++i) {
      const int64_t rh = i % h.R;
      const Range rows = h.valid(i);
      const S* x = buffer + (i - i_h) / h.R * h.S * packed.row;
      const int64_t at = b * to.sample + first * to.channel + ((i_d * h.n + i) * w.n + columns.begin) * to.place;
      for (int64_t rw = 0; rw < at_most(w.R, count); ++rw) {
        const int64_t per_plane = h.taps(rh) * w.taps(rw);
        const int64_t start = sources * (d.begin[i_d % d.R] * h.kernel * w.kernel +
                                         depth_taps * (h.begin[rh] * w.kernel + h.taps(rh) * w.begin[rw]));
        int used = 0;
        for (int64_t j = 0; j < sources; ++j) {
          for (int64_t n = depths.begin; n < depths.end; ++n) {
            const int64_t plane = start + (j * depth_taps + n - d.begin[i_d % d.R]) * per_plane;
            mine[used++] = {plane + (rows.begin - h.begin[rh]) * w.taps(rw),
                            plane + (rows.end - h.begin[rh]) * w.taps(rw)};
          }
        }
        const int64_t results = blocks(count - rw, w.R);
        if (across) {
          row_sums<S, true>(blocks(results, kLanes), x, taps, mine, used, own, init, row + rw * phase_line, kLanes);
        } else if (direct) {
          row_sums<S, false>(results, x, taps, mine, used, own, init, reinterpret_cast<S*>(result) + at + rw * to.place,
                             w.R * to.place);
        } else {
          row_sums<S, false>(results, x, taps, mine, used, own, init, row + rw * kLanes, w.R * kLanes);
        }
      }
      if (direct) continue;
      activate(activation, row, across ? w.R * phase_line : count * kLanes);
      const T* add = residual ? residual + at : nullptr;
      if (across)
        unpack_width(row, count, w.R, phase_line, add, result + at);
      else
        unpack_channels(row, count, to, lanes, add, result + at);
    }
  }
};

}  // namespace
}  // namespace adl
