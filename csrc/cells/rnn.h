// Elman RNN with tanh or ReLU, exactly torch.nn.RNN (Elman 1990). Its output is all that backward needs.
#pragma once

#include "cells/number.h"

namespace adl {

struct Rnn {
  static constexpr int kGates = 1;
  static constexpr int kPre = 1;
  static constexpr int kIh[] = {0};
  static constexpr int kHh[] = {0};
  static constexpr bool kHasC = false;
  static constexpr bool kSavesGates = false;
};

struct RnnTanh : Rnn {
  static constexpr const char* kName = "rnn_tanh";

  template <class V>
  ADL_CELL void forward(V* pre, V& h, V& /*c*/) {
    h = tanh(pre[0]);
  }

  template <class V>
  ADL_CELL void backward(V* gates, V /*h_prev*/, V h, V /*c_prev*/, V /*c*/, V& dh, V& /*dc*/) {
    gates[0] = dh * (V(1) - h * h);
    dh = V(0);
  }
};

struct RnnRelu : Rnn {
  static constexpr const char* kName = "rnn_relu";

  template <class V>
  ADL_CELL void forward(V* pre, V& h, V& /*c*/) {
    h = relu(pre[0]);
  }

  template <class V>
  ADL_CELL void backward(V* gates, V /*h_prev*/, V h, V /*c_prev*/, V /*c*/, V& dh, V& /*dc*/) {
    gates[0] = where_positive(h, dh);
    dh = V(0);
  }
};

}  // namespace adl
