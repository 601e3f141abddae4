// Every choice of tier, threads and tiles, as functions of plain values. No CUDA here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adl {

struct Gpu {
  int multiprocessors;
  size_t shared_bytes;  // that one block may ask for
};

constexpr int kUnitThreads = 256;  // of kernels with one thread per unit of a row
constexpr int kRowThreads = 8;     // rows of a block of 32 threads each

// Threads of a row with so many units: few where it is short.
constexpr unsigned unit_threads(int64_t units) {
  return units >= kUnitThreads ? kUnitThreads : static_cast<unsigned>((units + 31) / 32 * 32);
}

// ---- the block-resident tier: a warp holds all gates of 16 units, so a block all of at most 128

constexpr int kTile = 16;           // a tile is so many units by so many states
constexpr int kMaxTiles = 8;        // in either direction
constexpr int kBlockThreads = 256;  // at most: a warp for each tile of units

constexpr int kRegisterWords = 128;  // that each thread may hold of the weights

constexpr int tiles(int64_t H) { return static_cast<int>((H + kTile - 1) / kTile); }

// How a block multiplies: words of 4 bytes that a lane needs for a tile, bytes of a state, sequences at once, sums that
// a gradient of h is made from.
struct Arithmetic {
  int words, state_bytes, rows, sums;
};
constexpr Arithmetic kHalfTensorCores{4, 2, 8, 2}, kTf32TensorCores{8, 4, 8, 2}, kFloatFma{8, 4, 4, 1};

// Tiles along the states that each lane holds in registers, for each gate; the others lie in shared memory.
constexpr int register_tiles(int gates, Arithmetic a) {
  const int fit = kRegisterWords / (gates * a.words);
  return fit < kMaxTiles ? fit : kMaxTiles;
}

// Distance of two rows of states, so that the lanes of a warp read from different banks.
constexpr int state_stride(int width, Arithmetic a) {
  const int cycle = 128 / a.state_bytes, wanted = 16;
  return width + (wanted - width % cycle + cycle) % cycle;
}

// A row of states holds h, in backward the gradients of all gates.
constexpr int state_width(int64_t H, int gates, bool backward) { return tiles(H) * kTile * (backward ? gates : 1); }

// Shared memory of a block: two buffers of states; in forward the biases of all pre-activations; weights.
constexpr size_t state_bytes(int64_t H, int gates, Arithmetic a, bool backward) {
  return size_t(2) * a.rows * state_stride(state_width(H, gates, backward), a) * a.state_bytes;
}
constexpr size_t bias_bytes(int64_t H, int pre, bool backward) {
  return backward ? 0 : size_t(4) * pre * tiles(H) * kTile;
}
constexpr size_t spilled_bytes(int64_t H, int gates, Arithmetic a) {
  const int n = tiles(H), held = register_tiles(gates, a);
  return n > held ? size_t(n) * (n - held) * gates * 32 * a.words * 4 : 0;
}
constexpr size_t staging_bytes(int64_t H, int gates, Arithmetic a) {  // of what is in registers, before all that
  return size_t(tiles(H)) * register_tiles(gates, a) * 32 * a.words * 4;
}
constexpr size_t block_shared_bytes(int64_t H, int gates, int pre, Arithmetic a, bool backward) {
  const size_t all = state_bytes(H, gates, a, backward) + bias_bytes(H, pre, backward) + spilled_bytes(H, gates, a);
  const size_t staging = staging_bytes(H, gates, a);
  return all > staging ? all : staging;
}

// Sequences per block: as few as fill the GPU, since the time of a step hardly depends on it.
constexpr int block_rows(int64_t B, int directions, Arithmetic a, const Gpu& gpu) {
  const int64_t rows = (B * directions + gpu.multiprocessors - 1) / gpu.multiprocessors;
  return static_cast<int>(rows < 1 ? 1 : rows > a.rows ? a.rows : rows);
}

constexpr bool block_fits(int64_t H, int gates, int pre, Arithmetic a, bool backward, const Gpu& gpu) {
  return tiles(H) <= kMaxTiles && block_shared_bytes(H, gates, pre, a, backward) <= gpu.shared_bytes;
}

}  // namespace adl
