// Tiles of a convolution: packed from tensors into lanes, and from lanes back into tensors.
//
// A tile holds float or double in either of two ways, whatever the layout and dtype of the tensors:
//   kChannels   a register is kLanes channels at one place; channels-first tensors are transposed on the way
//   kWidth      a register is kLanes neighbouring places of one channel
// Zeros stand where the source has ended, and columns are sorted by their remainder modulo the stride, so that the
// kernels read at unit stride and know nothing of borders, strides, layouts or dtypes.
#pragma once

#include <limits>

#include "depthwise/cpu/axes.h"

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

// Rows and columns of the source that a tile holds: kChannels has [rows, remainders, width, kLanes], kWidth
// [remainders of rows, remainders of columns, rows, width], where results can run on from row to row.
template <class S>
struct Packed {
  static constexpr int kLanes = Simd<S>::kLanes;

  Lanewise lanewise;
  int64_t rows, S_h, S_w;
  int64_t width;              // columns of each remainder
  int64_t step, row;          // numbers from one column, and row, to the next of the same remainder
  int64_t of_row, of_column;  // numbers from one remainder to the next
  int64_t plane;              // numbers

  Packed() = default;
  Packed(Lanewise lanewise, int64_t rows, int64_t columns, int64_t S_h, int64_t S_w)
      : lanewise(lanewise), rows(rows), S_h(S_h), S_w(S_w), width(blocks(columns, S_w)) {
    if (lanewise == Lanewise::kWidth) {
      this->rows = blocks(rows, S_h) * S_h;  // all that results which run on can see
      step = 1, row = width, of_column = this->rows / S_h * width, of_row = S_w * of_column;
      plane = blocks(S_h * of_row + kLanes, kLanes) * kLanes;  // the last register is read as a whole
    } else {
      step = kLanes, of_column = width * kLanes, of_row = S_w * of_column, row = S_h * of_row, plane = rows * of_row;
    }
  }

  // No tile: the source as it lies, kLanes of its channels side by side.
  static Packed in_place(const Axis& h, const Axis& w, int64_t place) {
    Packed p;
    p.lanewise = Lanewise::kChannels, p.rows = h.source, p.S_h = h.S, p.S_w = w.S, p.width = w.source;
    p.of_column = place, p.step = w.S * place;
    p.of_row = w.source * place, p.row = h.S * p.of_row, p.plane = h.source * p.of_row;
    return p;
  }

  // Strides are mostly 1 or 2, and a division takes longer than a column.
  static int64_t at(int64_t k, int64_t stride, int64_t of_remainder, int64_t step) {
    if (stride == 1) return k * step;
    if (stride == 2) return (k & 1) * of_remainder + (k >> 1) * step;
    return k % stride * of_remainder + k / stride * step;
  }
  int64_t at_column(int64_t k) const { return at(k, S_w, of_column, step); }
  int64_t at_row(int64_t k) const { return at(k, S_h, of_row, row); }
};

// Taps whose columns follow each other: the first reads the tile, and its weight, so many numbers on.
struct Run {
  int32_t x, w, count;
};

// With AVX-512 registers that one tap has read serve the next one too: so many taps, and results at once.
constexpr bool kManyRegisters = kVectorBytes == 64;

// Lanes kShift .. kShift + kLanes of two registers side by side.
template <int kShift, class S>
ADL_INLINE Simd<S> align(Simd<S> a, Simd<S> b) {
  [[maybe_unused]] constexpr int kLanes = Simd<S>::kLanes;
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == sizeof(float))
    return Simd<S>(typename Simd<S>::Register(_mm512_alignr_epi32(__m512i(b.v), __m512i(a.v), kShift)));
  else
    return Simd<S>(typename Simd<S>::Register(_mm512_alignr_epi64(__m512i(b.v), __m512i(a.v), kShift)));
#elif defined(__clang__)
  Simd<S> r;
  for (int k = 0; k < kLanes; ++k) r.v[k] = k + kShift < kLanes ? a.v[k + kShift] : b.v[k + kShift - kLanes];
  return r;
#else
  typename Format<S>::Ints which;
  for (int k = 0; k < kLanes; ++k) which[k] = k + kShift;
  return Simd<S>(__builtin_shuffle(a.v, b.v, which));
#endif
}

// Registers that `registers` results side by side see through the taps of a run.
constexpr int registers_seen(int registers, int taps, bool width) {
  return width ? registers + (taps > 1) : registers + taps - 1;
}

// What result n sees through a tap, from the registers seen. Plain arrays and loops: of anything more structured
// compilers keep the registers in memory.
template <bool kWidth, class S, int kSeen>
ADL_INLINE typename Simd<S>::Register seen_by(const typename Simd<S>::Register (&seen)[kSeen], int n, int tap) {
  using V = Simd<S>;
  if constexpr (!kWidth) return seen[n + tap];
  switch (tap) {  // a constant, once loops are unrolled
    case 0:
      return seen[n];
    case 1:
      return align<1 % V::kLanes>(V(seen[n]), V(seen[n + 1])).v;
    case 2:
      return align<2 % V::kLanes>(V(seen[n]), V(seen[n + 1])).v;
    case 3:
      return align<3 % V::kLanes>(V(seen[n]), V(seen[n + 1])).v;
    case 4:
      return align<4 % V::kLanes>(V(seen[n]), V(seen[n + 1])).v;
    case 5:
      return align<5 % V::kLanes>(V(seen[n]), V(seen[n + 1])).v;
    default:
      return align<6 % V::kLanes>(V(seen[n]), V(seen[n + 1])).v;
  }
}

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

