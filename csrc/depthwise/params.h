// Plain parameter structs of the depthwise convolutions. No torch here.
#pragma once

#include <cstdint>

namespace adl {

constexpr int kSpatial = 3;  // depth, height, width; where there are fewer, the first ones have size and kernel 1

// What follows a sum and its bias. The order is that of kActivationNames.
enum class Activation { kNone, kRelu, kRelu6, kHardswish, kSilu, kSigmoid, kTanh };
constexpr const char* kActivationNames[] = {"none", "relu", "relu6", "hardswish", "silu", "sigmoid", "tanh"};
constexpr int kActivations = 7;

// y[b, o, i] = sum over taps k of x[b, o / multiplier, i * stride + k * dilation - pad] w[o, k], where x is zero
// outside.
struct Conv {
  int64_t B, C, multiplier;  // x has C channels, y C * multiplier
  int64_t in[kSpatial], out[kSpatial];
  int64_t kernel[kSpatial], stride[kSpatial], dilation[kSpatial];
  int64_t pad[kSpatial];  // zeros before x; those after it follow from `out`
  bool channels_last;     // tensors are [B, spatial.., channels], else [B, channels, spatial..]
  // [B, in[2]] ids of the documents that lie one after the other in each row, or null. Only for one dimension with
  // out == in and stride 1: taps do not reach into another document.
  const int32_t* documents;
  int threads;

  constexpr int64_t channels() const { return C * multiplier; }
  constexpr int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  constexpr int64_t in_size() const { return in[0] * in[1] * in[2]; }
  constexpr int64_t out_size() const { return out[0] * out[1] * out[2]; }
};

template <class T>
struct ConvForward {
  Conv conv;
  const T* x;         // [B, C, in..]
  const T* weight;    // [C * multiplier, taps]
  const T* bias;      // [C * multiplier] or null
  const T* residual;  // as y, added after the activation, or null
  T* y;               // [B, C * multiplier, out..]
  Activation activation;
};

template <class T>
struct ConvInputGrad {
  Conv conv;
  const T* dy;      // [B, C * multiplier, out..]
  const T* weight;  // [C * multiplier, taps]
  T* dx;            // [B, C, in..]
};

template <class T>
struct ConvWeightGrad {
  Conv conv;
  const T* dy;  // [B, C * multiplier, out..]
  const T* x;   // [B, C, in..]
  T* dweight;   // [C * multiplier, taps]
  T* dbias;     // [C * multiplier] or null
};

// A depthwise convolution, and the 1x1 convolution of its result, which is never stored as a whole.
template <class T>
struct SeparableForward {
  ConvForward<T> depthwise;  // y and residual are null
  int64_t N;                 // channels of y
  const T* weight;           // [N, C * multiplier]
  const void* packed;        // the same as the device wants it, or null
  const T* bias;             // [N] or null
  const T* residual;         // as y, added after the activation, or null
  T* y;                      // [B, N, out..]
  Activation activation;
};

}  // namespace adl
