// The streaming tier: one step is one product (the caller's) and one of these kernels. Serves every size and dtype.
#pragma once

#include "recurrent/cuda/launch.h"
#include "recurrent/cuda/step.cuh"

namespace adl {

// One step of `count` sequences from `row` on; gh [count, G, H] W_hh h. `first`, `last`: of the scan, where the state
// is not in s.h and s.c but in h_0 and c_0, or is to go to h_n and c_n.
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads)
    streaming_forward(const ForwardScan<T> s, int64_t row, bool first, bool last, const Acc<T>* gh_all) {
  const int64_t b = blockIdx.x;
  const unsigned u = blockIdx.y * blockDim.x + threadIdx.x;
  if (u >= s.H) return;
  Acc<T> bias[Cell::kPre], gx[Cell::kGates], gh[Cell::kGates];
  load_bias<Cell>(s.b_ih, s.b_hh, s.H, u, bias);
  load_gx<Cell>(s, row + b, 0, u, gx);
#pragma unroll
  for (int k = 0; k < Cell::kGates; ++k) gh[k] = gh_all[(b * Cell::kGates + k) * s.H + u];
  const int64_t at = b * s.H + u;
  Acc<T> h = 0, c = 0;
  load_state<Cell>(s, first, at, h, c);
  forward_unit<Cell>(s, row + b, 0, u, bias, gx, gh, h, c);
  store_state<Cell>(s, last, at, h, c);
  if (s.h_rounded) s.h_rounded[at] = from_acc<T>(h);
}

// The same backward, at a step whose state before is at `before`; the caller adds W_hh^T dgates to dh after. `first`:
// the step where backward begins. One block of a multiprocessor is enough, or ptxas, to fit another, spills on sm_120.
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads, 1)
    streaming_backward(const BackwardScan<T> s, int64_t row, bool first, const Before before) {
  const int64_t b = blockIdx.x;
  const unsigned u = blockIdx.y * blockDim.x + threadIdx.x;
  if (u >= s.H) return;
  Kept<Cell, T> kept;
  load_kept(s, b, row + b, 0, before, u, kept);
  const int64_t at = b * s.H + u;
  Acc<T> dh = 0, dc = 0;
  if (first) {
    load_state<Cell>(s, at, dh, dc);
  } else {
    dh = s.dh[at];
    if (Cell::kHasC) dc = s.dc[at];
  }
  backward_unit(s, b, row + b, 0, u, kept, dh, dc);
  s.dh[at] = dh;
  if (Cell::kHasC) s.dc[at] = dc;
}

// A few numbers from the host as arguments of a kernel: no copy that a stream or a graph would have to wait for.
struct Numbers {
  static constexpr int kMost = 448;
  int64_t of[kMost];
};

template <class T>
__global__ void store_numbers(const __grid_constant__ Numbers numbers, int count, T* to) {
  for (int k = threadIdx.x; k < count; k += blockDim.x) to[k] = numbers.of[k];
}

// to = from + more, [rows, width] with strides between rows; more may be null.
template <class T, class From>
__global__ void __launch_bounds__(kUnitThreads)
    store_rows(T* to, int64_t to_stride, const From* from, int64_t from_stride, const T* more, int64_t more_stride,
               int64_t width) {
  const int64_t b = blockIdx.x, p = int64_t(blockIdx.y) * blockDim.x + threadIdx.x;
  if (p >= width) return;
  Acc<T> value = to_acc(from[b * from_stride + p]);
  if (more) value += to_acc(more[b * more_stride + p]);
  to[b * to_stride + p] = from_acc<T>(value);
}

}  // namespace adl
