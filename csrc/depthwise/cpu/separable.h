// A depthwise convolution and the 1x1 convolution of its result, a strip of rows at a time: what the first makes stays
// in L2 until the second has multiplied it.
#pragma once

#include "depthwise/cpu/correlation.h"

namespace adl {
namespace {

// Weights [N, K] as panels of 64 columns: [panels, K / kPack, 64].
template <class T>
void pack_pointwise(const T* weight, int64_t N, int64_t K, void* to) {
  constexpr int kPlace[] = {0};
  const int64_t panel = blocks(K, Operand<T>::kPack) * kPanel;
  for (int64_t q = 0; q < blocks(N, kPanel); ++q)
    pack_units<T>(weight, N, K, q, 1, kPanel, kPlace, 0, static_cast<Element<T>*>(to) + q * panel);
}

template <class T>
struct Separable {
  using S = Sum<T>;
  using E = Element<T>;
  static constexpr int kLanes = Simd<S>::kLanes, kPack = Operand<T>::kPack;
  static constexpr int64_t kRows = 96;  // of a product: many for one panel, few enough that its results stay in L1

  const SeparableForward<T>& p;
  const Conv& c;
  int64_t K, N, row;  // channels in between, of y; numbers of a place in between
  Correlation<T> depthwise;
  Strides to;
  int64_t lines, strips;  // rows of y at once, strips of them in a plane
  int threads;
  bool streams;

  E* weights = nullptr;
  S *biases = nullptr, *products = nullptr;
  T* between = nullptr;

  explicit Separable(const SeparableForward<T>& params)
      : p(params),
        c(params.depthwise.conv),
        K(c.channels()),
        N(params.N),
        row(blocks(K, kPack) * kPack),
        depthwise(params.depthwise, row),
        to(N, c.out_size(), c.channels_last) {
    constexpr int64_t kBytes = 256 << 10;
    const int64_t height = c.out[1], line = c.out[2] * row * int64_t(sizeof(T));
    const int64_t work = c.B * c.out_size() * K * (N + c.taps());
    threads = int(max_of(min_of(c.threads, work >> 18), 1));
    const int64_t planes = c.B * c.out[0];
    strips = max_of(blocks(height, max_of(kBytes / max_of(line, 1), 1)), min_of(blocks(threads, planes), height));
    lines = blocks(height, strips), strips = blocks(height, lines);
    threads = int(min_of(threads, planes * strips));
    depthwise.threads = threads;
    streams = c.channels_last && goes_past_caches(p.y, c.B * to.sample, N);
  }

  int64_t between_numbers() const { return blocks(lines * c.out[2] * row, 64) * 64; }

  int64_t take(void* scratch) {
    const int64_t used = depthwise.take(scratch);
    Arena arena{static_cast<char*>(scratch), used};
    weights = arena.take<E>(p.packed ? 0 : blocks(N, kPanel) * (row / kPack) * kPanel);
    biases = arena.take<S>(blocks(N, kPanel) * kPanel);
    products = arena.take<S>(threads * kRows * kPanel);
    between = arena.take<T>(threads * between_numbers());
    return arena.used;
  }

  void run() {
    depthwise.prepare();
    if (!p.packed) pack_pointwise(p.weight, N, K, weights);
    convert_row(p.bias, p.bias ? N : 0, biases, blocks(N, kPanel) * kPanel);
    std::memset(static_cast<void*>(between), 0, threads * between_numbers() * sizeof(T));
    Barrier barrier;
    in_team(threads, barrier, [&](int index, int team) {
      const Range mine = share(c.B * c.out[0] * strips, index, team);
      for (int64_t k = mine.begin; k < mine.end; ++k) strip(k / strips, k % strips * lines, index);
      if (streams) Simd<S>::end_stream();
    });
  }

  // Rows from i_h on of a plane, counted over all samples.
  void strip(int64_t plane, int64_t i_h, int index) {
    const int64_t b = plane / c.out[0], i_d = plane % c.out[0], width = c.out[2];
    const int64_t end = min_of(i_h + lines, c.out[1]), places = (end - i_h) * width;
    T* const mid = between + index * between_numbers();
    depthwise.rows(b, i_d, {i_h, end}, mid, index);

    const E* const panels = p.packed ? static_cast<const E*>(p.packed) : weights;
    S* const sums = products + index * kRows * kPanel;
    const int64_t parts = blocks(places, kRows);
    for (int64_t q = 0; q * kPanel < N; ++q) {
      const E* panel = panels + q * (row / kPack) * kPanel;
      for (int64_t part = 0; part < parts; ++part) {  // of about one size
        const int64_t m = places * part / parts, count = places * (part + 1) / parts - m;
        product<E, S, kPanel>(count, Left<E>{reinterpret_cast<const E*>(mid + m * row), row / kPack, row / kPack},
                              panel, biases + q * kPanel, 0, sums, kPanel);
        activate(p.activation, sums, count * kPanel);
        const int64_t first = b * to.sample + ((i_d * c.out[1] + i_h) * width + m) * to.place;
        for (int64_t n = q * kPanel; n < min_of(N, (q + 1) * kPanel); n += kLanes) {
          const int64_t at = first + n * to.channel;
          unpack_channels(sums + n - q * kPanel, kPanel, count, to, min_of(kLanes, N - n),
                          p.residual ? p.residual + at : nullptr, p.y + at, streams);
        }
      }
    }
  }
};

}  // namespace
}  // namespace adl
