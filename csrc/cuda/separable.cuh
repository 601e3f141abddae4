// A depthwise convolution, its bias and activation, and the 1x1 convolution of that, a matrix product: what comes in
// between stays in the shared memory of a block, which has some pixels and all channels.
#pragma once

#include "cuda/filter.cuh"
#include "cuda/tile.cuh"
#include "cuda/window.cuh"

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

// What the depthwise convolution makes of channels `first` .. `first + t.chunk`, for the block's pixels, of which there
// are `count`; zeros where there are no channels or pixels.
template <class T>
__device__ __forceinline__ void depthwise(const Filter<T>& f, const SeparableTiles& t, const Place* places, int count,
                                          int64_t first, T* shared) {
  for (int k = threadIdx.x; k < t.pixels * t.chunk; k += kSeparableThreads) {
    // Threads that follow each other read what lies side by side.
    const int pixel = f.conv.channels_last ? k / t.chunk : k % t.pixels;
    const int channel = f.conv.channels_last ? k % t.chunk : k / t.pixels;
    const int64_t o = first + channel;
    Acc<T> value = 0;
    if (o < f.conv.channels() && pixel < count)
      value = finished(sum_of_taps(f, places[pixel], o), f.bias ? f.bias + o : nullptr, f.activation);
    shared[pixel * t.stride + channel] = from_acc<T>(value);
  }
}

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
__device__ __forceinline__ void store_products(const Filter<T>& f, const SeparableForward<T>& s,
                                               const SeparableTiles& t, int64_t first, int count, int64_t block_n,
                                               const Place* places, const Acc<T>* out) {
  const int64_t size = f.conv.out_size();
  for (int k = threadIdx.x; k < t.pixels * t.units; k += kSeparableThreads) {
    const int pixel = f.conv.channels_last ? k / t.units : k % t.pixels;
    const int unit = f.conv.channels_last ? k % t.units : k / t.pixels;
    const int64_t n = block_n + unit, place = first + pixel;
    if (n >= s.N || pixel >= count) continue;
    const int64_t b = places[pixel].b;
    const int64_t to = f.conv.channels_last ? place * s.N + n : (b * s.N + n) * size + place - b * size;
    Acc<T> value = finished(out[pixel * t.out_stride + unit], s.bias ? s.bias + n : nullptr, s.activation);
    if (s.residual) value += to_acc(s.residual[to]);
    s.y[to] = from_acc<T>(value);
  }
}

// whole: rows of the weight can be read four numbers at a time.
template <class T>
__global__ void __launch_bounds__(kSeparableThreads, sizeof(Acc<T>) > 4 ? 1 : 2)
    separable_forward(const __grid_constant__ Filter<T> f, const __grid_constant__ SeparableForward<T> s,
                      const SeparableTiles t, bool whole) {
  using Tile = typename Product<T>::Tile;
  constexpr int kRows = Product<T>::kArithmetic.rows, kOwn = Tile::kOwn, kGroups = separable_groups(sizeof(Acc<T>));
  ADL_DYNAMIC_SHARED(bytes);
  Place* const places = reinterpret_cast<Place*>(bytes);                         // [pixels]
  Acc<T>* const out = reinterpret_cast<Acc<T>*>(bytes + t.place_bytes);          // [pixels, out_stride]
  T* const between = reinterpret_cast<T*>(bytes + t.place_bytes + t.out_bytes);  // [pixels, stride]
  const int64_t K = f.conv.channels(), size = f.conv.out_size(), first = int64_t(blockIdx.x) * t.pixels;
  const int64_t left = f.conv.B * size - first;
  const int count = left < t.pixels ? int(left) : t.pixels;
  for (int p = threadIdx.x; p < count; p += kSeparableThreads)
    places[p] = Place(f, (first + p) / size, (first + p) % size);
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int warps_n = t.units / kTile, warp_n = warp % warps_n, warp_p = warp / warps_n;
  const int warps_p = kSeparableThreads / 32 / warps_n;
  for (int64_t block_n = 0; block_n < s.N; block_n += t.units) {
    const int64_t n = block_n + warp_n * kTile + 2 * g;  // and the next one
    for (int64_t k = 0; k == 0 || k < K; k += t.chunk) {
      if (t.chunk < K) __syncthreads();  // what is there has been used
      if (t.chunk < K || block_n == 0) depthwise(f, t, places, count, k, between);
      __syncthreads();
      typename Tile::Sum sums[kGroups];
      for (int at = 0; at < t.chunk && k + at < K; at += kTile) {
        T w[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) load_four(s.weight + (n + i) * K, k + at + 4 * q, K, n + i < s.N, whole, w[i]);
        Tile tile;
        tile.set(w);
#pragma unroll
        for (int j = 0; j < kGroups; ++j) {
          const int pixel = (warp_p + j * warps_p) * kRows;
          if (pixel < t.pixels) tile.add(sums[j], Tile::operand(between + pixel * t.stride + at, t.stride, g, q));
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
    store_products(f, s, t, first, count, block_n, places, out);
  }
}

namespace cuda {

template <class T>
cudaError_t separable(const SeparableForward<T>& s, const Gpu& gpu, cudaStream_t stream) {
  const Conv& c = s.depthwise.conv;
  const int64_t places = c.B * c.out_size();
  const SeparableTiles t =
      separable_tiles(places, c.channels(), s.N, Product<T>::kArithmetic, sizeof(Place), sizeof(Acc<T>), gpu);
  const bool whole = c.channels() % 4 == 0 && lies_at(s.weight, 4);
  return launch(separable_forward<T>, unsigned(divided_up(places, t.pixels)), kSeparableThreads, stream, {t.bytes},
                Filter<T>(s.depthwise), s, t, whole);
}

}  // namespace cuda
}  // namespace adl
