// A depthwise convolution, its bias and activation, and the 1x1 convolution of that, a matrix product: what comes in
// between stays in the shared memory of a block, which has some pixels and all channels.
#pragma once

#include "common/cuda/tile.cuh"
#include "depthwise/cuda/filter.cuh"
#include "depthwise/cuda/pixel.cuh"

namespace adl {

// How the product is made.
template <class T>
struct Product {
  using Tile = HalfTile<T>;
  static constexpr Arithmetic kArithmetic = kHalfTensorCores;
};
template <>
struct Product<float> {
  using Tile = FmaTile<float>;
  static constexpr Arithmetic kArithmetic = kFloatFma;
};
template <>
struct Product<double> {
  using Tile = FmaTile<double>;
  static constexpr Arithmetic kArithmetic{8, 8, kFloatFma.rows, 1};
};

// The pixels of a block are a run of those of the batch, one after the other, or a rectangle of an image, for cells.
// Each has its place among all pixels of the batch, below zero where there is none.
struct Run {
  template <class T>
  static __device__ __forceinline__ void place(const Filter<T>& f, const SeparableTiles& t, int64_t* places) {
    const int64_t first = int64_t(blockIdx.x) * t.pixels, all = f.conv.B * f.conv.out_size();
    for (int p = threadIdx.x; p < t.pixels; p += kSeparableThreads) places[p] = first + p < all ? first + p : -1;
  }

  // What the depthwise convolution makes of channels `first` .. `first + t.chunk`, [pixels, t.stride]; zeros where
  // there are no channels.
  template <class T>
  static __device__ __forceinline__ void depthwise(const Filter<T>& f, const SeparableTiles& t, const int64_t* places,
                                                   int64_t first, T* to) {
    const int64_t size = f.conv.out_size();
    for (int k = threadIdx.x; k < t.pixels * t.chunk; k += kSeparableThreads) {
      // Threads that follow each other read what lies side by side.
      const int pixel = f.conv.channels_last ? k / t.chunk : k % t.pixels;
      const int channel = f.conv.channels_last ? k % t.chunk : k / t.pixels;
      const int64_t o = first + channel, place = places[pixel];
      Acc<T> value = 0;
      if (o < f.conv.channels() && place >= 0)
        value = finished(sum_of_taps(f, Place(f, place / size, place % size), o), f.bias ? f.bias + o : nullptr,
                         f.activation);
      to[pixel * t.stride + channel] = from_acc<T>(value);
    }
  }
};

template <class Cell>
struct Rectangle {
  struct Corner {
    int64_t b;
    int y, x;

    __device__ __forceinline__ explicit Corner(const SeparableTiles& t) {
      const unsigned above = blockIdx.x / t.tiles_x;
      x = blockIdx.x % t.tiles_x * t.columns, y = above % t.tiles_y * (t.pixels / t.columns), b = above / t.tiles_y;
    }
  };

  template <class T>
  static __device__ __forceinline__ void place(const Filter<T>& f, const SeparableTiles& t, int64_t* places) {
    const Corner corner(t);
    for (int p = threadIdx.x; p < t.pixels; p += kSeparableThreads) {
      const int64_t y = corner.y + p / t.columns, x = corner.x + p % t.columns;
      const bool there = y < f.conv.out[1] && x < f.conv.out[2];
      places[p] = there ? (corner.b * f.conv.out[1] + y) * f.conv.out[2] + x : -1;
    }
  }

