// How the results that a thread makes side by side lie over what they are made from, along one dimension; known when
// the kernel is compiled, so that all of it stays in registers.
#pragma once

#include "common/cuda/device.cuh"
#include "depthwise/cuda/launch.h"

namespace adl {

// Place i reads numbers i * stride + tap.
template <int kernel, int stride>
struct Down {
  static constexpr int kTaps = kernel, kBefore = kernel / 2;
  static constexpr bool kExact = true;
  static constexpr bool uses(int, int) { return true; }
  static constexpr int source(int i, int tap) { return i * stride + tap; }
  static constexpr int extent(int n) { return (n - 1) * stride + kernel; }
  static constexpr int advance(int n) { return n * stride; }
  // Where the numbers for `place` and the next ones begin.
  static constexpr int first(int place, int pad) { return place * stride - pad; }
};

// The same with stride 1 and any kernel of at most so many taps.
template <int most>
struct UpTo : Down<most, 1> {
  static constexpr int kBefore = most - 1;  // as a causal convolution has it
  static constexpr bool kExact = false;
};

// The transpose of stride 2: place i reads number (i + pad - tap) / 2 for every second tap. Places begin at an even
// one, and pad - kernel / 2 is even too.
template <int kernel>
struct Up {
  static constexpr int kTaps = kernel, kBefore = kernel / 4;
  static constexpr bool kExact = true;
  static constexpr bool uses(int i, int tap) { return (i + kernel / 2 - tap) % 2 == 0; }
  static constexpr int source(int i, int tap) { return (i + kernel / 2 - tap) / 2 + kBefore; }
  static constexpr int extent(int n) { return (n - 1 + kernel / 2) / 2 + kBefore + 1; }
  static constexpr int advance(int n) { return n / 2; }
  static constexpr int first(int place, int pad) { return (place + pad - kernel / 2) / 2 - kBefore; }
};

// The results of a thread: rows x columns.
template <class Rows_, class Columns_, int rows, int columns>
struct Cell {
  using Rows = Rows_;
  using Columns = Columns_;
  static constexpr int kRows = rows, kColumns = columns, kPlaces = rows * columns;
  static constexpr int kTaps = Rows::kTaps * Columns::kTaps;
  static constexpr int kInRows = Rows::extent(rows), kInColumns = Columns::extent(columns);
  static constexpr bool kExact = Columns::kExact;

  static constexpr Along along_y() { return {rows, kInRows - Rows::advance(rows), Rows::advance(rows)}; }
  static constexpr Along along_x() {
    return {columns, kInColumns - Columns::advance(columns), Columns::advance(columns)};
  }

  // Calls f(place, number of the row, tap) for all that meet in row `in_row` of what is read.
  template <class F>
  static __device__ __forceinline__ void each(int in_row, F f) {
#pragma unroll
    for (int r = 0; r < rows; ++r)
#pragma unroll
      for (int ky = 0; ky < Rows::kTaps; ++ky) {
        if (!Rows::uses(r, ky) || Rows::source(r, ky) != in_row) continue;
#pragma unroll
        for (int kx = 0; kx < Columns::kTaps; ++kx)
#pragma unroll
          for (int p = 0; p < columns; ++p)
            if (Columns::uses(p, kx)) f(r * columns + p, Columns::source(p, kx), ky * Columns::kTaps + kx);
      }
  }
};

// n numbers that are read or written at once.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T of[n];
};

template <int n, class T>
__device__ __forceinline__ Pack<T, n> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, n>*>(p);
}
template <int n, class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(p) = pack;
}

template <class T>
bool lies_at(const T* p, int unit) {
  return reinterpret_cast<uintptr_t>(p) % (unit * sizeof(T)) == 0;
}

// Which numbers of a row are of the same document as a place of it; null ids: all are.
template <class Cell>
struct SameDocument {
  int32_t own[Cell::kColumns], read[Cell::kInColumns];

  __device__ __forceinline__ SameDocument(const int32_t* ids, int x, int from_x, int width) {
#pragma unroll
    for (int p = 0; p < Cell::kColumns; ++p) own[p] = x + p < width ? ids[x + p] : 0;
#pragma unroll
    for (int k = 0; k < Cell::kInColumns; ++k) read[k] = from_x + k >= 0 && from_x + k < width ? ids[from_x + k] : 0;
  }
  __device__ __forceinline__ bool operator()(int place, int number) const { return own[place] == read[number]; }
};

}  // namespace adl
