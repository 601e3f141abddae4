// Depthwise convolution and the gradient of its input: one correlation, over taps that Axis lists.
#pragma once

#include "depthwise/cpu/plan.h"
#include "depthwise/cpu/sums.h"

namespace adl {
namespace {

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
  bool in_place;    // the source is read where it lies
  Axis axes[kSpatial];
  Tiles tiles;
  int64_t planes;  // of the source in a tile, at most
  Packed<S> packed;
  Strides from, to;
  int64_t together;  // blocks of channels
  int64_t results;   // numbers of the results of a phase: of a tile, or of a row of it
  int threads;
  bool streams;  // results that are stored in whole registers go past the caches

  Run* runs = nullptr;
  RowRuns row_runs;
  int32_t* order = nullptr;  // where the list of runs has the weight of each tap
  S *weights = nullptr, *biases = nullptr, *workspaces = nullptr;
  Range* ranges = nullptr;  // of runs, for each thread

  explicit Correlation(const ConvForward<T>& p) : Correlation(p.conv, false, p.x, p.weight, p.y) {
    bias = p.bias, residual = p.residual, activation = p.activation;
  }
  explicit Correlation(const ConvInputGrad<T>& p) : Correlation(p.conv, true, p.dy, p.weight, p.dx) {}

  // For rows(): results go to memory of the caller's, with so many numbers for the channels of a place.
  Correlation(const ConvForward<T>& p, int64_t place) : Correlation(p.conv, false, p.x, p.weight, nullptr, place) {
    bias = p.bias, activation = p.activation;
  }

  Correlation(const Conv& c, bool backward, const T* source, const T* weight, T* result, int64_t place = 0)
      : c(c),
        backward(backward),
        source(source),
        weight(weight),
        result(result),
        channels(backward ? c.C : c.channels()),
        source_channels(backward ? c.channels() : c.C),
        sources(backward ? c.multiplier : 1),
        across(place == 0 && lanewise(c, kLanes) == Lanewise::kWidth),
        in_place(reads_in_place(c, kLanes)),
        axes{axis(0), axis(1), axis(2)},
        planes(sources * c.kernel[0]),
        packed(),
        from(source_channels, backward ? c.out_size() : c.in_size(), c.channels_last),
        to(place ? place : channels, backward ? c.in_size() : c.out_size(), place || c.channels_last) {
    const int64_t step = across ? 1 : kLanes;
    tiles = Tiles::of(axes[1], axes[2], planes, step * sizeof(S));
    packed = Packed<S>(across ? Lanewise::kWidth : Lanewise::kChannels, axes[1].reach(tiles.height),
                       axes[2].reach(tiles.width), axes[1].S, axes[2].S);

    if (in_place) {
      packed = Packed<S>::in_place(axes[1], axes[2], from.place);
      tiles = Tiles::of_rows(axes[1], axes[2], c.B * axes[0].n, c.threads);
    }
    const int64_t columns = blocks(tiles.width, axes[2].R);
    results = across ? blocks(blocks(tiles.height, axes[1].R) * packed.width, kLanes) * kLanes : columns * kLanes;
    together = in_place ? channel_blocks() : blocks_together(c, channel_blocks(), source_bytes());
    streams = result && to.channel == 1 && goes_past_caches(result, c.B * to.sample, channels);
    threads = conv_threads(c, c.B * channels * axes[0].n * axes[1].n * axes[2].n);
  }

  Axis axis(int k) const { return backward ? Axis::input_grad(c, k) : Axis::forward(c, k); }
  int64_t channel_blocks() const { return across ? channels : blocks(channels, kLanes); }
  int64_t all_taps() const { return sources * c.taps(); }
  bool converts_weights() const { return !across || !__is_same(T, S) || backward || c.stride[2] > 1; }
  int64_t source_bytes() const { return planes * packed.plane * int64_t(sizeof(S)); }
  int64_t packed_numbers() const { return in_place ? 0 : together * planes * packed.plane; }
  int64_t workspace() const {
    return blocks(packed_numbers() + (across ? axes[1].R : 1) * axes[2].R * results, 64) * 64;
  }

  int64_t take(void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    for (Axis& axis : axes) axis.take(arena);
    runs = arena.take<Run>(all_taps()), order = arena.take<int32_t>(all_taps());
    row_runs.take(arena, axes[2]);
    weights = arena.take<S>(converts_weights() ? blocks(channels, kLanes) * kLanes * all_taps() : 0);
    biases = arena.take<S>(blocks(channels, kLanes) * kLanes);
    ranges = arena.take<Range>(threads * planes);
    workspaces = arena.take<S>(threads * workspace());
    return arena.used;
  }

