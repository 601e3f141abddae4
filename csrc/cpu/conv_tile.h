// Tiles of a convolution: packed from tensors into lanes, and from lanes back into tensors.
//
// A tile holds float or double in either of two ways, whatever the layout and dtype of the tensors:
//   kChannels   a register is kLanes channels at one place; channels-first tensors are transposed on the way
//   kWidth      a register is kLanes neighbouring places of one channel
// Zeros stand where the source has ended, and columns are sorted by their remainder modulo the stride, so that the
// kernels read at unit stride and know nothing of borders, strides, layouts or dtypes.
#pragma once

#include "cpu/conv_axes.h"

namespace adl {
namespace {

enum class Lanewise { kChannels, kWidth };

// Channels that the lanes stand for: (lane * multiply + add) / divide.
struct ChannelMap {
  int64_t multiply = 1, add = 0, divide = 1;
  int64_t operator()(int64_t lane) const { return (lane * multiply + add) / divide; }
  bool is_run() const { return multiply == 1 && divide == 1; }
};

// How one sample lies in memory.
struct Strides {
  int64_t sample, channel, place;  // of neighbouring samples, channels, places in a row

  Strides(int64_t channels, int64_t places, bool channels_last)
      : sample(channels * places), channel(channels_last ? 1 : places), place(channels_last ? channels : 1) {}
};

// Rows and columns of the source that a tile holds.
template <class S>
struct Packed {
  static constexpr int kLanes = Simd<S>::kLanes;

  Lanewise lanewise;
  int64_t rows, S_w, width;  // columns of each remainder
  int64_t step;              // numbers per column
  int64_t row, plane;        // numbers

  Packed() = default;
  // `columns` of the source, for so many results in a row.
  Packed(Lanewise lanewise, int64_t rows, int64_t columns, int64_t stride, int64_t results)
      : lanewise(lanewise), rows(rows), S_w(stride) {
    const bool across = lanewise == Lanewise::kWidth;
    step = across ? 1 : kLanes;
    // Where lanes run along the width, whole registers are read from every column on.
    width = blocks(columns, stride) + (across ? blocks(results, kLanes) * kLanes - results + kLanes : 0);
    row = stride * width * step, plane = rows * row;
  }

