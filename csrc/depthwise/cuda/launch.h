// Every choice of threads and tiles of the depthwise convolutions, as functions of plain values. No CUDA here.
#pragma once

#include "common/cuda/launch.h"
#include "depthwise/params.h"

namespace adl {

constexpr int kConvThreads = 256;  // of kernels that serve every size
constexpr int kTileThreads = 128;  // of those that make tiles: they need many registers

constexpr int kBlocksPerUnit = 8;  // multiprocessors get so many blocks, if there is work for them

constexpr int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Of at most `most` lanes along the channels, the most that leave few without a channel.
constexpr int channel_lanes(int64_t channels, int most) {
  int lanes = most;
  while (lanes > 1 && divided_up(channels, lanes) * lanes * 8 > channels * 9) lanes /= 2;
  return lanes;
}

// ---- tiles: one or two dimensions, the common kernels, strides 1 and 2, no dilation

constexpr int kTileColumns = 4;    // of a result that a thread makes side by side
constexpr int kTileColumns1d = 8;  // the same in one dimension
// Rows of a result that a thread makes. What it holds in registers, of two channels where they lie side by side:
// weights, sums and a row of what it reads.
constexpr int tile_rows(int kernel, int stride, bool channels_last) {
  const int rows = channels_last && kernel == 7 ? 2 : 4;
  return rows / stride;
}

// Blocks that a multiprocessor has at a time, with such kernels: as the registers allow.
constexpr int tile_blocks(int taps, bool channels_last) {
  const int blocks = taps > 25 ? 2 : taps > 9 ? 3 : 4;
  return channels_last ? blocks - 1 : blocks;
}

constexpr int kMostTaps1d = 8;  // of a tile in one dimension
constexpr int kMostCells = 16;  // side by side in a block
constexpr int kWideRead = 4;    // numbers that are read from and written to memory at once, where they lie so
constexpr size_t kTileBytes = 48 << 10;
constexpr int64_t kMostSize = 1 << 24;                    // so that places are plain integers
constexpr int64_t kMostOfImage = (int64_t(1) << 30) - 1;  // numbers, so that bytes of an image are 32 bits
constexpr int kLaneChannels = 2;                          // of each thread, where channels lie side by side

constexpr bool is_1d(const Conv& c) { return c.in[1] == 1 && c.out[1] == 1 && c.kernel[1] == 1 && c.pad[1] == 0; }

// Whether there are tiles for the forward pass and for gradients of weights (else for the input gradient).
constexpr bool tiles_serve(const Conv& c, bool transposed) {
  if (c.in[0] != 1 || c.out[0] != 1 || c.kernel[0] != 1 || c.pad[0] != 0) return false;
  for (int d = 1; d < kSpatial; ++d)
    if (c.in[d] > kMostSize || c.out[d] > kMostSize || c.pad[d] > kMostSize || (c.kernel[d] > 1 && c.dilation[d] != 1))
      return false;
  if (transposed && c.multiplier != 1) return false;
  if (c.channels_last) {
    const int64_t most = c.in_size() > c.out_size() ? c.in_size() : c.out_size();
    if (c.multiplier != 1 || c.C % kLaneChannels != 0 || most * c.C > kMostOfImage) return false;
  }
  const int64_t k = c.kernel[2], stride = c.stride[2];
  if (is_1d(c)) return stride == 1 && k <= kMostTaps1d;
  if (c.documents || c.kernel[1] != k || c.stride[1] != stride || (k != 3 && k != 5 && k != 7)) return false;
  // The phases of a transposed stride of 2 are known where the padding is as usual, or differs by an even number.
  const bool usual = (c.pad[1] - k / 2) % 2 == 0 && (c.pad[2] - k / 2) % 2 == 0;
  return stride == 1 || (stride == 2 && (!transposed || usual));
}

// n / by for n * by < 2^32.
struct Divisor {
  unsigned by = 1, magic = 0;  // 2^32 / by, rounded up; 0 for 1

