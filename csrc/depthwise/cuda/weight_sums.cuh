// Gradients of the weights of a depthwise convolution: sums over batch and places. Each block leaves the sums of one
// piece of them, and a second kernel adds the pieces, always in the same order.
//
//   sums [pieces, channels of y, taps + 1]   the last one is for dbias
#pragma once

#include "common/cuda/device.cuh"
#include "depthwise/cuda/launch.h"
#include "depthwise/params.h"

namespace adl {

// Which threads of a block share a sum: lanes of a warp whose numbers differ in bits from `low` to below `high` only,
// in so many warps that follow each other.
struct Sharing {
  int low, high, warps;

  // Threads t, t + lanes, ...; lanes is a power of two up to 32.
  static constexpr Sharing strided(int lanes, int threads) { return {lanes, 32, threads / 32}; }
  // So many threads that follow each other, a power of two.
  static constexpr Sharing adjacent(int members) {
    return {1, members < 32 ? members : 32, members < 32 ? 1 : members / 32};
  }

  // Whether this thread stands for those that it shares its sums with.
  __device__ __forceinline__ bool leads() const {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    return (lane & (high - low)) == 0 && warp % warps == 0;
  }
};

// Sums of n numbers over those who share them, for those who lead; shared [n, blockDim.x].
template <int n, class A>
__device__ __forceinline__ void add_up(A (&sums)[n], const Sharing& sharing, A* shared) {
#pragma unroll
  for (int k = 0; k < n; ++k)
    for (int bit = sharing.low; bit < sharing.high; bit *= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], bit);
  if (sharing.warps == 1) return;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < n; ++k) shared[k * blockDim.x + threadIdx.x] = sums[k];
  __syncthreads();
  if (!sharing.leads()) return;
#pragma unroll
  for (int k = 0; k < n; ++k)
    for (int warp = 1; warp < sharing.warps; ++warp) sums[k] += shared[k * blockDim.x + threadIdx.x + 32 * warp];
}

// Every size, stride and dilation. A block has `lanes` channels of y, kTapsAtOnce taps and one piece.
template <class T>
__global__ void __launch_bounds__(kConvThreads)
    weight_grad_any(const __grid_constant__ ConvWeightGrad<T> g, int lanes, int64_t pieces, Acc<T>* all_sums) {
  ADL_SHARED(Acc<T>, shared, (kTapsAtOnce + 1) * kConvThreads);
  const Conv& c = g.conv;
  const int64_t channels = c.channels(), taps = c.taps(), places = c.out_size();
  const int64_t piece = blockIdx.x % pieces, chunk = blockIdx.x / pieces;
  const int64_t tap_chunks = (taps + kTapsAtOnce - 1) / kTapsAtOnce, first_tap = chunk % tap_chunks * kTapsAtOnce;
  const int64_t o = chunk / tap_chunks * lanes + threadIdx.x % lanes;
  const int64_t per_piece = (c.B * places + pieces - 1) / pieces;
  const int64_t end = per_piece * (piece + 1) < c.B * places ? per_piece * (piece + 1) : c.B * places;

  int64_t reach[kTapsAtOnce][kSpatial];  // of each tap, from where the first one is
#pragma unroll
  for (int k = 0; k < kTapsAtOnce; ++k) {
    const int64_t tap = first_tap + k;
    reach[k][0] = tap / (c.kernel[1] * c.kernel[2]) * c.dilation[0] - c.pad[0];
    reach[k][1] = tap / c.kernel[2] % c.kernel[1] * c.dilation[1] - c.pad[1];
    reach[k][2] = tap % c.kernel[2] * c.dilation[2] - c.pad[2];
  }
  Acc<T> sums[kTapsAtOnce + 1] = {};
  const int64_t start = per_piece * piece + threadIdx.x / lanes, step = kConvThreads / lanes;
  for (int64_t n = start; o < channels && n < end; n += step) {
    const int64_t b = n / places, i = n - b * places;
    const int64_t x = i % c.out[2], y = i / c.out[2] % c.out[1], z = i / c.out[2] / c.out[1];
    const T* const from =
        g.x + (c.channels_last ? b * c.in_size() * c.C + o / c.multiplier : (b * c.C + o / c.multiplier) * c.in_size());
    const Acc<T> dy = to_acc(g.dy[c.channels_last ? n * channels + o : (b * channels + o) * places + i]);
    const int32_t* const ids = c.documents ? c.documents + b * c.in[2] : nullptr;
    sums[kTapsAtOnce] += dy;
#pragma unroll
    for (int k = 0; k < kTapsAtOnce; ++k) {
      const int64_t at_z = z * c.stride[0] + reach[k][0], at_y = y * c.stride[1] + reach[k][1];
      const int64_t at_x = x * c.stride[2] + reach[k][2];
      if (first_tap + k >= taps || at_z < 0 || at_z >= c.in[0] || at_y < 0 || at_y >= c.in[1] || at_x < 0 ||
          at_x >= c.in[2] || (ids && ids[at_x] != ids[x]))
        continue;
      sums[k] += dy * to_acc(from[((at_z * c.in[1] + at_y) * c.in[2] + at_x) * (c.channels_last ? c.C : 1)]);
    }
  }

  const Sharing sharing = Sharing::strided(lanes, kConvThreads);
  add_up(sums, sharing, shared);
  if (!sharing.leads() || o >= channels) return;
  Acc<T>* const out = all_sums + (piece * channels + o) * (taps + 1);
#pragma unroll
  for (int k = 0; k < kTapsAtOnce; ++k)
    if (first_tap + k < taps) out[first_tap + k] = sums[k];
  if (first_tap == 0) out[taps] = sums[kTapsAtOnce];
}

template <class T>
__global__ void __launch_bounds__(kEntries* kEntryGroups)
    add_pieces(const Acc<T>* sums, int64_t pieces, int64_t entries, int64_t taps, T* dweight, T* dbias) {
  ADL_SHARED(Acc<T>, shared, kEntries * kEntryGroups);
  const int64_t entry = int64_t(blockIdx.x) * kEntries + threadIdx.x;
  Acc<T> sum = 0;
  for (int64_t piece = threadIdx.y; entry < entries && piece < pieces; piece += kEntryGroups)
    sum += sums[piece * entries + entry];
  shared[threadIdx.y * kEntries + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || entry >= entries) return;
  for (int group = 1; group < kEntryGroups; ++group) sum += shared[group * kEntries + threadIdx.x];
  const int64_t o = entry / (taps + 1), tap = entry - o * (taps + 1);
  if (tap < taps)
    dweight[o * taps + tap] = from_acc<T>(sum);
  else if (dbias)
    dbias[o] = from_acc<T>(sum);
}

}  // namespace adl
