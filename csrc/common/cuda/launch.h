// What every choice of threads and tiles starts from, as functions of plain values: the GPU, and how a block
// multiplies. No CUDA here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adl {

struct Gpu {
  int multiprocessors;
  size_t shared_bytes;                        // that one block may ask for
  int clusters_of_8 = 0, clusters_of_16 = 0;  // that can be under way at once, a block to a multiprocessor; 0: none

  bool operator==(const Gpu&) const = default;
};

constexpr int kTile = 16;  // a tile is so many units by so many states

constexpr int tiles(int64_t H) { return static_cast<int>((H + kTile - 1) / kTile); }

// How a block multiplies: words of 4 bytes that a lane needs for a tile, bytes of a state, sequences at once, sums that
// a gradient of h is made from.
struct Arithmetic {
  int words, state_bytes, rows, sums;

  bool operator==(const Arithmetic&) const = default;
};
constexpr Arithmetic kHalfTensorCores{4, 2, 8, 2}, kTf32TensorCores{8, 4, 8, 2}, kFloatFma{8, 4, 4, 1};

// Distance of two rows of states, so that the lanes of a warp read from different banks.
constexpr int state_stride(int width, Arithmetic a) {
  const int cycle = 128 / a.state_bytes, wanted = 16;
  return width + (wanted - width % cycle + cycle) % cycle;
}

namespace cuda {
// Clusters of so many blocks that the device can have under way, each block alone on its multiprocessor. Where kernels
// for clusters are: recurrent/cuda.
int clusters_at_once(int blocks);
}  // namespace cuda

}  // namespace adl