  void run() {
    prepare();
    const int64_t in_plane = tiles.down * tiles.across, blocks_of = blocks(channel_blocks(), together);
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
      if (streams) V::end_stream();
    });
  }

  void prepare() {
    for (int k = 0; k < kSpatial; ++k) axes[k].list_taps(c, k, backward, k == 2);
    const auto& [d, h, w] = axes;
    row_runs.list(w, packed, kMostTogether);
    Run* run = runs;
    int32_t taps = 0;
    for (int64_t rd = 0; rd < d.R; ++rd) {
      for (int64_t rh = 0; rh < h.R; ++rh) {
        for (int64_t rw = 0; rw < w.R; ++rw) {
          for (int64_t j = 0; j < sources; ++j) {
            for (int i = d.begin[rd]; i < d.begin[rd + 1]; ++i) {
              const int64_t plane = in_place ? d.offset[i] - d.low : j * d.taps(rd) + i - d.begin[rd];
              for (int m = h.begin[rh]; m < h.begin[rh + 1]; ++m) {
                const int32_t x = int32_t(plane * packed.plane + packed.at_row(h.offset[m] - h.low));
                for (int n = row_runs.begin[rw]; n < row_runs.begin[rw + 1]; ++n, ++run) {
                  *run = row_runs.runs[n];
                  run->x += x, run->w = (run->w + taps) * (across ? 1 : kLanes);
                }
                for (int n = w.begin[rw]; n < w.begin[rw + 1]; ++n)
                  order[((j * d.kernel + d.tap[i]) * h.kernel + h.tap[m]) * w.kernel + w.tap[n]] = taps++;
              }
            }
          }
        }
      }
    }
    if (!across) {
      pack_per_channel(weight, channels, all_taps(), order, weights);
    } else if (converts_weights()) {
      const T* next = weight;
      for (S* to = weights; to < weights + channels * all_taps(); to += all_taps())
        for (int64_t k = 0; k < all_taps(); ++k) to[order[k]] = convert<S>(*next++);
    }
    const int64_t whole = blocks(channels, kLanes) * kLanes;
    convert_row(bias, bias ? channels : 0, biases, whole);
  }

  void tile(int64_t b, int64_t block, int64_t i, int64_t in_plane, int index) {
    const auto& [d, h, w] = axes;
    const int64_t i_h = in_plane / tiles.across * tiles.height, i_w = in_plane % tiles.across * tiles.width;
    const int64_t end = min_of(i_w + tiles.width, w.n);
    const Range lines{i_h, min_of(i_h + tiles.height, h.n)};
    if (!c.documents) return part(b, block, i, lines, {i_w, end}, {0, w.source}, result, index);
    for (int64_t at = i_w; at < end;) {
      const Range ids = document(c.documents + b * w.n, w.n, at, w.high - w.low, end);
      const int64_t next = min_of(ids.end, end);
      part(b, block, i, lines, {at, next}, ids, result, index);
      at = next;
    }
  }

  // Some rows of all channels, to [rows, columns, channels] at `out`.
  void rows(int64_t b, int64_t i_d, Range lines, T* out, int index) {
    const auto& [d, h, w] = axes;
    T* const sample = out - b * to.sample - (i_d * h.n + lines.begin) * w.n * to.place;
    for (int64_t i_h = lines.begin; i_h < lines.end; i_h += tiles.height)
      for (int64_t i_w = 0; i_w < w.n; i_w += tiles.width)
        for (int64_t block = 0; block * together < channel_blocks(); ++block)
          part(b, block, i_d, {i_h, min_of(i_h + tiles.height, lines.end)}, {i_w, min_of(i_w + tiles.width, w.n)},
               {0, w.source}, sample, index);
  }

  // A tile, or some columns of it, from columns of the source within `seen`.
  struct Part {
    int64_t b, first, lanes;  // sample, first channel, channels
    int64_t i_d;
    Range lines, columns;  // of the results
    Range seen, depths;    // columns of the source, planes of the kernel
    T* result;
    S *source, *sums;  // packed, and where results may wait
    Range* ranges;     // of runs, one for each plane of the source
  };

  void part(int64_t b, int64_t block, int64_t i_d, Range lines, Range columns, Range seen, T* to, int index) {
    const auto& [d, h, w] = axes;
    const int64_t step = across ? 1 : kLanes, first = block * together * step;
    S *const tile = workspaces + index * workspace(), *const sums = tile + packed_numbers();
    Part part{b,    first,        min_of(step * together, channels - first),
              i_d,  lines,        columns,
              seen, d.valid(i_d), to,
              tile, sums,         ranges + index * planes};
    if (in_place) return sum_in_place(part);
    pack_source(part);
    if (across) return sum_across(part);
    for (; part.lanes > 0; part.first += kLanes, part.lanes -= kLanes, part.source += planes * packed.plane)
      sum_channels(part);
  }

  void pack_source(const Part& p) {
    const auto& [d, h, w] = axes;
    const int64_t line = w.source * from.place, first_plane = d.begin[d.phase(p.i_d)];
    for (int64_t j = 0; j < sources; ++j) {
      const ChannelMap map =
          backward ? ChannelMap{c.multiplier, p.first * c.multiplier + j, 1} : ChannelMap{1, p.first, c.multiplier};
      for (int64_t n = p.depths.begin; n < p.depths.end; ++n) {
        const int64_t at = d.step(p.i_d) + d.offset[n], plane = j * d.taps(d.phase(p.i_d)) + n - first_plane;
        pack(packed, source + p.b * from.sample + at * h.source * line, from, map, p.lanes, planes * packed.plane,
             h.source, line, h.first(p.lines.begin), w.first(p.columns.begin), p.seen.begin, p.seen.end,
             p.source + plane * packed.plane);
      }
    }
  }

  // The taps of some rows of the kernel and all its columns, in every plane there is: ranges, and how many.
  int list_ranges(const Part& p, int64_t rh, int64_t rw, Range rows) const {
    const auto& [d, h, w] = axes;
    const int64_t rd = d.phase(p.i_d), per_row = row_runs.of(rw), in_plane = h.taps(rh) * per_row;
    const int64_t start =
        sources * (d.begin[rd] * h.kernel * row_runs.begin[w.R] +
                   d.taps(rd) * (h.begin[rh] * row_runs.begin[w.R] + h.taps(rh) * row_runs.begin[rw]));
    int count = 0;
    for (int64_t j = 0; j < sources; ++j) {
      for (int64_t n = p.depths.begin; n < p.depths.end; ++n) {
        const int64_t plane = start + (j * d.taps(rd) + n - d.begin[rd]) * in_plane;
        p.ranges[count++] = {plane + (rows.begin - h.begin[rh]) * per_row, plane + (rows.end - h.begin[rh]) * per_row};
      }
    }
    return count;
  }

  // Where row i of the results begins.
  int64_t place(const Part& p, int64_t i) const {
    return p.b * to.sample + p.first * to.channel + ((p.i_d * axes[1].n + i) * axes[2].n + p.columns.begin) * to.place;
  }
  const S* weights_of(const Part& p) const {
    return (converts_weights() ? weights : reinterpret_cast<const S*>(weight)) + p.first * all_taps();
  }

  // Results of a phase run on from row to row, over columns that are none: so all registers but one are full.
  void sum_across(const Part& p) {
    const auto& [d, h, w] = axes;
    const int64_t rows = p.lines.end - p.lines.begin, columns = p.columns.end - p.columns.begin;
    for (int64_t rh = 0; rh < min_of(h.R, rows); ++rh) {
      for (int64_t rw = 0; rw < min_of(w.R, columns); ++rw) {
        const int count = list_ranges(p, rh, rw, {h.begin[rh], h.begin[rh + 1]});
        const int64_t last = (blocks(rows - rh, h.R) - 1) * packed.width + blocks(columns - rw, w.R);
        row_sums<true>(blocks(last, kLanes), p.source, kLanes, runs, p.ranges, count, weights_of(p), V(biases[p.first]),
                       p.sums + (rh * w.R + rw) * results, kLanes, false);
      }
    }
    activate(activation, p.sums, h.R * w.R * results);
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t at = place(p, p.lines.begin + k);
      unpack_width(p.sums + h.phase(k) * w.R * results + (h.R == 1 ? k : k / h.R) * packed.width, columns, w.R, results,
                   residual ? residual + at : nullptr, p.result + at);
    }
  }

  // Row by row over all channels, as they lie. Where all columns of the kernel are within the source, a row of results
  // is one of registers; the others are summed one by one.
  void sum_in_place(Part p) {
    const auto& [d, h, w] = axes;
    const Range inner = inner_columns();
    const bool direct = goes_direct(p);
    const int64_t last = p.first + p.lanes;
    Range listed{-1, -1};
    int count = 0;
    for (int64_t i = p.lines.begin; i < p.lines.end; ++i) {
      const Range rows = h.valid(i);
      const int64_t line = p.b * from.sample + (d.step(p.i_d) + d.low) * packed.plane + h.first(i) * packed.of_row;
      for (p.first = 0; p.first < last; p.first += kLanes) {
        const int64_t at = place(p, i), apart = direct ? to.place : kLanes;
        S* const sums = direct ? reinterpret_cast<S*>(p.result) + at : p.sums;
        const V init = V::load(biases + p.first);
        for (int64_t rw = 0; rw < min_of(w.R, inner.end - inner.begin); ++rw) {
          if (w.R > 1 || rows.begin != listed.begin || rows.end != listed.end) {
            count = list_ranges(p, h.phase(i), rw, rows);
            listed = rows;
          }
          row_sums<false>(blocks(inner.end - inner.begin - rw, w.R),
                          source + line + w.first(inner.begin) * from.place + p.first, packed.step, runs, p.ranges,
                          count, weights_of(p), init, sums + (inner.begin + rw) * apart, w.R * apart,
                          direct && streams);
        }
        for (int64_t k = 0; k < w.n; k = k + 1 == inner.begin ? inner.end : k + 1)
          if (k < inner.begin || k >= inner.end) sum_one(p, i, k, rows, init).store(sums + k * apart);
        if (direct) continue;
        activate(activation, sums, w.n * kLanes);
        unpack_channels(sums, kLanes, w.n, to, kLanes, residual ? residual + at : nullptr, p.result + at, streams);
      }
    }
  }

  // Columns of results, from a multiple of the phases on, whose taps all lie within the source.
  Range inner_columns() const {
    const Axis& w = axes[2];
    Range r{min_of(blocks(max_of(-w.low, 0), w.S) * w.R, w.n), w.n};
    while (r.end > r.begin && w.step(r.end - 1) + w.high >= w.source) --r.end;
    return r;
  }

  V sum_one(const Part& p, int64_t i, int64_t column, Range rows, V sum) const {
    const auto& [d, h, w] = axes;
    const int64_t rd = d.phase(p.i_d), rh = h.phase(i), rw = w.phase(column), at = w.step(column);
    const S* const taps =
        weights_of(p) +
        (d.begin[rd] * h.kernel * w.kernel + d.taps(rd) * (h.begin[rh] * w.kernel + h.taps(rh) * w.begin[rw])) * kLanes;
    for (int64_t n = p.depths.begin; n < p.depths.end; ++n) {
      for (int64_t m = rows.begin; m < rows.end; ++m) {
        const T* const line = source + p.b * from.sample + (d.step(p.i_d) + d.offset[n]) * packed.plane +
                              (h.step(i) + h.offset[m]) * packed.of_row + p.first;
        const S* weight = taps + ((n - d.begin[rd]) * h.taps(rh) + m - h.begin[rh]) * w.taps(rw) * kLanes;
        for (int k = w.begin[rw]; k < w.begin[rw + 1]; ++k, weight += kLanes)
          if (at + w.offset[k] >= 0 && at + w.offset[k] < w.source)
            sum = sum + V::load(weight) * V::load(line + (at + w.offset[k]) * from.place);
      }
    }
    return sum;
  }

  bool goes_direct(const Part& p) const {
    return __is_same(T, S) && to.channel == 1 && p.lanes >= kLanes && activation == Activation::kNone && !residual;
  }

  void sum_channels(const Part& p) {
    const auto& [d, h, w] = axes;
    const bool direct = goes_direct(p);
    const int64_t columns = p.columns.end - p.columns.begin;
    Range listed{-1, -1};
    int count = 0;
    for (int64_t i = p.lines.begin; i < p.lines.end; ++i) {
      const int64_t at = place(p, i), apart = direct ? to.place : kLanes;
      S* const sums = direct ? reinterpret_cast<S*>(p.result) + at : p.sums;
      for (int64_t rw = 0; rw < min_of(w.R, columns); ++rw) {
        const Range rows = h.valid(i);
        if (w.R > 1 || rows.begin != listed.begin || rows.end != listed.end) {
          count = list_ranges(p, h.phase(i), rw, rows);
          listed = rows;
        }
        row_sums<false>(blocks(columns - rw, w.R),
                        p.source + (h.R == 1 ? i - p.lines.begin : (i - p.lines.begin) / h.R) * packed.row, packed.step,
                        runs, p.ranges, count, weights_of(p), V::load(biases + p.first), sums + rw * apart, w.R * apart,
                        direct && streams);
      }
      if (direct) continue;
      activate(activation, sums, columns * kLanes);
      unpack_channels(sums, kLanes, columns, to, min_of(p.lanes, kLanes), residual ? residual + at : nullptr,
                      p.result + at, streams);
    }
  }
};

}  // namespace
}  // namespace adl
