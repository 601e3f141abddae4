// The streaming tier: one step is one product (the caller's) and one of these kernels. Serves every size and dtype.
#pragma once

#include "cuda/launch.h"
#include "cuda/step.cuh"

namespace adl {

// One step of `count` sequences from `row` on; gh [count, G, H] W_hh h.
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads)
    streaming_forward(const ForwardScan<T> s, int64_t row, const Acc<T>* gh_all) {
  const int64_t b = blockIdx.x;
  const unsigned u = blockIdx.y * blockDim.x + threadIdx.x;
  if (u >= s.H) return;
  Acc<T> bias[Cell::kPre], gx[Cell::kGates], gh[Cell::kGates];
  load_bias<Cell>(s.b_ih, s.b_hh, s.H, u, bias);
  load_gx<Cell>(s, row + b, 0, u, gx);
#pragma unroll
  for (int k = 0; k < Cell::kGates; ++k) gh[k] = gh_all[(b * Cell::kGates + k) * s.H + u];
  const int64_t at = b * s.H + u;
  Acc<T> h = s.h ? s.h[at] : Acc<T>(0), c = Cell::kHasC ? s.c[at] : Acc<T>(0);
  forward_unit<Cell>(s, row + b, 0, u, bias, gx, gh, h, c);
  if (s.h) s.h[at] = h;
  if (s.h_rounded) s.h_rounded[at] = from_acc<T>(h);
  if (Cell::kHasC) s.c[at] = c;
}

// The same backward, at a step whose state before is at `before`; the caller adds W_hh^T dgates to dh after.
template <class Cell, class T>
__global__ void __launch_bounds__(kUnitThreads)
    streaming_backward(const BackwardScan<T> s, int64_t row, const Before before) {
  const int64_t b = blockIdx.x;
  const unsigned u = blockIdx.y * blockDim.x + threadIdx.x;
  if (u >= s.H) return;
  Kept<Cell, T> kept;
  load_kept(s, b, row + b, 0, before, u, kept);
  const int64_t at = b * s.H + u;
  Acc<T> dh = s.dh[at], dc = Cell::kHasC ? s.dc[at] : Acc<T>(0);
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
