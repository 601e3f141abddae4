// Filters by tiles, where the numbers of a channel lie side by side: a thread makes some rows and columns of a plane
// from a tile in shared memory, with the weights in registers.
#pragma once

#include "depthwise/cuda/filter.cuh"
#include "depthwise/cuda/plane.cuh"

namespace adl {

// The weights of a channel in the order in which taps follow `from`.
template <class Cell, class T>
__device__ __forceinline__ void load_weights(const T* weight, int taps, bool flipped, Acc<T> (&w)[Cell::kTaps]) {
  const T* const first = weight + (flipped ? taps - 1 : 0);
  const int step = flipped ? -1 : 1;
#pragma unroll
  for (int k = 0; k < Cell::kTaps; ++k) w[k] = Cell::kExact || k < taps ? to_acc(first[k * step]) : Acc<T>(0);
}

template <class T, class Cell>
__global__ void __launch_bounds__(kTileThreads, tile_blocks(Cell::kTaps, false))
    filter_first(const __grid_constant__ Filter<T> f, const __grid_constant__ PlaneTiles t, const PlaneSizes s,
                 bool flipped) {
  ADL_DYNAMIC_SHARED(bytes);
  T* const shared = reinterpret_cast<T*>(bytes);  // [planes, rows, width]
  using Shape = PlaneCell<T, Cell>;
  const int64_t channels = f.to_channels(), all_planes = f.conv.B * channels;
  const int tile_x = blockIdx.x % t.tiles_x, above = blockIdx.x / t.tiles_x, tile_y = above % t.tiles_y;
  const int64_t first_plane = int64_t(above / t.tiles_y) * t.planes, left = all_planes - first_plane;
  const int planes = left < t.planes ? int(left) : t.planes;
  const int tile_from_x = Cell::Columns::first(tile_x * t.cells_x * Cell::kColumns, s.pad_x) - t.lead;
  const int tile_from_y = Cell::Rows::first(tile_y * t.cells_y * Cell::kRows, s.pad_y);
  copy_planes(t, f.from, first_plane, planes, f.transposed ? 1 : f.conv.multiplier, s.from_y, s.from_x, tile_from_y,
              tile_from_x, shared);
  __syncthreads();

  const int plane = t.plane_cells.quotient(threadIdx.x);
  if (plane >= planes) return;
  const int cell = threadIdx.x - plane * t.plane_cells.by, cell_y = t.cell_columns.quotient(cell);
  const int cell_x = cell - cell_y * t.cells_x;
  const int y = (tile_y * t.cells_y + cell_y) * Cell::kRows, x = (tile_x * t.cells_x + cell_x) * Cell::kColumns;
  const int64_t p = first_plane + plane, channel = p % channels;
  const int taps = int(f.conv.taps());
  Acc<T> w[Cell::kTaps], sums[Cell::kPlaces];
  load_weights<Cell>(f.weight + channel * taps, taps, flipped, w);
  const Acc<T> bias = f.bias ? to_acc(f.bias[channel]) : Acc<T>(0);
#pragma unroll
  for (int k = 0; k < Cell::kPlaces; ++k) sums[k] = bias;

  const T* const tile =
      shared + (plane * t.rows + cell_y * Cell::Rows::advance(Cell::kRows)) * t.width + cell_x * Shape::kStep;
#pragma unroll
  for (int in_row = 0; in_row < Cell::kInRows; ++in_row) {
    Acc<T> numbers[Cell::kInColumns];
    Shape::load(tile + in_row * t.width, t.lead, numbers);
    if constexpr (Cell::kExact) {
      Cell::each(in_row, [&](int place, int number, int tap) { sums[place] += numbers[number] * w[tap]; });
    } else if (!f.conv.documents) {
      Cell::each(in_row, [&](int place, int number, int tap) {
        if (tap < taps) sums[place] += numbers[number] * w[tap];
      });
    } else {
      const SameDocument<Cell> same(f.conv.documents + p / channels * s.to_x, x, Cell::Columns::first(x, s.pad_x),
                                    s.to_x);
      Cell::each(in_row, [&](int place, int number, int tap) {
        if (tap < taps && same(place, number)) sums[place] += numbers[number] * w[tap];
      });
    }
  }

  activate(sums, f.activation);
  const int64_t at = (p * s.to_y + y) * s.to_x + x;
#pragma unroll
  for (int r = 0; r < Cell::kRows; ++r)
    if (y + r < s.to_y) {
      const int64_t row = at + int64_t(r) * s.to_x;
      store_row<Cell::kColumns>(f.to + row, f.residual ? f.residual + row : nullptr, sums + r * Cell::kColumns,
                                s.to_x - x, t.to_unit);
    }
}

}  // namespace adl
