// What a cell may ask of the number type it is instantiated with.
//
// A cell is a template over a number type V (a SIMD register, on a GPU one number) that has + - * and,
// found by argument-dependent lookup, sigmoid(V), tanh(V), relu(V) and where_positive(V, V).
#pragma once

#ifdef __CUDACC__
#define ADL_CELL static __device__ __forceinline__
#else
#define ADL_CELL static inline __attribute__((always_inline))
#endif

namespace adl {

constexpr double kNormEps = 1e-5;  // that layer norms add to the variance, as torch.nn.LayerNorm

// A squashing function that is chosen at run time: a branch that all units take alike.
enum class Squash : int { kTanh, kSigmoid, kRelu, kIdentity };

// What a cell leaves to choose: a call, or a kernel that serves several cells.
struct Choice {
  Squash cell = Squash::kTanh, hidden = Squash::kTanh;
  bool coupled = false;  // of an LSTM without a gate that forgets: whether c forgets as much as it takes up
};

template <class V>
ADL_CELL V squash(Squash kind, V x) {
  switch (kind) {
    case Squash::kTanh:
      return tanh(x);
    case Squash::kSigmoid:
      return sigmoid(x);
    case Squash::kRelu:
      return relu(x);
    default:
      return x;
  }
}

// Its derivative where its value is y.
template <class V>
ADL_CELL V slope(Squash kind, V y) {
  switch (kind) {
    case Squash::kTanh:
      return V(1) - y * y;
    case Squash::kSigmoid:
      return y * (V(1) - y);
    case Squash::kRelu:
      return where_positive(y, V(1));
    default:
      return V(1);
  }
}

}  // namespace adl
