// The launchers of the CUDA kernels: plain pointers and a stream in, the launch's error out.
#pragma once

#include "recurrent/cells/cells.h"
#include "recurrent/cuda/launch.h"
#include "recurrent/cuda/params.h"
#include "recurrent/cuda/tiers.h"

namespace adl::cuda {

template <class T>
struct CellKernels {
  // One step of `count` sequences from `row` on; gh [count, G, H] W_hh h, computed before. `first` and `last`: of the
  // scan, where the state comes from h_0 and c_0, or goes to h_n and c_n.
  cudaError_t (*streaming_forward)(const ForwardScan<T>&, int64_t row, int64_t count, bool first, bool last,
                                   const Acc<T>* gh, cudaStream_t);
  // Leaves dgates, of which the caller adds W_hh^T dgates to dh. `first`: where backward begins, with dh_n and dc_n.
  cudaError_t (*streaming_backward)(const BackwardScan<T>&, int64_t row, int64_t count, bool first, Before,
                                    cudaStream_t);
  // The same steps with what else may be asked for.
  cudaError_t (*row_forward)(const ForwardScan<T>&, const ForwardExtras<T>&, int64_t t, int64_t count, const Acc<T>* gh,
                             cudaStream_t);
  cudaError_t (*row_backward)(const BackwardScan<T>&, const BackwardExtras<T>&, int64_t t, int64_t count, cudaStream_t);
  // For cells that reset before the product, between the products for the first gates and the last: out [B, H] = r h,
  // and dh += what came from its gradient d, reset_h [N, H] = r h. Null for other cells.
  cudaError_t (*reset_forward)(const ForwardScan<T>&, const ForwardExtras<T>&, int64_t t, int64_t count,
                               const Acc<T>* gh, T* out, cudaStream_t);
  cudaError_t (*reset_backward)(const BackwardScan<T>&, const BackwardExtras<T>&, int64_t t, int64_t count,
                                const Acc<T>* d, Acc<T>* dh, T* reset_h, cudaStream_t);
  // All steps; float32 is multiplied as tf32 if `tf32`. Null for double and cells that reset before the
  // product, which have row_forward and row_backward alone for their steps.
  cudaError_t (*block_forward)(const Directions<ForwardScan<T>>&, bool tf32, const Gpu&, cudaStream_t);
  cudaError_t (*block_backward)(const Directions<BackwardScan<T>>&, bool tf32, const Gpu&, cudaStream_t);
};

// All steps, by teams of blocks. For float32 tf32 is meant. Null for cells that reset before the product.
template <class T>
struct TeamKernels {
  cudaError_t (*forward)(const Directions<ForwardScan<T>>&, const Plan&, unsigned most_polls, cudaStream_t);
  cudaError_t (*backward)(const Directions<BackwardScan<T>>&, const Plan&, unsigned most_polls, cudaStream_t);
  // Whether the device can have all blocks of a launch under way at once.
  bool (*runs_at_once)(const Plan&, bool backward);
};

template <class T>
struct Kernels {
  CellKernels<T> cells[kCells];  // in the order of the list
  // out [N, P]: what W_hh sees of the h before each row's step, for its gradient.
  cudaError_t (*previous_states)(const Steps&, const StepExtras<T>&, int64_t P, const T* y, int64_t y_stride,
                                 const T* h_0, T* out, cudaStream_t);
  // out [B, P]: what W_hh sees of the state h; backward dh += that of its gradient `seen`, or 0 at a cut.
  cudaError_t (*seen_states)(const Steps&, const StepExtras<T>&, int64_t t, int64_t count, int64_t P, const Acc<T>* h,
                             T* out, cudaStream_t);
  cudaError_t (*seen_states_backward)(const Steps&, const StepExtras<T>&, int64_t t, int64_t count, int64_t P,
                                      const Acc<T>* seen, Acc<T>* dh, cudaStream_t);
  // A projected h [B, P] becomes the state and y; scans of P units. dh_rows [N, P]: its gradient.
  cudaError_t (*projected_states)(const ForwardScan<T>&, const StepExtras<T>&, int64_t t, int64_t count,
                                  const Acc<T>* h, cudaStream_t);
  cudaError_t (*projected_states_backward)(const BackwardScan<T>&, const StepExtras<T>&, int64_t t, int64_t count,
                                           T* dh_rows, cudaStream_t);
  // to = from, [rows, width] with rows to_stride and from_stride apart.
  cudaError_t (*copy_rows)(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows, int64_t width,
                           cudaStream_t);
  // to = round(a + b), b null for none.
  cudaError_t (*add_rows)(T* to, int64_t to_stride, const Acc<T>* a, int64_t a_stride, const T* b, int64_t b_stride,
                          int64_t rows, int64_t width, cudaStream_t);
};

cudaError_t store_numbers(const int64_t* from_host, int64_t count, int64_t* to, cudaStream_t);

// Of a cell by its place in the list; instantiated for float, bfloat16 and float16.
template <class T>
const TeamKernels<T>& team_kernels(int cell);

// Instantiated for double, float, bfloat16 and float16.
template <class T>
const Kernels<T>& kernels();

}  // namespace adl::cuda