// Lane `which[lane]` of a register in every lane.
template <class S>
ADL_INLINE Simd<S> spread(Simd<S> a, typename Format<S>::Ints which) {
#if defined(__clang__)
  Simd<S> r;
  for (int k = 0; k < Simd<S>::kLanes; ++k) r.v[k] = a.v[which[k]];
  return r;
#else
  return Simd<S>(__builtin_shuffle(a.v, which));
#endif
}

// One row of one channel: columns from `from` on, those before `low` and from `high` on being zero.
template <class S, class T>
ADL_INLINE void pack_width(const Packed<S>& p, const T* from, int64_t low, int64_t high, S* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  int64_t k = 0;
  if (p.S_w == 1) {
    const int64_t first = min_of(low, p.width), end = max_of(min_of(high, p.width), first);
    for (; k < first; ++k) to[k] = S(0);
    for (; k < end; k += kLanes) V::load(from + k, end - k).store(to + k, end - k);
    for (k = end; k < p.width; ++k) to[k] = S(0);
    return;
  }
  const auto one = [&](int64_t column) { return column >= low && column < high ? convert<S>(from[column]) : S(0); };
  for (int64_t r = 0; r < p.S_w; ++r) {
    S* line = to + r * p.of_column;
    k = 0;
    if (p.S_w == 2 && r == 0) {  // both remainders at once
      S* odds = line + p.of_column;
      for (; k < p.width && 2 * k < low; ++k) line[k] = one(2 * k), odds[k] = one(2 * k + 1);
      for (; 2 * k + 2 * kLanes <= high && k + kLanes <= p.width; k += kLanes) {
        V even, odd;
        deinterleave(V::load(from + 2 * k), V::load(from + 2 * k + kLanes), even, odd);
        even.store(line + k), odd.store(odds + k);
      }
      for (; k < p.width; ++k) line[k] = one(2 * k), odds[k] = one(2 * k + 1);
      return;
    }
    for (; k < p.width; ++k) line[k] = one(k * p.S_w + r);
  }
}

// One row of kBlocks times kLanes channels, each kLanes to a tile of their own.
template <int kBlocks, class S, class T>
ADL_INLINE void copy_channels(const Packed<S>& p, const T* from, int64_t place, int64_t apart, int64_t low,
                              int64_t high, S* to) {
  using V = Simd<S>;
  for (int64_t r = 0; r < min_of(p.S_w, high - low); ++r) {
    S* next = to + p.at_column(low + r);
    for (int64_t k = low + r; k < high; k += p.S_w, next += p.step) {
#pragma GCC unroll 4
      for (int n = 0; n < kBlocks; ++n) V::load(from + k * place + n * V::kLanes).store(next + n * apart);
    }
  }
}

// One row of `lanes` channels: as a rule of kLanes, or fewer. If they lie side by side it may be more, each kLanes
// going to a tile of its own, `apart` numbers from the one before: then memory is read as it lies.
template <class S, class T>
ADL_INLINE void pack_channels(const Packed<S>& p, const T* from, const Strides& strides, const ChannelMap& map,
                              int64_t lanes, int64_t apart, int64_t low, int64_t high, S* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  const int64_t columns = p.width * p.S_w;
  const auto zero = [&](int64_t k, int64_t end) {
    for (; k < end; ++k)
      for (int64_t n = 0; n * kLanes < lanes; ++n) V(S(0)).store(to + n * apart + p.at_column(k));
  };
  low = min_of(low, columns), high = max_of(min_of(high, columns), low);
  zero(0, low);
  if (strides.channel == 1 && map.is_run()) {
    const T* channels = from + map(0);
    int64_t n = 0;
    for (; n + 4 <= lanes / kLanes; n += 4)
      copy_channels<4>(p, channels + n * kLanes, strides.place, apart, low, high, to + n * apart);
    for (; n < lanes / kLanes; ++n)
      copy_channels<1>(p, channels + n * kLanes, strides.place, apart, low, high, to + n * apart);
    if (const int64_t rest = lanes % kLanes)
      for (int64_t k = low; k < high; ++k)
        V::load(channels + k * strides.place + n * kLanes, rest).store(to + n * apart + p.at_column(k));
  } else if (strides.channel == 1 && map.multiply == 2 && map.divide == 1 && lanes == kLanes) {
    for (int64_t k = low; k < high; ++k) {  // every second channel
      const T* channels = from + k * strides.place + map(0);
      V even, odd;
      deinterleave(V::load(channels), V::load(channels + kLanes, kLanes - 1), even, odd);
      even.store(to + p.at_column(k));
    }
  } else if (strides.channel == 1 && map.multiply == 1) {  // every channel several times
    typename Format<S>::Ints which;
    for (int lane = 0; lane < kLanes; ++lane) which[lane] = map(lane) - map(0);
    const T* channels = from + map(0);
    for (int64_t k = low; k < high; ++k)
      spread(V::load(channels + k * strides.place, map(lanes - 1) - map(0) + 1), which).store(to + p.at_column(k));
  } else if (strides.channel == 1) {
    for (int64_t k = low; k < high; ++k) {
      S* place = to + p.at_column(k);
      for (int64_t lane = 0; lane < kLanes; ++lane)
        place[lane] = lane < lanes ? convert<S>(from[k * strides.place + map(lane)]) : S(0);
    }
  } else {
    for (int64_t k = low; k < high; k += kLanes) {
      const int64_t n = min_of(high - k, kLanes);
      typename V::Register lines[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane)
        lines[lane] = lane < lanes ? V::load(from + map(lane) * strides.channel + k, n).v : V(S(0)).v;
      transpose<typename V::Register, typename Format<S>::Ints>(lines);
      if (p.S_w == 1 && n == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) V(lines[i]).store(to + (k + i) * kLanes);
      } else {
        for (int64_t i = 0; i < n; ++i) V(lines[i]).store(to + p.at_column(k + i));
      }
    }
  }
  zero(high, columns);
}

