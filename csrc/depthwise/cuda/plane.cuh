// Tiles of planes [height, width] of channels that lie one after the other, in shared memory.
#pragma once

#include "depthwise/cuda/window.cuh"

namespace adl {

// Copied to shared memory, with zeros around it: numbers [planes, rows, width] from `from_y`, `from_x` on. Plane p is
// made from plane p / multiplier.
template <int unit, class T>
__device__ __forceinline__ void copy_planes(const PlaneTiles& t, const T* from, int64_t first_plane, int planes,
                                            int64_t multiplier, int height, int width, int from_y, int from_x,
                                            T* shared) {
  constexpr int kAhead = 4;  // loads of a thread that are under way at once
  const int units = t.row_units.by, count = planes * t.rows * units;
  for (int first = threadIdx.x; first < count; first += kAhead * kTileThreads) {
    Pack<T, unit> packs[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int k = first + j * kTileThreads, line = t.row_units.quotient(k), plane = t.shared_rows.quotient(line);
      const int y = from_y + line - plane * t.rows, x = from_x + (k - line * units) * unit;
#pragma unroll
      for (int i = 0; i < unit; ++i) packs[j].of[i] = from_acc<T>(0);
      if (k < count && y >= 0 && y < height && x >= 0 && x < width) {
        const int64_t p = multiplier == 1 ? first_plane + plane : (first_plane + plane) / multiplier;
        packs[j] = load_pack<unit>(from + (p * height + y) * width + x);
      }
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (first + j * kTileThreads < count) store_pack(shared + (first + j * kTileThreads) * unit, packs[j]);
  }
}
template <class T>
__device__ __forceinline__ void copy_planes(const PlaneTiles& t, const T* from, int64_t first_plane, int planes,
                                            int64_t multiplier, int height, int width, int from_y, int from_x,
                                            T* shared) {
  if (t.unit == 4)
    return copy_planes<4>(t, from, first_plane, planes, multiplier, height, width, from_y, from_x, shared);
  if (t.unit == 2)
    return copy_planes<2>(t, from, first_plane, planes, multiplier, height, width, from_y, from_x, shared);
  copy_planes<1>(t, from, first_plane, planes, multiplier, height, width, from_y, from_x, shared);
}

// How the columns of a cell lie in shared memory: in rows that begin some numbers early, `lead`, where whole units do.
// It is known with the cell, for the usual padding; where kernels are short and rows are long, for every padding.
template <class T, class Cell>
struct PlaneCell {
  static constexpr int kStep = Cell::Columns::advance(Cell::kColumns);
  static constexpr int kRead = kStep % kWideRead == 0 ? kWideRead : 2;  // at once
  static_assert(kStep % kRead == 0, "");
  static constexpr int kMostLead =
      Cell::kExact ? (kWideRead - Cell::Columns::kBefore % kWideRead) % kWideRead : kWideRead - 1;

  static constexpr int lead(int pad) {
    const int first = Cell::Columns::first(0, pad) % kWideRead;
    return Cell::kExact ? kMostLead : (first + kWideRead) % kWideRead;
  }

  // The numbers that a cell reads of a row, which it begins at `shared` + its column * kStep.
  static __device__ __forceinline__ void load(const T* shared, int lead, Acc<T> (&numbers)[Cell::kInColumns]) {
    constexpr int kSkip = Cell::kExact ? kMostLead / kRead * kRead : 0, kInto = kMostLead - kSkip;
    constexpr int kCount = (kInto + Cell::kInColumns + kRead - 1) / kRead * kRead;
    Acc<T> wide[kCount];
#pragma unroll
    for (int k = 0; k < kCount; k += kRead) {
      const Pack<T, kRead> pack = load_pack<kRead>(shared + kSkip + k);
#pragma unroll
      for (int i = 0; i < kRead; ++i) wide[k + i] = to_acc(pack.of[i]);
    }
    if constexpr (Cell::kExact) {
#pragma unroll
      for (int k = 0; k < Cell::kInColumns; ++k) numbers[k] = wide[kInto + k];
    } else {  // registers have no index that is found at run time
#pragma unroll
      for (int k = 0; k < Cell::kInColumns + 1; ++k) wide[k] = lead & 2 ? wide[k + 2] : wide[k];
#pragma unroll
      for (int k = 0; k < Cell::kInColumns; ++k) numbers[k] = lead & 1 ? wide[k + 1] : wide[k];
    }
  }
};

// to = values + more (may be null), a row of which `count` columns are there.
template <int n, class T>
__device__ __forceinline__ void store_row(T* to, const T* more, const Acc<T>* values, int count, int unit) {
  const auto with = [&]<int wide>(Pack<T, wide>*) {
#pragma unroll
    for (int k = 0; k < n; k += wide) {
      if (k >= count) continue;
      Pack<T, wide> pack;
      if (more) pack = load_pack<wide>(more + k);
#pragma unroll
      for (int i = 0; i < wide; ++i)
        pack.of[i] = from_acc<T>(more ? values[k + i] + to_acc(pack.of[i]) : values[k + i]);
      store_pack(to + k, pack);
    }
  };
  if (unit == 4) return with(static_cast<Pack<T, 4>*>(nullptr));
  if (unit == 2) return with(static_cast<Pack<T, 2>*>(nullptr));
  with(static_cast<Pack<T, 1>*>(nullptr));
}

// values = rows x columns from where they lie `width` apart; zeros where there are none.
template <int rows, int columns, class T>
__device__ __forceinline__ void load_cell(const T* from, int64_t width, int row_count, int count, int unit,
                                          Acc<T> (&values)[rows * columns]) {
  const auto with = [&]<int wide>(Pack<T, wide>*) {
#pragma unroll
    for (int k = 0; k < rows * columns; k += wide) {
      const int row = k / columns, column = k % columns;
      const bool there = row < row_count && column < count;
      Pack<T, wide> pack;
      if (there) pack = load_pack<wide>(from + row * width + column);
#pragma unroll
      for (int i = 0; i < wide; ++i) values[k + i] = there ? to_acc(pack.of[i]) : Acc<T>(0);
    }
  };
  if (unit == 4) return with(static_cast<Pack<T, 4>*>(nullptr));
  if (unit == 2) return with(static_cast<Pack<T, 2>*>(nullptr));
  with(static_cast<Pack<T, 1>*>(nullptr));
}

// Sizes of a filter with tiles, as plain integers.
struct PlaneSizes {
  int from_y, from_x, to_y, to_x, pad_y, pad_x;

  // flipped: the input gradient of stride 1, which is a filter of its own.
  constexpr PlaneSizes(const Conv& c, bool transposed, bool flipped) {
    const int64_t *from = transposed ? c.out : c.in, *to = transposed ? c.in : c.out;
    from_y = int(from[1]), from_x = int(from[2]), to_y = int(to[1]), to_x = int(to[2]);
    pad_y = int(flipped ? c.kernel[1] - 1 - c.pad[1] : c.pad[1]);
    pad_x = int(flipped ? c.kernel[2] - 1 - c.pad[2] : c.pad[2]);
  }
};

}  // namespace adl
