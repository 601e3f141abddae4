// Scans backward of the block-resident tier.
#include "common/cuda/each_number.h"
#include "recurrent/cuda/block_start.cuh"

namespace adl::cuda {

template <class Cell, class T>
cudaError_t start_block_backward(const Directions<BackwardScan<T>>& d, bool tf32, const Gpu& gpu, cudaStream_t stream) {
  return with_tile<T>(tf32, [&]<class Tile>(Tile*) {
    return start_block<Cell, Tile, true>(block_backward<Cell, T, Tile>, d, gpu, stream);
  });
}

template <class Cell, class T>
void add_block_backward_of(CellKernels<T>& k) {
  if constexpr (!Cell::kResetsBefore) k.block_backward = start_block_backward<Cell, T>;
}

template <class T>
void add_block_backward(Kernels<T>& table) {
#define ADL_ADD(Cell) add_block_backward_of<Cell>(table.cells[index_of<Cell>()]);
  ADL_CELLS(ADL_ADD)
#undef ADL_ADD
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T) template void adl::cuda::add_block_backward(adl::cuda::Kernels<T>&);
ADL_EACH_NUMBER_BUT_DOUBLE(ADL_INSTANTIATE)
