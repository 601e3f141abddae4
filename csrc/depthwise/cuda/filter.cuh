// Forward and the input gradient of a depthwise convolution are one thing, a filter: each number of the result is a sum
// over those taps that reach into the tensor it is made from. Here is how one thread finds them, whatever the sizes.
#pragma once

#include <numeric>

#include "common/cuda/real.cuh"
#include "depthwise/cuda/launch.h"
#include "depthwise/params.h"

namespace adl {

template <class T>
struct Filter {
  Conv conv;
  bool transposed;    // dy -> dx, else x -> y
  const T* from;      // x or dy
  const T* weight;    // [C * multiplier, taps]
  const T* bias;      // of channels of `to`, or null
  const T* residual;  // as `to`, or null
  T* to;              // y or dx
  Activation activation;
  int64_t tap_step[kSpatial];  // transposed: every so many taps fall on a place of dy

  explicit Filter(const ConvForward<T>& f)
      : conv(f.conv),
        transposed(false),
        from(f.x),
        weight(f.weight),
        bias(f.bias),
        residual(f.residual),
        to(f.y),
        activation(f.activation),
        tap_step{1, 1, 1} {}
  explicit Filter(const ConvInputGrad<T>& g)
      : conv(g.conv),
        transposed(true),
        from(g.dy),
        weight(g.weight),
        bias(nullptr),
        residual(nullptr),
        to(g.dx),
        activation(Activation::kNone) {
    for (int d = 0; d < kSpatial; ++d) tap_step[d] = conv.stride[d] / std::gcd(conv.stride[d], conv.dilation[d]);
  }

  constexpr const int64_t* to_sizes() const { return transposed ? conv.in : conv.out; }
  constexpr const int64_t* from_sizes() const { return transposed ? conv.out : conv.in; }
  constexpr int64_t to_channels() const { return transposed ? conv.C : conv.channels(); }
  constexpr int64_t from_channels() const { return transposed ? conv.channels() : conv.C; }
};

// The activations of n numbers; one switch for all of them.
template <int n, class A>
__device__ __forceinline__ void activate(A (&values)[n], Activation activation) {
  const auto each = [&](auto f) {
#pragma unroll
    for (int k = 0; k < n; ++k) values[k] = f(Real<A>(values[k])).v;
  };
  using R = Real<A>;
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return each([](R x) { return relu(x); });
    case Activation::kRelu6:
      return each([](R x) { return R(x.v < A(0) ? A(0) : x.v > A(6) ? A(6) : x.v); });
    case Activation::kHardswish:
      return each([](R x) {
        const A up = x.v + A(3), share = up < A(0) ? A(0) : up > A(6) ? A(6) : up;
        return R(x.v * share / A(6));
      });
    case Activation::kSilu:
      return each([](R x) { return R(x.v < A(-1000) ? A(-1000) : x.v) * sigmoid(x); });
    case Activation::kSigmoid:
      return each([](R x) { return sigmoid(x); });
    case Activation::kTanh:
      return each([](R x) { return tanh(x); });
  }
}

template <class T>
__device__ __forceinline__ Acc<T> finished(Acc<T> sum, const T* bias, Activation activation) {
  Acc<T> value[1] = {bias ? sum + to_acc(*bias) : sum};
  activate(value, activation);
  return value[0];
}

// Along one dimension, the taps that reach a place: so many, each a step further.
struct Walk {
  int64_t count = 0, tap = 0, tap_step = 1, at = 0, at_step = 0;

  // Of `from`, which `at` indexes, for place i of `to`.
  template <class T>
  __device__ __forceinline__ Walk(const Filter<T>& f, int d, int64_t i) {
    const Conv& c = f.conv;
    const int64_t kernel = c.kernel[d], stride = c.stride[d], dilation = c.dilation[d];
    int64_t last;  // tap inside `from`
    if (!f.transposed) {
      at = i * stride - c.pad[d], at_step = dilation;
      if (at >= c.in[d]) return;
      last = (c.in[d] - 1 - at) / dilation;
      if (at < 0) tap = (-at + dilation - 1) / dilation;
      at += tap * dilation;
    } else {
      // at * stride = i + pad - tap * dilation: every tap_step-th tap falls on a place.
      tap_step = f.tap_step[d], at_step = -(dilation * tap_step / stride);
      const int64_t from_first = i + c.pad[d];
      while (tap < tap_step && (from_first - tap * dilation) % stride != 0) ++tap;
      at = from_first - tap * dilation;
      if (tap == tap_step || at < 0) return;
      at /= stride;
      if (at >= c.out[d]) {
        const int64_t skipped = (at - c.out[d] - at_step) / -at_step;
        tap += skipped * tap_step, at += skipped * at_step;
      }
      if (at < 0) return;
      last = tap + at / -at_step * tap_step;
    }
    if (last > kernel - 1) last = kernel - 1;
    if (last >= tap) count = (last - tap) / tap_step + 1;
  }
};

