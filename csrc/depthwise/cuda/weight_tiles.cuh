// Gradients of weights by tiles: a thread keeps the sums of all taps of a channel, or of two, in registers, over all
// that its block sees of the batch, so that x and dy are read once.
#pragma once

#include "depthwise/cuda/pixel.cuh"
#include "depthwise/cuda/weight_sums.cuh"

namespace adl {

// Adds the sums of the threads that share them, a row of the kernel at a time, and leaves them with the first one of
// them, who has channels `o` and those after it.
template <class T, class Cell, int n>
__device__ __forceinline__ void leave_sums(Acc<T> (&sums)[Cell::kTaps * n], Acc<T> (&dy_sums)[n],
                                           const Sharing& sharing, int taps, bool there, Acc<T>* out, Acc<T>* shared) {
  constexpr int kAtOnce = Cell::Columns::kTaps;
  const bool writes = there && sharing.leads();
  add_up(dy_sums, sharing, shared);
#pragma unroll
  for (int v = 0; v < n; ++v) {
    if (writes) out[v * (taps + 1) + taps] = dy_sums[v];
#pragma unroll
    for (int first = 0; first < Cell::kTaps; first += kAtOnce) {
      Acc<T> row[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) row[k] = sums[(first + k) * n + v];
      add_up(row, sharing, shared);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (writes && (Cell::kExact || first + k < taps)) out[v * (taps + 1) + first + k] = row[k];
    }
  }
}

// Planes: `members` threads follow each other for a channel. Pieces are of batch and tiles.
template <class T, class Cell>
__global__ void __launch_bounds__(kTileThreads, tile_blocks(Cell::kTaps, false))
    weight_grad_first(const __grid_constant__ ConvWeightGrad<T> g, const __grid_constant__ PlaneTiles t,
                      const PlaneSizes s, int members, int64_t pieces, Acc<T>* all_sums) {
  ADL_DYNAMIC_SHARED(bytes);
  T* const tile = reinterpret_cast<T*>(bytes);  // [planes, rows, width]
  ADL_SHARED(Acc<T>, shared, Cell::Columns::kTaps * kTileThreads);
  using Shape = PlaneCell<T, Cell>;
  const Conv& c = g.conv;
  const int channels = int(c.channels()), taps = int(c.taps());
  const int64_t piece = blockIdx.x % pieces;
  const int first_channel = int(blockIdx.x / pieces) * t.planes;
  const int planes = channels - first_channel < t.planes ? channels - first_channel : t.planes;
  const int plane = threadIdx.x / members, tiles = t.tiles_x * t.tiles_y;
  const bool there = plane < planes;
  Acc<T> sums[Cell::kTaps] = {}, dy_sum[1] = {};

  for (int64_t item = piece; item < c.B * tiles; item += pieces) {
    const int64_t b = item / tiles, first_plane = b * channels + first_channel;
    const int in_image = int(item - b * tiles), tile_y = in_image / t.tiles_x, tile_x = in_image - tile_y * t.tiles_x;
    __syncthreads();  // the tile before has been read
    copy_planes(t, g.x, first_plane, planes, c.multiplier, s.from_y, s.from_x,
                Cell::Rows::first(tile_y * t.cells_y * Cell::kRows, s.pad_y),
                Cell::Columns::first(tile_x * t.cells_x * Cell::kColumns, s.pad_x) - t.lead, tile);
    __syncthreads();
    const T* const dy = g.dy + (first_plane + plane) * s.to_y * s.to_x;
    for (int cell = threadIdx.x % members; there && cell < int(t.plane_cells.by); cell += members) {
      const int cell_y = t.cell_columns.quotient(cell), cell_x = cell - cell_y * t.cells_x;
      const int y = (tile_y * t.cells_y + cell_y) * Cell::kRows, x = (tile_x * t.cells_x + cell_x) * Cell::kColumns;
      Acc<T> grads[Cell::kPlaces];
      load_cell<Cell::kRows, Cell::kColumns>(dy + int64_t(y) * s.to_x + x, s.to_x, s.to_y - y, s.to_x - x, t.to_unit,
                                             grads);
#pragma unroll
      for (int k = 0; k < Cell::kPlaces; ++k) dy_sum[0] += grads[k];
      const T* const from =
          tile + (plane * t.rows + cell_y * Cell::Rows::advance(Cell::kRows)) * t.width + cell_x * Shape::kStep;
#pragma unroll
      for (int in_row = 0; in_row < Cell::kInRows; ++in_row) {
        Acc<T> numbers[Cell::kInColumns];
        Shape::load(from + in_row * t.width, t.lead, numbers);
        const auto add = [&](int place, int number, int tap) { sums[tap] += grads[place] * numbers[number]; };
        if (Cell::kExact || !c.documents) {
          Cell::each(in_row, add);
        } else {
          const SameDocument<Cell> same(c.documents + b * s.to_x, x, Cell::Columns::first(x, s.pad_x), s.to_x);
          Cell::each(in_row, [&](int place, int number, int tap) {
            if (same(place, number)) add(place, number, tap);
          });
        }
      }
    }
  }
  Acc<T>* const out = all_sums + (piece * channels + first_channel + plane) * (taps + 1);
  leave_sums<T, Cell, 1>(sums, dy_sum, Sharing::adjacent(members), taps, there, out, shared);
}

// Pixels: threads `lanes` apart for two channels. Pieces are of batch and tiles, one below the other.
template <class T, class Cell>
__global__ void __launch_bounds__(kTileThreads, tile_blocks(Cell::kTaps, true))
    weight_grad_last(const __grid_constant__ ConvWeightGrad<T> g, const PixelTiles t, const PlaneSizes s,
                     int64_t pieces, Acc<T>* all_sums) {
  constexpr int kV = kLaneChannels;
  ADL_SHARED(Acc<T>, shared, Cell::Columns::kTaps * kTileThreads);
  const Conv& c = g.conv;
  const int channels = int(c.channels()), taps = int(c.taps()), tiles = t.tiles_x * t.tiles_y;
  const int64_t piece = blockIdx.x % pieces, items = c.B * tiles, per_piece = (items + pieces - 1) / pieces;
  const int64_t end = per_piece * (piece + 1) < items ? per_piece * (piece + 1) : items;
  const Pixel at(t, int(blockIdx.x / pieces));
  const bool there = at.channel < channels;
  const unsigned pixel_bytes = channels * sizeof(T), channel_bytes = at.channel * sizeof(T);
  Acc<T> sums[Cell::kTaps * kV] = {}, dy_sums[kV] = {};

  for (int64_t item = per_piece * piece; there && item < end; ++item) {
    const int64_t b = item / tiles;
    const int in_image = int(item - b * tiles), tile_x = in_image / t.tiles_y, tile_y = in_image - tile_x * t.tiles_y;
    const int y = (tile_y * t.cells_y + at.cell_y) * Cell::kRows, x = (tile_x * t.cells_x + at.cell_x) * Cell::kColumns;
    const int from_y = Cell::Rows::first(y, s.pad_y), from_x = Cell::Columns::first(x, s.pad_x);
    if (y >= s.to_y || x >= s.to_x) continue;
    const T* const dy = g.dy + b * s.to_y * s.to_x * channels;
    const T* const from = g.x + b * s.from_y * s.from_x * channels;
    Acc<T> grads[Cell::kRows][Cell::kColumns][kV];
#pragma unroll
    for (int r = 0; r < Cell::kRows; ++r) {
      load_pixels(dy, ((y + r) * s.to_x + x) * pixel_bytes + channel_bytes, pixel_bytes, y + r < s.to_y, x, s.to_x,
                  grads[r]);
#pragma unroll
      for (int k = 0; k < Cell::kColumns * kV; ++k) dy_sums[k % kV] += grads[r][k / kV][k % kV];
    }
#pragma unroll
    for (int in_row = 0; in_row < Cell::kInRows; ++in_row) {
      const int row = from_y + in_row;
      if (row < 0 || row >= s.from_y) continue;  // there are registers for one row at a time
      Acc<T> numbers[Cell::kInColumns][kV];
      load_pixels(from, (row * s.from_x + from_x) * pixel_bytes + channel_bytes, pixel_bytes, true, from_x, s.from_x,
                  numbers);
      const auto add = [&](int place, int number, int tap) {
#pragma unroll
        for (int v = 0; v < kV; ++v)
          sums[tap * kV + v] += grads[place / Cell::kColumns][place % Cell::kColumns][v] * numbers[number][v];
      };
      if (Cell::kExact || !c.documents) {
        Cell::each(in_row, add);
      } else {
        const SameDocument<Cell> same(c.documents + b * s.to_x, x, from_x, s.to_x);
        Cell::each(in_row, [&](int place, int number, int tap) {
          if (same(place, number)) add(place, number, tap);
        });
      }
    }
  }
  Acc<T>* const out = all_sums + (piece * channels + at.channel) * (taps + 1);
  leave_sums<T, Cell, kV>(sums, dy_sums, Sharing::strided(t.lanes, kTileThreads), taps, there, out, shared);
}

}  // namespace adl
