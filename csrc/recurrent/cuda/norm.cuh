// Layer norms (Ba et al. 2016) of a row by the threads of a block, and their way back; torch.nn.functional.layer_norm.
#pragma once

#include "recurrent/cuda/extras.cuh"

namespace adl {

// The same in all threads.
template <class A>
__device__ __forceinline__ A block_sum(A v) {
  ADL_SHARED(A, sums, kUnitThreads / 32);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  __syncthreads();  // all have read the sums before
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) v += sums[warp];
  return v;
}

// f(0) + .. + f(n - 1)
template <class A, class F>
__device__ __forceinline__ A block_sum(unsigned n, F f) {
  A sum = 0;
  for (unsigned i = threadIdx.x; i < n; i += blockDim.x) sum += f(i);
  return block_sum(sum);
}

// Of a row: normed is (x - mean) * scale.
template <class A>
struct Moments {
  A mean = 0, scale = 1;
  __device__ __forceinline__ A operator()(A x) const { return (x - mean) * scale; }
};

template <class A, class F>
__device__ __forceinline__ Moments<A> moments(unsigned n, F f) {
  Moments<A> m;
  m.mean = block_sum<A>(n, f) / A(n);
  const A variance = block_sum<A>(n,
                                  [&](unsigned i) {
                                    const A x = f(i) - m.mean;
                                    return x * x;
                                  }) /
                     A(n);
  m.scale = A(1) / sqrt(variance + A(kNormEps));
  return m;
}

// A row of W_ih x and W_hh h, [G, H] each, and what the gates get of it.
template <class Cell, class T, class From>
struct Products {
  using A = Acc<T>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirst = Cell::kResetsBefore ? 2 : kGates;  // gates whose product with W_hh comes first

  const StepExtras<T>& extras;
  const unsigned H;
  const From *gx, *gh;
  Moments<A> of_x, of_h, of_late;  // the last: of the gates from kFirst on

  // late: whether their product is there.
  __device__ __forceinline__ Products(const StepExtras<T>& extras, unsigned H, const From* gx, const From* gh,
                                      bool late)
      : extras(extras), H(H), gx(gx), gh(gh) {
    if (!extras.ln_ih) return;
    of_x = moments<A>(kGates * H, [&](unsigned i) { return to_acc(gx[i]); });
    of_h = moments<A>(kFirst * H, [&](unsigned i) { return to_acc(gh[i]); });
    if (Cell::kResetsBefore && late) of_late = moments<A>(H, [&](unsigned i) { return to_acc(gh[kFirst * H + i]); });
  }

  __device__ __forceinline__ A x(int gate, unsigned u) const {
    const unsigned i = gate * H + u;
    const A v = to_acc(gx[i]);
    return extras.ln_ih ? of_x(v) * to_acc(extras.ln_ih[i]) : v;
  }
  __device__ __forceinline__ A h(int gate, unsigned u) const {
    const unsigned i = gate * H + u;
    const A v = to_acc(gh[i]);
    return extras.ln_hh ? (gate < kFirst ? of_h : of_late)(v)*to_acc(extras.ln_hh[i]) : v;
  }
  // Adds all of a unit to its pre-activations.
  __device__ __forceinline__ void add_to(Real<A> (&pre)[Cell::kPre], unsigned u) const {
#pragma unroll
    for (int k = 0; k < kGates; ++k) {
      pre[ih<Cell>(k)].v += x(k, u);
      pre[hh<Cell>(k)].v += h(k, u);
    }
  }
};

// Back through the layer norm over gates first .. end - 1 of a row of products [G, H]; d(gate, u) is the gradient of
// what it made. Leaves that of the products in `out`, and adds that of the gains to `sums`, both [G, H].
template <class T, class D>
__device__ __forceinline__ void norm_backward(const Moments<Acc<T>>& m, const T* products, const T* gain, int first,
                                              int end, unsigned H, D d, T* out, Acc<T>* sums) {
  using A = Acc<T>;
  const auto each = [&](auto f) {
    for (int k = first; k < end; ++k)
      for (unsigned u = threadIdx.x; u < H; u += blockDim.x) {
        const unsigned i = k * H + u;
        f(i, d(k, u), m(to_acc(products[i])));
      }
  };
  A mean = 0, slope = 0;
  each([&](unsigned i, A di, A x) {
    const A v = to_acc(gain[i]) * di;
    mean += v, slope += v * x;
  });
  const A n = A((end - first) * H);
  mean = block_sum(mean) / n, slope = block_sum(slope) / n;
  each([&](unsigned i, A di, A x) {
    out[i] = from_acc<T>(m.scale * (to_acc(gain[i]) * di - mean - x * slope));
    sums[i] += di * x;
  });
}

}  // namespace adl
