// Checks what csrc/depthwise/cuda/launch.h decides, for tests/cuda/test_launch.py: a line for everything that is wrong.
#include <cstdio>
#include <initializer_list>

#include "depthwise/cuda/launch.h"

using namespace adl;

namespace {

constexpr Gpu kGpu{132, size_t(227) << 10};
constexpr size_t kSmallestShared = size_t(99) << 10;  // of a block, on GPUs with compute capability 8.6 or 12.0

template <class... Numbers>
void expect(bool right, const char* what, Numbers... numbers) {
  if (right) return;
  std::printf("%s", what);
  (std::printf(" %lld", static_cast<long long>(numbers)), ...);
  std::printf("\n");
}

void divisors() {
  for (unsigned by = 1; by < 2000; ++by)
    for (unsigned n = 0; n < 20000; n += n < 3000 ? 1 : 37)
      expect(Divisor(by).quotient(n) == n / by, "quotient", n, by);
}

constexpr int64_t kSizes[] = {1, 2, 5, 7, 8, 14, 15, 28, 33, 56, 64, 65, 112, 224, 1000, 4099};

void planes(Along y, Along x, bool one_row) {
  for (int64_t height : kSizes)
    for (int64_t width : kSizes)
      for (int64_t count : {1, 3, 1000}) {
        if (one_row && height != 1) continue;
        const PlaneTiles t = plane_tiles(count, height, width, y, x, 3, 1, 1, 4);
        expect(t.planes >= 1 && t.planes * t.cells_x * t.cells_y <= kTileThreads, "threads", height, width, count);
        // Gradients of weights have an array of fixed size besides, of a number per thread for each tap of a row.
        const size_t array = kMostTaps1d * kTileThreads * 4;
        expect(t.planes * t.plane_bytes + array <= kSmallestShared, "shared memory", height, width, count);
        expect(int64_t(t.tiles_x) * t.cells_x * x.made >= width, "columns", height, width, count);
        expect(int64_t(t.tiles_y) * t.cells_y * y.made >= height, "rows", height, width, count);
        expect(t.tiles_x == 1 || t.cells_x * x.advance % kWideRead == 0, "alignment", height, width, count);
        expect(t.width % kWideRead == 0 && plane_members(t) * t.planes <= kTileThreads, "members", height, width,
               count);
        const unsigned most = t.planes * t.rows * (t.width / t.row_units.by + t.width);
        expect(uint64_t(most) * t.shared_rows.by < uint64_t(1) << 32, "divisors", height, width, count);
      }
}

void pixels() {
  for (int64_t height : kSizes)
    for (int64_t width : kSizes)
      for (int64_t B : {1, 64})
        for (int64_t channels : {2, 6, 20, 64, 96, 1030}) {
          const PixelTiles t = pixel_tiles(B, channels, height, width, 4, kTileColumns, kGpu);
          const bool threads = t.lanes * t.cells_x * t.cells_y == kTileThreads && 32 % t.lanes == 0;
          expect(threads, "threads of pixels", height, width, channels);
          expect(int64_t(t.chunks) * t.lanes * kLaneChannels >= channels, "channels", height, width, channels);
          expect(int64_t(t.tiles_x) * t.cells_x * kTileColumns >= width, "columns of pixels", height, width, channels);
          const int64_t rows = int64_t(t.tiles_y) * t.steps * t.cells_y * 4;
          expect(rows >= height, "rows of pixels", height, width, channels);
        }
}

void separable() {
  for (int64_t places : {1, 49, 3136, 1000000})
    for (int64_t K : {0, 1, 16, 24, 512, 20000})
      for (int64_t N : {1, 24, 100, 1000})
        for (const Arithmetic& a : {kHalfTensorCores, kFloatFma, Arithmetic{8, 8, kFloatFma.rows, 1}}) {
          const size_t sum_bytes = a.state_bytes == 8 ? 8 : 4;
          const SeparableTiles t = separable_tiles(places, K, N, a, sum_bytes, {132, kSmallestShared});
          expect(t.bytes <= kSmallestShared, "shared memory of a separable convolution", places, K, N);
          expect(t.pixels % a.rows == 0 && t.chunk % kTile == 0, "groups", places, K, N);
          // Each warp has its channels, and the warps together all pixels.
          const int warps_p = kSeparableThreads / 32 / (t.units / kTile);
          const bool all = t.pixels <= warps_p * separable_groups(sum_bytes) * a.rows;
          expect(t.units % kTile == 0 && warps_p >= 1 && all, "warps", places, K, N);
        }
}

}  // namespace

int main() {
  divisors();
  planes({4, 6, 4}, {4, 6, 4}, false);  // 7 x 7
  planes({2, 5, 4}, {4, 5, 8}, false);  // of stride 2
  planes({4, 3, 2}, {4, 3, 2}, false);  // and its transpose
  planes({1, 0, 1}, {8, 7, 8}, true);   // one dimension
  pixels();
  separable();
  for (int64_t parts : {1, 7, 5000})
    for (int64_t blocks : {1, 40, 5000}) {
      const int64_t pieces = conv_pieces(parts, blocks, kGpu);
      expect(pieces >= 1 && pieces <= parts, "pieces", parts, blocks);
    }
}
