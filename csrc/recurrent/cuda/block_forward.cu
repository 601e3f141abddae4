// Scans forward of the block-resident tier.
#include "common/cuda/each_number.h"
#include "recurrent/cuda/block_start.cuh"

namespace adl::cuda {

template <class Cell, class T>
cudaError_t start_block_forward(const Directions<ForwardScan<T>>& d, bool tf32, const Gpu& gpu, cudaStream_t stream) {
  return with_tile<T>(tf32, [&]<class Tile>(Tile*) {
    return start_block<Cell, Tile, false>(block_forward<Cell, T, Tile>, d, gpu, stream);
  });
}

template <class Cell, class T>
void add_block_forward_of(CellKernels<T>& k) {
  if constexpr (!Cell::kResetsBefore) k.block_forward = start_block_forward<Cell, T>;
}

template <class T>
void add_block_forward(Kernels<T>& table) {
#define ADL_ADD(Cell) add_block_forward_of<Cell>(table.cells[index_of<Cell>()]);
  ADL_CELLS(ADL_ADD)
#undef ADL_ADD
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T) template void adl::cuda::add_block_forward(adl::cuda::Kernels<T>&);
ADL_EACH_NUMBER_BUT_DOUBLE(ADL_INSTANTIATE)
