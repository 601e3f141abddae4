// Launches the kernels of the block-resident tier.
#pragma once

#include "recurrent/cuda/block.cuh"
#include "recurrent/cuda/table.h"

namespace adl::cuda {

template <class Cell, class Tile, bool backward, class Scan, class Kernel>
cudaError_t start_block(Kernel kernel, const Directions<Scan>& d, const Gpu& gpu, cudaStream_t stream) {
  const int64_t B = d.of[0].steps.B, H = d.of[0].H;
  const int rows = block_rows(B, d.count, Tile::kArithmetic, gpu);
  LaunchOptions options;
  options.shared_bytes = block_shared_bytes(H, Cell::kGates, Cell::kPre, Tile::kArithmetic, backward);
  const dim3 grid(unsigned((B + rows - 1) / rows), unsigned(d.count));
  return launch(kernel, grid, unsigned(32 * tiles(H)), stream, options, d, rows);
}

// Calls f with a null pointer to the tile that T is multiplied by.
template <class T, class F>
auto with_tile(bool tf32, F f) {
  if constexpr (sizeof(T) == 2)
    return f(static_cast<HalfTile<T>*>(nullptr));
  else
    return tf32 ? f(static_cast<Tf32Tile*>(nullptr)) : f(static_cast<FloatTile*>(nullptr));
}

}  // namespace adl::cuda