  // A thread makes a cell of two channels.
  template <class T>
  static __device__ __forceinline__ void depthwise(const Filter<T>& f, const SeparableTiles& t, const int64_t*,
                                                   int64_t first, T* to) {
    constexpr int kV = kLaneChannels;
    const Corner corner(t);
    const PlaneSizes s(f.conv, false, false);
    const int channels = int(f.conv.C), pairs = t.chunk / kV, cells = t.pixels / Cell::kPlaces;
    const int cells_x = t.columns / Cell::kColumns;
    const bool last = f.conv.channels_last;
    const T* const image = f.from + corner.b * channels * s.from_y * s.from_x;
    const unsigned beside = last ? channels : 1, per_channel = last ? 1 : s.from_y * s.from_x;
    for (int k = threadIdx.x; k < pairs * cells; k += kSeparableThreads) {
      const int pair = last ? k % pairs : k / cells, cell = last ? k / pairs : k % cells;
      const int cell_y = cell / cells_x, cell_x = cell - cell_y * cells_x, channel = int(first) + pair * kV;
      const int from_y = Cell::Rows::first(corner.y + cell_y * Cell::kRows, s.pad_y);
      const int from_x = Cell::Columns::first(corner.x + cell_x * Cell::kColumns, s.pad_x);
      Acc<T> sums[Cell::kPlaces * kV] = {};
      if (channel < channels) {
        Acc<T> w[kV * Cell::kTaps];  // as they lie
#pragma unroll
        for (int i = 0; i < kV * Cell::kTaps; i += kV) {
          const Pack<T, kV> pack = load_pack<kV>(f.weight + int64_t(channel) * Cell::kTaps + i);
#pragma unroll
          for (int v = 0; v < kV; ++v) w[i + v] = to_acc(pack.of[v]);
        }
#pragma unroll
        for (int i = 0; i < Cell::kPlaces * kV; ++i) sums[i] = f.bias ? to_acc(f.bias[channel + i % kV]) : Acc<T>(0);
#pragma unroll
        for (int in_row = 0; in_row < Cell::kInRows; ++in_row) {
          const int row = from_y + in_row;
          if (row < 0 || row >= s.from_y) continue;
          Acc<T> numbers[Cell::kInColumns][kV];
          const unsigned at = (row * s.from_x + from_x) * beside + channel * per_channel;
          if (last)
            load_pixels(image, at * unsigned(sizeof(T)), beside * unsigned(sizeof(T)), true, from_x, s.from_x, numbers);
          else
            load_columns(image + int64_t(channel) * per_channel + row * s.from_x, per_channel, from_x, s.from_x,
                         numbers);
          Cell::each(in_row, [&](int place, int number, int tap) {
#pragma unroll
            for (int v = 0; v < kV; ++v) sums[place * kV + v] += numbers[number][v] * w[v * Cell::kTaps + tap];
          });
        }
        activate(sums, f.activation);
      }
#pragma unroll
      for (int place = 0; place < Cell::kPlaces; ++place) {
        const int y = cell_y * Cell::kRows + place / Cell::kColumns,
                  x = cell_x * Cell::kColumns + place % Cell::kColumns;
        store_row<kV>(to + (y * t.columns + x) * t.stride + pair * kV, static_cast<const T*>(nullptr),
                      sums + place * kV, kV, kV);
      }
    }
  }
};

// Four neighbours of a row of the weight, zeros where there are none.
template <class T>
__device__ __forceinline__ void load_four(const T* row, int64_t k, int64_t K, bool there, bool whole, T (&w)[4]) {
  if (whole && there && k < K) {
    const Pack<T, 4> pack = load_pack<4>(row + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = pack.of[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = there && k + i < K ? row[k + i] : from_acc<T>(0);
}

// The products of the block with t.units channels from `block_n` on, [pixels, out_stride], as what they become of y.
template <class T>
__device__ __forceinline__ void store_products(const SeparableForward<T>& s, const SeparableTiles& t, int64_t block_n,
                                               const int64_t* places, const Acc<T>* out) {
  const int64_t size = s.depthwise.conv.out_size();
  const bool last = s.depthwise.conv.channels_last;
  for (int k = threadIdx.x; k < t.pixels * t.units; k += kSeparableThreads) {
    const int pixel = last ? k / t.units : k % t.pixels, unit = last ? k % t.units : k / t.pixels;
    const int64_t n = block_n + unit, place = places[pixel];
    if (n >= s.N || place < 0) continue;
    const int64_t b = place / size, to = last ? place * s.N + n : (b * s.N + n) * size + place - b * size;
    Acc<T> value = finished(out[pixel * t.out_stride + unit], s.bias ? s.bias + n : nullptr, s.activation);
    if (s.residual) value += to_acc(s.residual[to]);
    s.y[to] = from_acc<T>(value);
  }
}

// whole: rows of the weight can be read four numbers at a time.
template <class T, class Pixels>
__global__ void __launch_bounds__(kSeparableThreads, 1)
    separable_forward(const __grid_constant__ Filter<T> f, const __grid_constant__ SeparableForward<T> s,
                      const SeparableTiles t, bool whole) {
  using Tile = typename Product<T>::Tile;
  constexpr int kRows = Product<T>::kArithmetic.rows, kOwn = Tile::kOwn, kGroups = separable_groups(sizeof(Acc<T>));
  constexpr int kAhead = 2;  // tiles of the weight that are under way at once
  ADL_DYNAMIC_SHARED(bytes);
  int64_t* const places = reinterpret_cast<int64_t*>(bytes);                     // [pixels]
  Acc<T>* const out = reinterpret_cast<Acc<T>*>(bytes + t.place_bytes);          // [pixels, out_stride]
  T* const between = reinterpret_cast<T*>(bytes + t.place_bytes + t.out_bytes);  // [pixels, stride]
  const int64_t K = f.conv.channels();
  Pixels::place(f, t, places);
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int warps_n = t.units / kTile, warp_n = warp % warps_n, warp_p = warp / warps_n;
  const int warps_p = kSeparableThreads / 32 / warps_n;
  for (int64_t block_n = 0; block_n < s.N; block_n += t.units) {
    const int64_t n = block_n + warp_n * kTile + 2 * g;  // and the next one
    for (int64_t k = 0; k == 0 || k < K; k += t.chunk) {
      if (t.chunk < K) __syncthreads();  // what is there has been used
      if (t.chunk < K || block_n == 0) Pixels::depthwise(f, t, places, k, between);
      __syncthreads();
      typename Tile::Sum sums[kGroups];
      for (int first = 0; first < t.chunk && k + first < K; first += kAhead * kTile) {
        Tile tiles[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          T w[2][4];
          const int at = first + a * kTile;
#pragma unroll
          for (int i = 0; i < 2; ++i)
            load_four(s.weight + (n + i) * K, k + at + 4 * q, K, at < t.chunk && n + i < s.N, whole, w[i]);
          tiles[a].set(w);
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          const int at = first + a * kTile;
#pragma unroll
          for (int j = 0; j < kGroups; ++j) {
            const int pixel = (warp_p + j * warps_p) * kRows;
            if (at < t.chunk && pixel < t.pixels)
              tiles[a].add(sums[j], Tile::operand(between + pixel * t.stride + at, t.stride, g, q));
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const int pixel = (warp_p + j * warps_p) * kRows;
        if (pixel >= t.pixels) continue;
        Acc<T> own[2][kOwn];
        Tile::finish(sums[j], q, own);
        Acc<T>* const to = out + (pixel + kOwn * q) * t.out_stride + warp_n * kTile + 2 * g;
#pragma unroll
        for (int i = 0; i < 2 * kOwn; ++i) {
          Acc<T>& sum = to[i % kOwn * t.out_stride + i / kOwn];
          sum = k == 0 ? own[i / kOwn][i % kOwn] : sum + own[i / kOwn][i % kOwn];
        }
      }
    }
    __syncthreads();
    store_products(s, t, block_n, places, out);
  }
}

}  // namespace adl
