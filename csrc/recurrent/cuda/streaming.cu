// Launches the plain steps of the streaming tier.
#include "common/cuda/each_number.h"
#include "recurrent/cuda/streaming.cuh"
#include "recurrent/cuda/table.h"

namespace adl::cuda {

template <class Cell, class T>
cudaError_t start_streaming_forward(const ForwardScan<T>& s, int64_t row, int64_t count, bool first, bool last,
                                    const Acc<T>* gh, cudaStream_t stream) {
  return launch(streaming_forward<Cell, T>, unit_grid(count, s.H), unit_threads(s.H), stream, {}, s, row, first, last,
                gh);
}

template <class Cell, class T>
cudaError_t start_streaming_backward(const BackwardScan<T>& s, int64_t row, int64_t count, bool first, Before before,
                                     cudaStream_t stream) {
  return launch(streaming_backward<Cell, T>, unit_grid(count, s.H), unit_threads(s.H), stream, {}, s, row, first,
                before);
}

template <class Cell, class T>
void add_streaming_of(CellKernels<T>& k) {
  if constexpr (!Cell::kResetsBefore) {
    k.streaming_forward = start_streaming_forward<Cell, T>;
    k.streaming_backward = start_streaming_backward<Cell, T>;
  }
}

template <class T>
void add_streaming(Kernels<T>& table) {
#define ADL_ADD(Cell) add_streaming_of<Cell>(table.cells[index_of<Cell>()]);
  ADL_CELLS(ADL_ADD)
#undef ADL_ADD
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T) template void adl::cuda::add_streaming(adl::cuda::Kernels<T>&);
ADL_EACH_NUMBER(ADL_INSTANTIATE)
