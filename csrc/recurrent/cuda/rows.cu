// Launches the steps of the streaming tier with all that may be asked for, and what is done to whole rows between
// steps.
#include "common/cuda/each_number.h"
#include "recurrent/cuda/rows.cuh"
#include "recurrent/cuda/streaming.cuh"
#include "recurrent/cuda/table.h"

namespace adl::cuda {

template <class Cell, class T>
cudaError_t start_row_forward(const ForwardScan<T>& s, const ForwardExtras<T>& x, int64_t t, int64_t count,
                              const Acc<T>* gh, cudaStream_t stream) {
  return launch(row_forward<Cell, T>, unsigned(count), unit_threads(s.H), stream, {}, s, x, t, gh);
}

template <class Cell, class T>
cudaError_t start_row_backward(const BackwardScan<T>& s, const BackwardExtras<T>& x, int64_t t, int64_t count,
                               cudaStream_t stream) {
  return launch(row_backward<Cell, T>, unsigned(count), unit_threads(s.H), stream, {}, s, x, t);
}

template <class Cell, class T>
cudaError_t start_reset_forward(const ForwardScan<T>& s, const ForwardExtras<T>& x, int64_t t, int64_t count,
                                const Acc<T>* gh, T* out, cudaStream_t stream) {
  return launch(reset_forward<Cell, T>, unsigned(count), unit_threads(s.H), stream, {}, s, x, t, gh, out);
}

template <class Cell, class T>
cudaError_t start_reset_backward(const BackwardScan<T>& s, const BackwardExtras<T>& x, int64_t t, int64_t count,
                                 const Acc<T>* d, Acc<T>* dh, T* reset_h, cudaStream_t stream) {
  return launch(reset_backward<Cell, T>, unsigned(count), unit_threads(s.H), stream, {}, s, x, t, d, dh, reset_h);
}

template <class T>
cudaError_t start_previous_states(const Steps& steps, const StepExtras<T>& x, int64_t P, const T* y, int64_t y_stride,
                                  const T* h_0, T* out, cudaStream_t stream) {
  const int64_t groups = (steps.B + kRowThreads - 1) / kRowThreads;
  const dim3 grid(unsigned(steps.T), unsigned(groups < 1024 ? groups : 1024));
  return launch(previous_states<T>, grid, dim3(32, kRowThreads), stream, {}, steps, x, P, y, y_stride, h_0, out);
}

template <class T>
cudaError_t start_seen_states(const Steps& steps, const StepExtras<T>& x, int64_t t, int64_t count, int64_t P,
                              const Acc<T>* h, T* out, cudaStream_t stream) {
  return launch(seen_states<T>, unit_grid(count, P), unit_threads(P), stream, {}, steps, x, t, P, h, out);
}

template <class T>
cudaError_t start_seen_states_backward(const Steps& steps, const StepExtras<T>& x, int64_t t, int64_t count, int64_t P,
                                       const Acc<T>* seen, Acc<T>* dh, cudaStream_t stream) {
  return launch(seen_states_backward<T>, unit_grid(count, P), unit_threads(P), stream, {}, steps, x, t, P, seen, dh);
}

template <class T>
cudaError_t start_projected_states(const ForwardScan<T>& s, const StepExtras<T>& x, int64_t t, int64_t count,
                                   const Acc<T>* h, cudaStream_t stream) {
  return launch(projected_states<T>, unit_grid(count, s.H), unit_threads(s.H), stream, {}, s, x, t, h);
}

template <class T>
cudaError_t start_projected_states_backward(const BackwardScan<T>& s, const StepExtras<T>& x, int64_t t, int64_t count,
                                            T* dh_rows, cudaStream_t stream) {
  return launch(projected_states_backward<T>, unit_grid(count, s.H), unit_threads(s.H), stream, {}, s, x, t, dh_rows);
}

template <class T>
cudaError_t start_copy_rows(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows, int64_t width,
                            cudaStream_t stream) {
  return launch(store_rows<T, T>, unit_grid(rows, width), unit_threads(width), stream, {}, to, to_stride, from,
                from_stride, static_cast<const T*>(nullptr), int64_t(0), width);
}

template <class T>
cudaError_t start_add_rows(T* to, int64_t to_stride, const Acc<T>* a, int64_t a_stride, const T* b, int64_t b_stride,
                           int64_t rows, int64_t width, cudaStream_t stream) {
  return launch(store_rows<T, Acc<T>>, unit_grid(rows, width), unit_threads(width), stream, {}, to, to_stride, a,
                a_stride, b, b_stride, width);
}

template <class Cell, class T>
void add_rows_of(CellKernels<T>& k) {
  k.row_forward = start_row_forward<Cell, T>;
  k.row_backward = start_row_backward<Cell, T>;
  if constexpr (Cell::kResetsBefore) {
    k.reset_forward = start_reset_forward<Cell, T>;
    k.reset_backward = start_reset_backward<Cell, T>;
  }
}

template <class T>
void add_rows(Kernels<T>& table) {
#define ADL_ADD(Cell) add_rows_of<Cell>(table.cells[index_of<Cell>()]);
  ADL_CELLS(ADL_ADD)
#undef ADL_ADD
  table.previous_states = start_previous_states<T>;
  table.seen_states = start_seen_states<T>;
  table.seen_states_backward = start_seen_states_backward<T>;
  table.projected_states = start_projected_states<T>;
  table.projected_states_backward = start_projected_states_backward<T>;
  table.copy_rows = start_copy_rows<T>;
  table.add_rows = start_add_rows<T>;
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T) template void adl::cuda::add_rows(adl::cuda::Kernels<T>&);
ADL_EACH_NUMBER(ADL_INSTANTIATE)
