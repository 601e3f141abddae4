// Launches the kernels of one number type and fills its table.
#pragma once

#include "recurrent/cuda/block.cuh"
#include "recurrent/cuda/kernels.h"
#include "recurrent/cuda/rows.cuh"
#include "recurrent/cuda/streaming.cuh"

namespace adl::cuda {

inline dim3 unit_grid(int64_t rows, int64_t units) {
  return dim3(unsigned(rows), unsigned((units + kUnitThreads - 1) / kUnitThreads));
}

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
constexpr CellKernels<T> cell_kernels() {
  CellKernels<T> k{};
  k.row_forward = start_row_forward<Cell, T>;
  k.row_backward = start_row_backward<Cell, T>;
  if constexpr (Cell::kResetsBefore) {
    k.reset_forward = start_reset_forward<Cell, T>;
    k.reset_backward = start_reset_backward<Cell, T>;
  } else {
    k.streaming_forward = start_streaming_forward<Cell, T>;
    k.streaming_backward = start_streaming_backward<Cell, T>;
    if constexpr (sizeof(T) < 8) {
      k.block_forward = start_block_forward<Cell, T>;
      k.block_backward = start_block_backward<Cell, T>;
    }
  }
  return k;
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

template <class T>
const Kernels<T>& kernels() {
#define ADL_CELL_KERNELS(Cell) cell_kernels<Cell, T>(),
  static constexpr Kernels<T> kTable{{ADL_CELLS(ADL_CELL_KERNELS)},
                                     start_previous_states<T>,
                                     start_seen_states<T>,
                                     start_seen_states_backward<T>,
                                     start_projected_states<T>,
                                     start_projected_states_backward<T>,
                                     start_copy_rows<T>,
                                     start_add_rows<T>};
#undef ADL_CELL_KERNELS
  return kTable;
}

}  // namespace adl::cuda
