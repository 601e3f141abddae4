// Filters by tiles, where the channels lie side by side: a thread makes some rows and columns of two channels, with
// their weights in registers.
#pragma once

#include "depthwise/cuda/filter.cuh"
#include "depthwise/cuda/pixel.cuh"

namespace adl {

template <class T, class Cell>
__global__ void __launch_bounds__(kTileThreads, tile_blocks(Cell::kTaps, true))
    filter_last(const __grid_constant__ Filter<T> f, const PixelTiles t, const PlaneSizes s, bool flipped) {
  constexpr int kV = kLaneChannels, kMostChannels = 32 * kV;
  // Weights [tap, channel]: as they lie in memory, the threads of a warp would read them far apart.
  ADL_SHARED(Acc<T>, weights, Cell::kTaps * (kMostChannels + kV));
  const int channels = int(f.to_channels()), taps = int(f.conv.taps());
  unsigned block = blockIdx.x;
  const int chunk = block % t.chunks, tile_x = (block /= t.chunks) % t.tiles_x;
  const int tile_y = (block /= t.tiles_x) % t.tiles_y;
  const int64_t b = block / t.tiles_y;
  const Pixel at(t, chunk);
  const int block_channels = t.lanes * kV, stride = block_channels + kV, first_channel = chunk * block_channels;
  for (int k = threadIdx.x; k < block_channels * Cell::kTaps; k += kTileThreads) {
    const int c = k / Cell::kTaps, tap = k % Cell::kTaps;
    const bool there = first_channel + c < channels && tap < taps;
    const int lies = flipped ? taps - 1 - tap : tap;
    weights[tap * stride + c] = there ? to_acc(f.weight[int64_t(first_channel + c) * taps + lies]) : Acc<T>(0);
  }
  __syncthreads();
  if (at.channel >= channels) return;

  Acc<T> w[Cell::kTaps][kV], bias[kV];
#pragma unroll
  for (int v = 0; v < kV; ++v) {
    bias[v] = f.bias ? to_acc(f.bias[at.channel + v]) : Acc<T>(0);
#pragma unroll
    for (int k = 0; k < Cell::kTaps; ++k) w[k][v] = weights[k * stride + at.lane * kV + v];
  }
  const T* const from = f.from + b * s.from_y * s.from_x * channels;
  const int64_t to = b * s.to_y * s.to_x * channels;
  const unsigned pixel_bytes = channels * sizeof(T), channel_bytes = at.channel * sizeof(T);
  const int x = (tile_x * t.cells_x + at.cell_x) * Cell::kColumns, from_x = Cell::Columns::first(x, s.pad_x);

  for (int step = 0; step < t.steps; ++step) {
    const int y = ((tile_y * t.steps + step) * t.cells_y + at.cell_y) * Cell::kRows;
    const int from_y = Cell::Rows::first(y, s.pad_y);
    if (y >= s.to_y || x >= s.to_x) return;
    Acc<T> sums[Cell::kPlaces * kV];
#pragma unroll
    for (int k = 0; k < Cell::kPlaces * kV; ++k) sums[k] = bias[k % kV];
#pragma unroll
    for (int in_row = 0; in_row < Cell::kInRows; ++in_row) {
      const int row = from_y + in_row;
      // With so many taps there are registers for one row at a time.
      if (Cell::kTaps > 9 && (row < 0 || row >= s.from_y)) continue;
      Acc<T> numbers[Cell::kInColumns][kV];
      load_pixels(from, (row * s.from_x + from_x) * pixel_bytes + channel_bytes, pixel_bytes,
                  row >= 0 && row < s.from_y, from_x, s.from_x, numbers);
      const auto add = [&](int place, int number, int tap) {
#pragma unroll
        for (int v = 0; v < kV; ++v) sums[place * kV + v] += numbers[number][v] * w[tap][v];
      };
      if constexpr (Cell::kExact) {
        Cell::each(in_row, add);
      } else if (!f.conv.documents) {
        Cell::each(in_row, [&](int place, int number, int tap) {
          if (tap < taps) add(place, number, tap);
        });
      } else {
        const SameDocument<Cell> same(f.conv.documents + b * s.to_x, x, from_x, s.to_x);
        Cell::each(in_row, [&](int place, int number, int tap) {
          if (tap < taps && same(place, number)) add(place, number, tap);
        });
      }
    }

    activate(sums, f.activation);
#pragma unroll
    for (int place = 0; place < Cell::kPlaces; ++place) {
      const int to_y = y + place / Cell::kColumns, to_x = x + place % Cell::kColumns;
      if (to_y >= s.to_y || to_x >= s.to_x) continue;
      const unsigned bytes = (to_y * s.to_x + to_x) * pixel_bytes + channel_bytes;
      const T* const more = f.residual ? in_image(f.residual + to, bytes) : nullptr;
      store_row<kV>(in_image(f.to + to, bytes), more, sums + place * kV, kV, kV);
    }
  }
}

}  // namespace adl
