// Launches the scans of the block-resident tier.
#include "common/cuda/each_number.h"
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

template <class Cell, class T>
cudaError_t start_block_forward(const Directions<ForwardScan<T>>& d, bool tf32, const Gpu& gpu, cudaStream_t stream) {
  return with_tile<T>(tf32, [&]<class Tile>(Tile*) {
    return start_block<Cell, Tile, false>(block_forward<Cell, T, Tile>, d, gpu, stream);
  });
}

template <class Cell, class T>
cudaError_t start_block_backward(const Directions<BackwardScan<T>>& d, bool tf32, const Gpu& gpu, cudaStream_t stream) {
  return with_tile<T>(tf32, [&]<class Tile>(Tile*) {
    return start_block<Cell, Tile, true>(block_backward<Cell, T, Tile>, d, gpu, stream);
  });
}

template <class Cell, class T>
void add_block_of(CellKernels<T>& k) {
  if constexpr (!Cell::kResetsBefore) {
    k.block_forward = start_block_forward<Cell, T>;
    k.block_backward = start_block_backward<Cell, T>;
  }
}

template <class T>
void add_block(Kernels<T>& table) {
#define ADL_ADD(Cell) add_block_of<Cell>(table.cells[index_of<Cell>()]);
  ADL_CELLS(ADL_ADD)
#undef ADL_ADD
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T) template void adl::cuda::add_block(adl::cuda::Kernels<T>&);
ADL_EACH_NUMBER_BUT_DOUBLE(ADL_INSTANTIATE)