  int64_t slot(int64_t column) const { return (column % S_w * width + column / S_w) * step; }
};

// Even and odd numbers of two registers.
template <class S>
ADL_INLINE void deinterleave(Simd<S> a, Simd<S> b, Simd<S>& even, Simd<S>& odd) {
  constexpr int kLanes = Simd<S>::kLanes;
#if defined(__clang__)
  for (int k = 0; k < kLanes; ++k) {
    even.v[k] = 2 * k < kLanes ? a.v[2 * k] : b.v[2 * k - kLanes];
    odd.v[k] = 2 * k < kLanes ? a.v[2 * k + 1] : b.v[2 * k + 1 - kLanes];
  }
#else
  typename Format<S>::Ints evens, odds;
  for (int k = 0; k < kLanes; ++k) evens[k] = 2 * k, odds[k] = 2 * k + 1;
  even.v = __builtin_shuffle(a.v, b.v, evens), odd.v = __builtin_shuffle(a.v, b.v, odds);
#endif
}

// One row of one channel, [columns) from `from` on, those before `low` and from `high` on being zero.
template <class S, class T>
ADL_INLINE void pack_width(const Packed<S>& p, const T* from, int64_t low, int64_t high, S* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  if (p.S_w == 1) {
    int64_t k = 0;
    for (; k < at_most(low, p.width); ++k) to[k] = S(0);
    const int64_t end = at_most(high, p.width);
    for (; k < end; k += kLanes) V::load(from + k, end - k).store(to + k, end - k);
    for (k = at_least(at_most(low, p.width), end); k < p.width; ++k) to[k] = S(0);
    return;
  }
  for (int64_t r = 0; r < p.S_w; ++r) {
    S* line = to + r * p.width;
    int64_t k = 0;
    for (; k < p.width && k * p.S_w + r < low; ++k) line[k] = S(0);
    if (p.S_w == 2 && r == 0) {  // both remainders at once
      S* odd_line = line + p.width;
      int64_t n = 0;
      for (; n < k; ++n) odd_line[n] = 2 * n + 1 >= low && 2 * n + 1 < high ? convert<S>(from[2 * n + 1]) : S(0);
      for (; 2 * k + 2 * kLanes <= high && k + kLanes <= p.width; k += kLanes) {
        V even, odd;
        deinterleave(V::load(from + 2 * k), V::load(from + 2 * k + kLanes), even, odd);
        even.store(line + k), odd.store(odd_line + k);
      }
      for (; k < p.width; ++k) {
        line[k] = 2 * k < high ? convert<S>(from[2 * k]) : S(0);
        odd_line[k] = 2 * k + 1 < high ? convert<S>(from[2 * k + 1]) : S(0);
      }
      return;
    }
    for (; k < p.width && k * p.S_w + r < high; ++k) line[k] = convert<S>(from[k * p.S_w + r]);
    for (; k < p.width; ++k) line[k] = S(0);
  }
}

// One row of kLanes channels, of which there are `lanes`.
template <class S, class T>
ADL_INLINE void pack_channels(const Packed<S>& p, const T* from, const Strides& strides, const ChannelMap& map,
                              int64_t lanes, int64_t low, int64_t high, S* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  const int64_t columns = p.width * p.S_w;
  const auto zero = [&](int64_t k, int64_t end) {
    for (; k < end; ++k) V(S(0)).store(to + p.slot(k));
  };
  low = at_most(low, columns), high = at_least(at_most(high, columns), low);
  zero(0, low);
  if (strides.channel == 1 && map.is_run()) {
    const T* channels = from + map(0);
    if (p.S_w == 1 && lanes == kLanes) {
      for (int64_t k = low; k < high; ++k) V::load(channels + k * strides.place).store(to + k * kLanes);
    } else {
      for (int64_t k = low; k < high; ++k) V::load(channels + k * strides.place, lanes).store(to + p.slot(k));
    }
  } else if (strides.channel == 1) {
    for (int64_t k = low; k < high; ++k) {
      S* place = to + p.slot(k);
      for (int64_t lane = 0; lane < kLanes; ++lane)
        place[lane] = lane < lanes ? convert<S>(from[k * strides.place + map(lane)]) : S(0);
    }
  } else {
    for (int64_t k = low; k < high; k += kLanes) {
      const int64_t n = at_most(high - k, kLanes);
      typename V::Register lines[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane)
        lines[lane] = lane < lanes ? V::load(from + map(lane) * strides.channel + k, n).v : V(S(0)).v;
      transpose<typename V::Register, typename Format<S>::Ints>(lines);
      if (p.S_w == 1 && n == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) V(lines[i]).store(to + (k + i) * kLanes);
      } else {
        for (int64_t i = 0; i < n; ++i) V(lines[i]).store(to + p.slot(k + i));
      }
    }
  }
  zero(high, columns);
}

// Rows [row, row + p.rows) and columns from `column` on of a plane of a source of `height` rows `line` numbers apart;
// columns before `low` and from `high` on count as zeros.
template <class S, class T>
ADL_NOINLINE void pack(const Packed<S>& p, const T* plane, const Strides& strides, const ChannelMap& map, int64_t lanes,
                       int64_t height, int64_t line, int64_t row, int64_t column, int64_t low, int64_t high, S* to) {
  for (int64_t k = 0; k < p.rows; ++k, to += p.row) {
    if (row + k < 0 || row + k >= height) {
      std::memset(to, 0, p.row * sizeof(S));
    } else {
      const T* from = plane + (row + k) * line + column * strides.place;
      const int64_t first = at_least(low - column, 0), end = at_least(high - column, 0);
      if (p.lanewise == Lanewise::kWidth)
        pack_width(p, from + map(0) * strides.channel, first, end, to);
      else
        pack_channels(p, from, strides, map, lanes, first, end, to);
    }
  }
}

// f(x) for every number.
template <class S, class F>
ADL_INLINE void each(S* values, int64_t count, F f) {
  using V = Simd<S>;
  for (int64_t k = 0; k < count; k += V::kLanes) f(V::load(values + k)).store(values + k);
}

// In place, on whole registers.
template <class S>
ADL_NOINLINE void activate(Activation activation, S* values, int64_t count) {
  using V = Simd<S>;
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return each(values, count, [](V x) { return relu(x); });
    case Activation::kRelu6:
      return each(values, count, [](V x) { return clamp(x, S(0), S(6)); });
    case Activation::kHardswish:
      return each(values, count, [](V x) { return x * clamp(x + V(S(3)), S(0), S(6)) * V(S(1) / 6); });
    case Activation::kSilu:
      return each(values, count, [](V x) { return x * sigmoid(x); });
    case Activation::kSigmoid:
      return each(values, count, [](V x) { return sigmoid(x); });
    case Activation::kTanh:
      return each(values, count, [](V x) { return tanh(x); });
  }
}

template <class T, class V>
ADL_INLINE void store_sum(V value, const T* residual, T* to, int64_t n) {
  (residual ? value + V::load(residual, n) : value).store(to, n);
}

// A row of results, kLanes channels at each place, to `to` (and `residual`, which lies alike).
template <class S, class T>
ADL_NOINLINE void unpack_channels(const S* from, int64_t places, const Strides& strides, int64_t lanes,
                                  const T* residual, T* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  if (strides.channel == 1) {
    for (int64_t k = 0; k < places; ++k) {
      const int64_t at = k * strides.place;
      store_sum(V::load(from + k * kLanes), residual ? residual + at : nullptr, to + at, lanes);
    }
    return;
  }
  for (int64_t k = 0; k < places; k += kLanes) {
    const int64_t n = at_most(places - k, kLanes);
    typename V::Register lines[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) lines[i] = V::load(from + (k + (i < n ? i : 0)) * kLanes).v;
    transpose<typename V::Register, typename Format<S>::Ints>(lines);
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane >= lanes) break;
      const int64_t at = lane * strides.channel + k;
      store_sum(V(lines[lane]), residual ? residual + at : nullptr, to + at, n);
    }
  }
}

// A row of results of one channel, of every R-th place those of one remainder side by side, `width` numbers apart.
template <class S, class T>
ADL_NOINLINE void unpack_width(const S* from, int64_t places, int64_t R, int64_t width, const T* residual, T* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  if (R == 1) {
    for (int64_t k = 0; k < places; k += kLanes)
      store_sum(V::load(from + k), residual ? residual + k : nullptr, to + k, places - k);
    return;
  }
  for (int64_t r = 0; r < R; ++r)
    for (int64_t k = r; k < places; k += R) to[k] = convert<T>(from[r * width + k / R]);
}

}  // namespace
}  // namespace adl