// Rows from `row` and columns from `column` on of a plane of a source of `height` rows, `line` numbers apart; columns
// before `low` and from `high` on count as zeros.
template <class S, class T>
ADL_NOINLINE void pack(const Packed<S>& p, const T* plane, const Strides& strides, const ChannelMap& map, int64_t lanes,
                       int64_t apart, int64_t height, int64_t line, int64_t row, int64_t column, int64_t low,
                       int64_t high, S* to) {
  const bool across = p.lanewise == Lanewise::kWidth;
  const int64_t first = max_of(low - column, 0), end = max_of(high - column, 0);
  for (int64_t k = 0; k < p.rows; ++k) {
    S* const at = to + p.at_row(k);
    if (row + k < 0 || row + k >= height) {
      for (int64_t n = 0; n < (across ? 1 : blocks(lanes, Simd<S>::kLanes)); ++n)
        for (int64_t r = 0; r < p.S_w; ++r)
          std::memset(at + n * apart + r * p.of_column, 0, p.width * p.step * sizeof(S));
      continue;
    }
    const T* from = plane + (row + k) * line + column * strides.place;
    if (across)
      pack_width(p, from + map(0) * strides.channel, first, end, at);
    else
      pack_channels(p, from, strides, map, lanes, apart, first, end, at);
  }
  if (across) std::memset(to + p.S_h * p.of_row, 0, (p.plane - p.S_h * p.of_row) * sizeof(S));
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
      // The sigmoid of what lies further down is not quite zero here.
      return each(values, count,
                  [](V x) { return clamp(x, S(-1000), std::numeric_limits<S>::infinity()) * sigmoid(x); });
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

// A row of results, kLanes channels at each place and `apart` numbers from one to the next, to `to` (and `residual`,
// which lies alike); `stream`: past the caches.
template <class S, class T>
ADL_NOINLINE void unpack_channels(const S* from, int64_t apart, int64_t places, const Strides& strides, int64_t lanes,
                                  const T* residual, T* to, bool stream) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  if (strides.channel == 1) {
    if constexpr (__is_same(S, T)) {
      for (int64_t k = 0; stream && k < places; ++k) {
        const V value = V::load(from + k * apart);
        const int64_t at = k * strides.place;
        (residual ? value + V::load(residual + at) : value).stream(to + at);
      }
      if (stream) return;
    }
    for (int64_t k = 0; k < places; ++k) {
      const int64_t at = k * strides.place;
      store_sum(V::load(from + k * apart), residual ? residual + at : nullptr, to + at, lanes);
    }
    return;
  }
  for (int64_t k = 0; k < places; k += kLanes) {
    const int64_t n = min_of(places - k, kLanes);
    typename V::Register lines[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) lines[i] = V::load(from + (k + (i < n ? i : 0)) * apart).v;
    transpose<typename V::Register, typename Format<S>::Ints>(lines);
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane >= lanes) break;
      const int64_t at = lane * strides.channel + k;
      store_sum(V(lines[lane]), residual ? residual + at : nullptr, to + at, n);
    }
  }
}

// A row of results of one channel; of every R-th place those of a remainder lie side by side, `apart` numbers on.
template <class S, class T>
ADL_NOINLINE void unpack_width(const S* from, int64_t places, int64_t R, int64_t apart, const T* residual, T* to) {
  using V = Simd<S>;
  constexpr int kLanes = V::kLanes;
  if (R == 1) {
    for (int64_t k = 0; k < places; k += kLanes)
      store_sum(V::load(from + k), residual ? residual + k : nullptr, to + k, places - k);
    return;
  }
  for (int64_t r = 0; r < R; ++r)
    for (int64_t k = r, n = 0; k < places; k += R, ++n) to[k] = convert<T>(from[r * apart + n]);
}

}  // namespace
}  // namespace adl
