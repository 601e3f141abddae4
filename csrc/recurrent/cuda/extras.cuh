// What a layer may ask for besides torch.nn's own, where it meets the state: recurrent mask and zoneout; and the
// kernels for it that know nothing of the cell.
#pragma once

#include "recurrent/cuda/launch.h"
#include "recurrent/cuda/step.cuh"

namespace adl {

// What W_hh sees of a state h.
template <class T>
__device__ __forceinline__ Acc<T> masked(const StepExtras<T>& x, const At& at, int64_t P, unsigned p, Acc<T> h) {
  return x.mask ? h * to_acc(x.mask[at.b * P + p]) : h;
}

// The share of h, or of c, that stays as it was.
template <class T>
__device__ __forceinline__ Acc<T> share(const StepExtras<T>& x, const uint8_t* zone, int state, int64_t at) {
  if (!x.zoneout) return 0;
  return zone ? static_cast<Acc<T>>(zone[at]) : static_cast<Acc<T>>(x.zone[state]);
}

// Exactly what was, where all of it stays.
template <class A>
__device__ __forceinline__ A mixed(A stays, A before, A now) {
  return stays * before + (A(1) - stays) * now;
}

// h_t from what the cell made of it, or from the projection of that; s.H is its width. Null s.h: there comes a
// projection.
template <class T>
__device__ __forceinline__ void finish_h(const ForwardScan<T>& s, const StepExtras<T>& x, const At& at, unsigned u,
                                         Acc<T> h) {
  if (s.h) {
    Acc<T>& state = s.h[at.b * s.H + u];
    if (x.zoneout) h = mixed(share(x, x.zone_h, 0, at.row * s.H + u), at.fresh ? 0 : state, h);
    state = h;
    if (s.h_rounded) s.h_rounded[at.b * s.H + u] = from_acc<T>(h);
  }
  s.y[at.row * s.y_stride + u] = from_acc<T>(h);
}

// dL/d what finish_h got (null s.y where there comes a projection); `around`: the part of dL/dh_{t-1} that did not go
// through the cell.
template <class T>
__device__ __forceinline__ Acc<T> finish_h_backward(const BackwardScan<T>& s, const StepExtras<T>& x, const At& at,
                                                    unsigned u, Acc<T>& around) {
  const Acc<T> dy = s.dy ? to_acc(s.dy[at.row * s.y_stride + u]) : Acc<T>(0);
  const Acc<T> dh = s.dh[at.b * s.H + u] + dy;
  around = s.y ? share(x, x.zone_h, 0, at.row * s.H + u) * dh : Acc<T>(0);
  return dh - around;
}

// ---- kernels with a block for some units of a sequence, at step t

// out [B, P] = what W_hh sees of the state h.
template <class T>
__global__ void __launch_bounds__(kUnitThreads)
    seen_states(const Steps s, const StepExtras<T> x, int64_t t, int64_t P, const Acc<T>* h, T* out) {
  const At at(s, t, blockIdx.x);
  const unsigned p = blockIdx.y * blockDim.x + threadIdx.x;
  if (p < P) out[at.b * P + p] = from_acc<T>(masked(x, at, P, p, at.fresh ? Acc<T>(0) : h[at.b * P + p]));
}

// dh += what came to the states that seen_states left, `seen` [B, P] (null for nothing), unless a cut is here.
template <class T>
__global__ void __launch_bounds__(kUnitThreads)
    seen_states_backward(const Steps s, const StepExtras<T> x, int64_t t, int64_t P, const Acc<T>* seen, Acc<T>* dh) {
  const At at(s, t, blockIdx.x);
  const unsigned p = blockIdx.y * blockDim.x + threadIdx.x;
  if (p >= P) return;
  Acc<T>& to = dh[at.b * P + p];
  if (at.cut)
    to = 0;
  else if (seen)
    to += masked(x, at, P, p, seen[at.b * P + p]);
}

// After a projection to h [count, P]; s is as wide.
template <class T>
__global__ void __launch_bounds__(kUnitThreads)
    projected_states(const ForwardScan<T> s, const StepExtras<T> x, int64_t t, const Acc<T>* h) {
  const At at(s.steps, t, blockIdx.x);
  const unsigned p = blockIdx.y * blockDim.x + threadIdx.x;
  if (p < s.H && at.active) finish_h(s, x, at, p, h[at.b * s.H + p]);
}

// dh_rows [N, P]: dL/d the projection; leaves in dh what goes around it.
template <class T>
__global__ void __launch_bounds__(kUnitThreads)
    projected_states_backward(const BackwardScan<T> s, const StepExtras<T> x, int64_t t, T* dh_rows) {
  const At at(s.steps, t, blockIdx.x);
  const unsigned p = blockIdx.y * blockDim.x + threadIdx.x;
  if (p >= s.H) return;
  Acc<T> dh = 0, around;
  if (at.active) {
    dh = finish_h_backward(s, x, at, p, around);
    s.dh[at.b * s.H + p] = around;
  }
  dh_rows[at.row * s.H + p] = from_acc<T>(dh);
}

// out [N, P]: what W_hh sees of the state before each row's step, for its gradient; zero where there is no step. Blocks
// are steps.
template <class T>
__global__ void __launch_bounds__(kRowThreads * 32)
    previous_states(const Steps s, const StepExtras<T> x, int64_t P, const T* y, int64_t y_stride, const T* h_0,
                    T* out) {
  const int64_t t = blockIdx.x, count = count_of(s, t);
  for (int64_t b = blockIdx.y * kRowThreads + threadIdx.y; b < count; b += gridDim.y * kRowThreads) {
    const At at(s, t, b);
    for (unsigned p = threadIdx.x; p < P; p += 32) {
      const Acc<T> h = at.active ? masked(x, at, P, p, state_before(at, y, y_stride, h_0, P, p)) : Acc<T>(0);
      out[at.row * P + p] = from_acc<T>(h);
    }
  }
}

}  // namespace adl