  constexpr Divisor() = default;
  constexpr explicit Divisor(unsigned d) : by(d), magic(d == 1 ? 0 : unsigned((uint64_t(1) << 32) / d + 1)) {}
  constexpr unsigned quotient(unsigned n) const { return magic ? unsigned(uint64_t(n) * magic >> 32) : n; }
};

// What a kernel of tiles is made for, of one dimension: columns (or rows) of the result that a thread makes, and how
// the numbers they are made from follow them.
struct Along {
  int made;         // by a thread
  int extent_more;  // numbers that `n` threads read: n * advance + extent_more
  int advance;      // from a thread's numbers to its neighbour's
};

// Planes [height, width] of channels that lie one after the other. A block has a tile of `planes` of them, of
// cells_y x cells_x cells, each the work of a thread; what they are made from is copied to shared memory.
struct PlaneTiles {
  int cells_x, cells_y, tiles_x, tiles_y, planes;
  int rows, width;  // in shared memory, of each plane
  int lead;         // numbers that its rows begin early
  Divisor cell_columns, plane_cells, shared_rows, row_units;
  int unit;     // numbers that are copied at once
  int to_unit;  // and stored
  size_t plane_bytes;
};

constexpr PlaneTiles plane_tiles(int64_t planes, int64_t to_height, int64_t to_width, Along y, Along x, int most_lead,
                                 int unit, int to_unit, size_t number_bytes) {
  PlaneTiles t{};
  const int most_x = y.made == 1 && y.extent_more == 0 ? kTileThreads : kMostCells;  // a single row is long
  const int64_t columns = divided_up(to_width, x.made), rows = divided_up(to_height, y.made);
  t.tiles_x = int(divided_up(columns, most_x));
  t.cells_x = int(divided_up(columns, t.tiles_x));
  if (t.tiles_x > 1) t.cells_x += t.cells_x % 2;  // so that tiles begin where whole units do
  const int most_y = kTileThreads / t.cells_x;
  t.tiles_y = int(divided_up(rows, most_y));
  t.cells_y = int(divided_up(rows, t.tiles_y));
  t.rows = t.cells_y * y.advance + y.extent_more;
  t.width = int(divided_up(most_lead + t.cells_x * x.advance + x.extent_more, kWideRead)) * kWideRead;
  t.plane_bytes = number_bytes * t.rows * t.width;
  const int64_t fit = int64_t(kTileBytes / t.plane_bytes), room = kTileThreads / (t.cells_x * t.cells_y);
  t.planes = int(room < fit ? room : fit);
  if (t.planes > planes) t.planes = int(planes);
  if (t.planes < 1) t.planes = 1;
  t.unit = unit, t.to_unit = to_unit;
  t.cell_columns = Divisor(t.cells_x), t.plane_cells = Divisor(t.cells_x * t.cells_y);
  t.shared_rows = Divisor(t.rows), t.row_units = Divisor(t.width / unit);
  return t;
}

// Threads that sum for one of the planes of a block: a power of two.
constexpr int plane_members(const PlaneTiles& t) {
  int members = 1;
  while (members * 2 * t.planes <= kTileThreads) members *= 2;
  return members;
}

// Images [height, width, channels]. A block has a tile of cells_y x cells_x cells for `lanes` threads along the
// channels, and `steps` of them one below the other.
struct PixelTiles {
  int lanes, cells_x, cells_y, steps, tiles_x, tiles_y, chunks;
};

constexpr PixelTiles pixel_tiles(int64_t B, int64_t channels, int64_t height, int64_t width, int rows, int columns,
                                 const Gpu& gpu) {
  PixelTiles t{};
  t.lanes = channel_lanes(channels / kLaneChannels, 32);
  t.chunks = int(divided_up(channels / kLaneChannels, t.lanes));
  const int cells = kTileThreads / t.lanes;
  t.cells_x = 1;
  while (t.cells_x < cells && int64_t(t.cells_x) * columns < width) t.cells_x *= 2;
  t.cells_y = cells / t.cells_x;
  t.tiles_x = int(divided_up(width, t.cells_x * columns));
  const int64_t down = divided_up(height, t.cells_y * rows);
  // As many one below the other as leave enough blocks: rows that both need are still in the cache.
  const int64_t blocks = B * t.chunks * t.tiles_x * down, wanted = int64_t(kBlocksPerUnit) * 4 * gpu.multiprocessors;
  const int64_t steps = blocks / wanted;
  t.steps = int(steps < 1 ? 1 : steps > down ? down : steps);
  t.tiles_y = int(divided_up(down, t.steps));
  return t;
}

// ---- gradients of weights

constexpr int kTapsAtOnce = 8;      // that a thread sums, where there may be any number of them
constexpr int kEntries = 32;        // that a block adds the pieces of,
constexpr int kEntryGroups = 8;     // each by so many threads
constexpr int64_t kLeastPiece = 8;  // places that a thread sums in any case

// The sums over batch and places are made in pieces, which a second kernel adds: as many as fill the GPU, if there is
// so much to divide.
constexpr int64_t conv_pieces(int64_t parts, int64_t blocks_of_a_piece, const Gpu& gpu) {
  const int64_t wanted = divided_up(int64_t(kBlocksPerUnit) * gpu.multiprocessors, blocks_of_a_piece);
  return wanted < parts ? wanted : parts;
}

// ---- a depthwise convolution and the 1x1 convolution of its result

constexpr int kSeparableThreads = 256;
// Groups of pixels that a warp has the sums of.
constexpr int separable_groups(size_t sum_bytes) { return sum_bytes > 4 ? 4 : 8; }
constexpr int kLeastPixels = 16;  // of a block, if there is room

// A block has so many pixels. What the depthwise convolution makes of them lies in shared memory [pixels, stride],
// `chunk` channels at a time: all of them, but for very many. Warps share the pixels and `units` output channels, whose
// products meet in shared memory too.
struct SeparableTiles {
  int pixels, chunk, stride, units, out_stride;
  size_t place_bytes, out_bytes, bytes;  // of the places of all pixels, of the products, of all
  int columns, tiles_x, tiles_y;         // where the pixels are a rectangle
};

constexpr SeparableTiles separable_tiles(int64_t places, int64_t K, int64_t N, Arithmetic a, size_t sum_bytes,
                                         const Gpu& gpu) {
  SeparableTiles t{};
  t.units = kTile;
  while (t.units < kSeparableThreads / 32 * kTile && t.units < N) t.units *= 2;
  t.out_stride = t.units + 1;
  t.pixels = separable_groups(sum_bytes) * a.rows;
  t.chunk = tiles(K > 0 ? K : 1) * kTile;
  const auto fits = [&](size_t bytes) {
    t.stride = state_stride(t.chunk, a);
    t.place_bytes = (t.pixels * sizeof(int64_t) + 15) / 16 * 16;
    t.out_bytes = (t.pixels * t.out_stride * sum_bytes + 15) / 16 * 16;
    t.bytes = t.place_bytes + t.out_bytes + size_t(t.pixels) * t.stride * a.state_bytes;
    return t.bytes <= bytes;
  };
  // Two blocks for each multiprocessor, and all of them busy.
  while (t.pixels > a.rows &&
         (!fits(gpu.shared_bytes / 2) || (t.pixels > kLeastPixels && places < int64_t(t.pixels) * gpu.multiprocessors)))
    t.pixels /= 2;
  while (!fits(gpu.shared_bytes) && t.chunk > kTile) t.chunk = (t.chunk / 2 + kTile - 1) / kTile * kTile;
  return t;
}

// Whether the pixels of a block can be a rectangle of cells: as for tiles, of two dimensions.
constexpr bool rectangles_serve(const Conv& c) {
  const int64_t most = c.in_size() > c.out_size() ? c.in_size() : c.out_size();
  return tiles_serve(c, false) && !is_1d(c) && c.multiplier == 1 && c.C % kLaneChannels == 0 &&
         most * c.C <= kMostOfImage;
}

// Cells have so many rows, and kTileColumns columns.
constexpr void set_rectangle(SeparableTiles& t, const Conv& c, int rows) {
  t.columns = t.pixels >= 2 * kTileColumns * rows ? 2 * kTileColumns : kTileColumns;
  t.tiles_x = int(divided_up(c.out[2], t.columns));
  t.tiles_y = int(divided_up(c.out[1], t.pixels / t.columns));
}

}  // namespace adl