// A place of `to`, and the taps that reach it.
struct Place {
  int64_t b, width;
  Walk z, y, x;

  template <class T>
  __device__ __forceinline__ Place(const Filter<T>& f, int64_t image, int64_t position)
      : b(image),
        width(position % f.to_sizes()[2]),
        z(f, 0, position / f.to_sizes()[2] / f.to_sizes()[1]),
        y(f, 1, position / f.to_sizes()[2] % f.to_sizes()[1]),
        x(f, 2, width) {}
};

// The sum for one channel at a place.
template <class T>
__device__ __forceinline__ Acc<T> sum_of_taps(const Filter<T>& f, const Place& p, int64_t channel) {
  const Conv& c = f.conv;
  const int64_t* const from_size = f.from_sizes();
  const int64_t positions = from_size[0] * from_size[1] * from_size[2], channels = f.from_channels();
  const int64_t beside = c.channels_last ? channels : 1, per_channel = c.channels_last ? 1 : positions;
  const int32_t* const ids = c.documents ? c.documents + p.b * from_size[2] : nullptr;
  // One channel of x serves `multiplier` of y.
  const int64_t first = f.transposed ? channel * c.multiplier : channel;
  const int64_t count = f.transposed ? c.multiplier : 1;
  Acc<T> sum = 0;
  for (int64_t o = first; o < first + count; ++o) {
    const T* const from = f.from + p.b * positions * channels + (f.transposed ? o : o / c.multiplier) * per_channel;
    const T* const weight = f.weight + o * c.taps();
    for (int64_t i = 0; i < p.z.count; ++i)
      for (int64_t j = 0; j < p.y.count; ++j) {
        const int64_t row = ((p.z.at + i * p.z.at_step) * from_size[1] + p.y.at + j * p.y.at_step) * from_size[2];
        const int64_t taps = ((p.z.tap + i * p.z.tap_step) * c.kernel[1] + p.y.tap + j * p.y.tap_step) * c.kernel[2];
        for (int64_t k = 0; k < p.x.count; ++k) {
          const int64_t at = p.x.at + k * p.x.at_step;
          if (ids && ids[at] != ids[p.width]) continue;
          sum += to_acc(from[(row + at) * beside]) * to_acc(weight[taps + p.x.tap + k * p.x.tap_step]);
        }
      }
  }
  return sum;
}

// Every size, stride and dilation; a thread for each number of `to`.
template <class T>
__global__ void __launch_bounds__(kConvThreads) filter_any(const __grid_constant__ Filter<T> f) {
  const int64_t* const size = f.to_sizes();
  const int64_t channels = f.to_channels(), positions = size[0] * size[1] * size[2];
  const int64_t n = int64_t(blockIdx.x) * kConvThreads + threadIdx.x;
  if (n >= f.conv.B * channels * positions) return;
  const int64_t row = f.conv.channels_last ? n / channels : n / positions;
  const int64_t inner = f.conv.channels_last ? n - row * channels : n - row * positions;
  const int64_t b = row / (f.conv.channels_last ? positions : channels);
  const int64_t outer = row - b * (f.conv.channels_last ? positions : channels);
  const int64_t channel = f.conv.channels_last ? inner : outer, position = f.conv.channels_last ? outer : inner;
  const Acc<T> sum = sum_of_taps(f, Place(f, b, position), channel);
  Acc<T> value = finished(sum, f.bias ? f.bias + channel : nullptr, f.activation);
  if (f.residual) value += to_acc(f.residual[n]);
  f.to[n] = from_acc<T>(value);
}

}  // namespace adl
